"""Vectors as they stand in a table."""

from typing import Any

import numpy as np

from probex_jax.errors import ProbexError


def unit(vectors: Any) -> np.ndarray:
    """Vectors [n, T] scaled to length 1, as float32.

    Raises:
      ProbexError: if one is zero or not finite.
    """
    vectors_NT = np.asarray(vectors, np.float32)
    norms_N1 = np.linalg.norm(vectors_NT, axis=-1, keepdims=True)
    if not (np.isfinite(norms_N1).all() and norms_N1.all()):
        raise ProbexError("a vector is zero or not finite")
    return vectors_NT / norms_N1


def vectors_of(column: Any) -> np.ndarray:
    """The vectors [n, T] of a column of Arrow."""
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)
