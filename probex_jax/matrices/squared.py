"""Dense matrices with X Xᵀ and Xᵀ X, computed once, and functions of one matrix after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.matrices.batch import batch_shape, may_be_sharded
from probex_jax.matrices.centred import Centred
from probex_jax.matrices.low_rank import LowRank

# Bytes of products that are kept for one batch, which may be all training models of a layer.
_MOST_BYTES = 4e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Squared:
    """Matrices X with X Xᵀ and Xᵀ X, computed once.

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

    @property
    def dtype(self) -> Any:
        """Dtype of the matrices."""
        return self.matrices.dtype

    def __getitem__(self, index: Any) -> Picked:
        """Some of the models, by the leading axis; nothing is copied yet."""
        return Picked(self, jnp.arange(self.shape[0])[index])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Picked:
    """Some models of a batch, which `for_each` copies one by one.

    Copying all of them together takes a fifth of the time of training.

    Args:
      everything: the batch, [N, H, W].
      index: [M] int, the models.
    """

    everything: Squared
    index: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the picked matrices, [M, H, W]."""
        return (*self.index.shape, *self.everything.shape[1:])

    @property
    def dtype(self) -> Any:
        """Dtype of the matrices."""
        return self.everything.dtype

    def read(self, index: Any = slice(None)) -> Squared:
        """The picked models, or some of them, as a batch; with an int, one without a batch axis."""
        return jax.tree.map(lambda leaf: leaf[self.index[index]], self.everything)


def squared(x: jax.Array, *, of_rows: bool = True, of_columns: bool = True) -> jax.Array | Squared:
    """Computes the products of a batch with itself that make every read of it cheaper.

    X Xᵀ u costs 2 H W as two products, H² as one with X Xᵀ, so X Xᵀ is kept if H < 2 W, and Xᵀ X
    if W < 2 H. Nothing is kept if the products need more than 4 GB.

    Args:
      x: [N, H, W] float.
      of_rows, of_columns: whether X Xᵀ and Xᵀ X are needed at all.

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
    # x is no result of these programs, which would copy it.
    return Squared(
        x,
        rows=_times_rows(x) if of_rows else None,
        columns=_times_columns(x) if of_columns else None,
    )


def for_each(function: Callable[[Any], jax.Array], x: Any) -> jax.Array:
    """A function of every matrix of a batch, one matrix at a time where that is faster.

    A program lowered for a CPU loops over dense matrices: a matrix and its intermediates stay in
    cache, and XLA need not transpose products of two axes. For the gradient it saves the products
    and recomputes the rest. There is no loop on other platforms, over factors, whose products are
    small, or over a sharded batch, which a loop would gather.

    Args:
      function: [..., H, W] of the kind of x -> array of the same leading shape.
      x: [N, H, W] float, dense, `LowRank`, `Centred`, `Squared` or `Picked`.

    Returns:
      The results, with a leading axis N.

    Example:
      >>> import jax.numpy as jnp
      >>> for_each(lambda x: x.sum(axis=(-2, -1)), jnp.ones([2, 3, 4]))
      Array([12., 12.], dtype=float32)
    """

    def together(x: Any) -> jax.Array:
        return function(x.read() if isinstance(x, Picked) else x)

    def one_by_one(x: Any) -> jax.Array:
        def one(x_or_place: Any) -> jax.Array:
            return function(x.read(x_or_place) if isinstance(x, Picked) else x_or_place)

        saved = jax.checkpoint_policies.dots_saveable
        one = jax.checkpoint(one, policy=saved, prevent_cse=False)
        return jax.lax.map(one, jnp.arange(x.shape[0]) if isinstance(x, Picked) else x)

    if isinstance(x, LowRank | Centred) or may_be_sharded(x):
        return together(x)
    return jax.lax.platform_dependent(x, cpu=one_by_one, default=together)


@jax.jit
def _times_rows(x: jax.Array) -> jax.Array:
    """X Xᵀ of every matrix [N, H, W]."""
    return for_each(lambda x: x @ x.mT, x)


@jax.jit
def _times_columns(x: jax.Array) -> jax.Array:
    """Xᵀ X of every matrix [N, H, W]."""
    return for_each(lambda x: x.mT @ x, x)
