"""Experts as the PyTorch implementations of ProbeX and MVProbe keep theirs, both ways."""

from probex_jax.experts.torch_format.experts import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
