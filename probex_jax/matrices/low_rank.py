"""Matrices of many models that are kept as their factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np


class Factored:
    """What matrices that are no array share: their length, iteration, no conversion by NumPy."""

    shape: Any

    def __len__(self) -> int:
        """Size of the first axis."""
        return self.shape[0]

    def __iter__(self) -> Iterator[Self]:
        """The models one by one; JAX's arrays raise no IndexError that would end them."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Self:
        """Some of the models: indexes the leading axes."""
        indexed = sum(i is not None for i in (index if isinstance(index, tuple) else (index,)))
        if indexed > len(self.shape) - 2:
            raise IndexError(f"{type(self).__name__}: only axes before the last two can be indexed")
        return self._models(index)

    def _models(self, index: Any) -> Self:
        raise NotImplementedError

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: NumPy would make an array of one object."""
        raise TypeError(f"{type(self).__name__} is not an array: multiply it out by its `dense()`")


def short(leaf: Any) -> str:
    """An array as float32[8,2], anything else as it prints."""
    if isinstance(leaf, LowRank) or not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return repr(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class LowRank(Factored):
    """Matrices kept as their factors, X = up @ down, and never multiplied out.

    Behaves like an array [..., H, W] where encoders need it to: shape, indexing by model,
    transpose, division by a scalar, and products with small dense matrices. It is a pytree, so it
    passes through `jit`, `grad` and `vmap`.

    Args:
      up: [..., H, R] float array.
      down: [..., R, W] float array of the same leading shape.

    Example:
      >>> import jax.numpy as jnp
      >>> x = LowRank(up=jnp.ones([5, 8, 2]), down=jnp.ones([5, 2, 6]))
      >>> x
      LowRank(up=float32[5,8,2], down=float32[5,2,6])
      >>> x.shape
      (5, 8, 6)
      >>> (x @ jnp.ones([6, 3])).shape
      (5, 8, 3)
    """

    up: Any
    down: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, [..., H, W]."""
        return (*self.up.shape[:-1], self.down.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of axes of the product."""
        return self.up.ndim

    @property
    def dtype(self) -> Any:
        """Dtype of the product."""
        return jnp.result_type(self.up, self.down)

    @property
    def mT(self) -> LowRank:
        """The transposed matrices [..., W, H]."""
        return LowRank(up=self.down.mT, down=self.up.mT)

    def __repr__(self) -> str:
        return f"LowRank(up={short(self.up)}, down={short(self.down)})"

    def _models(self, index: Any) -> LowRank:
        return LowRank(up=self.up[index], down=self.down[index])

    def __matmul__(self, right: jax.Array) -> jax.Array:
        """X @ right for right [W, U], at a cost of R (H + W) U per model."""
        return self.up @ (self.down @ right)

    def __truediv__(self, scalar: Any) -> LowRank:
        """X / scalar."""
        return LowRank(up=self.up / scalar, down=self.down)

    def dense(self) -> jax.Array:
        """The product [..., H, W]: for inspection, not for training."""
        return self.up @ self.down


def stack(matrices: Sequence[Any], rank: int | None = None) -> Any:
    """Matrices of one layer of several models as one batch.

    Args:
      matrices: [H, W] arrays, or `LowRank` whose ranks may differ.
      rank: rank of the batch; None for the largest one given. Factors of a lower rank are padded
        with zeros, which changes no product. Ignored for arrays.

    Returns:
      [N, H, W], or `LowRank` of [N, H, R] and [N, R, W]; of NumPy arrays in host memory.

    Raises:
      ValueError: if there are no matrices, if some are arrays and some `LowRank`, if their shapes
        differ, or if factors have a higher rank.

    Example:
      >>> import numpy as np
      >>> a, b = (LowRank(np.ones([4, r]), np.ones([r, 3])) for r in (1, 2))
      >>> x = stack([a, b])
      >>> x.up.shape, x.dense()[:, 0, 0].tolist()
      ((2, 4, 2), [1.0, 2.0])
    """
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(list(matrices)))
    xnp: Any = jnp if on_device else np
    factors = [matrix for matrix in matrices if isinstance(matrix, LowRank)]
    if not factors:
        return matrices[0][None] if len(matrices) == 1 else xnp.stack(matrices)
    if len(factors) < len(matrices):
        raise ValueError("some matrices are dense and some are factors")
    largest = max(matrix.up.shape[-1] for matrix in factors)
    rank = largest if rank is None else rank
    if rank < largest:
        raise ValueError(f"factors of rank {largest} do not fit into rank {rank}")

    def padded(array: Any, axis: int) -> Any:
        missing = [(0, 0), (0, 0)]
        missing[axis] = (0, rank - array.shape[axis])
        return xnp.pad(array, missing)

    return LowRank(
        up=xnp.stack([padded(matrix.up, 1) for matrix in factors]),
        down=xnp.stack([padded(matrix.down, 0) for matrix in factors]),
    )
