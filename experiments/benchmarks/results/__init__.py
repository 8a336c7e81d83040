"""All that results/ has, measured again: `python -m experiments.benchmarks.results`."""
