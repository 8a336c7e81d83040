"""Dense matrices beside their products with themselves, for whoever needs those often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.matrices.batch import batch_shape, may_be_sharded

# Bytes of products that are kept for one batch, which may be all training models of a layer.
_MOST_BYTES = 4e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Squared:
    """Matrices X with X Xᵀ and Xᵀ X, made once.

    Args:
      matrices: [..., H, W] float array.
      rows: [..., H, H], X Xᵀ; None where it is not kept.
      columns: [..., W, W], Xᵀ X; None where it is not kept.
    """

    matrices: Any
    rows: Any
    columns: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrices, [..., H, W]."""
        return self.matrices.shape

    def __getitem__(self, index: Any) -> Picked:
        """Some of the models: indexes the leading axis, and copies nothing yet."""
        return Picked(self, jnp.arange(self.shape[0])[index])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Picked:
    """Some models of a batch, copied one by one when `for_each` works them off.

    A copy of all of them is a fifth of the time of training.

    Args:
      everything: the batch, [N, H, W].
      index: [M] int, which of them.
    """

    everything: Squared
    index: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the picked matrices, [M, H, W]."""
        return (*self.index.shape, *self.everything.shape[1:])

    def read(self, index: Any = slice(None)) -> Squared:
        """The picked models, or some of them, as a batch of their own; of an int that one alone."""
        return jax.tree.map(lambda leaf: leaf[self.index[index]], self.everything)


def squared(x: jax.Array, *, of_rows: bool = True, of_columns: bool = True) -> jax.Array | Squared:
    """Keeps the products of a batch with itself that spare work each time it is read.

    X Xᵀ u costs 2 H W as two products, H² as one with X Xᵀ; so that is kept where H < 2 W, and
    Xᵀ X where W < 2 H. Nothing is kept where that takes more memory than 4 GB.

    Args:
      x: [N, H, W] float.
      of_rows, of_columns: whether X Xᵀ and Xᵀ X will be asked for at all.

    Returns:
      `Squared`, or x as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> x = squared(jnp.ones([5, 2, 6]))
      >>> x.shape, x.rows.shape, x.columns
      ((5, 2, 6), (5, 2, 2), None)
    """
    n_models, rows, columns = batch_shape(x)
    of_rows &= rows < 2 * columns
    of_columns &= columns < 2 * rows
    size = n_models * (of_rows * rows**2 + of_columns * columns**2)
    if not (of_rows or of_columns) or size * x.dtype.itemsize > _MOST_BYTES:
        return x
    # Compiled without x among the results, which would be a copy of it.
    return Squared(
        x,
        rows=_times_rows(x) if of_rows else None,
        columns=_times_columns(x) if of_columns else None,
    )


@jax.jit
def _times_rows(x: jax.Array) -> jax.Array:
    """X Xᵀ of every matrix [N, H, W]."""
    if jax.default_backend() == "cpu" and not may_be_sharded(x):
        return jax.lax.map(lambda x: x @ x.T, x)
    return x @ x.mT


@jax.jit
def _times_columns(x: jax.Array) -> jax.Array:
    """Xᵀ X of every matrix [N, H, W]."""
    if jax.default_backend() == "cpu" and not may_be_sharded(x):
        return jax.lax.map(lambda x: x.T @ x, x)
    return x.mT @ x
