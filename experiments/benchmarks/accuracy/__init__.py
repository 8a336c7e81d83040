"""Every method on every tree of the miniature zoo: `python -m experiments.benchmarks.accuracy`."""
