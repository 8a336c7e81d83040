"""The commands: one thin absl binary per verb, run as `python -m experiments.NAME`."""
