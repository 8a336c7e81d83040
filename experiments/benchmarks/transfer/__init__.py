"""What a linear classifier loses from tree to tree: `python -m experiments.benchmarks.transfer`."""
