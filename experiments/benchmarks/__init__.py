"""Timings: never in tests; each prints a ratio to a limit measured in the same run."""
