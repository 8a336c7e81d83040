"""Matrices of many models that are kept as their factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """Matrices kept as their factors, X = up @ down, and never multiplied out.

    Behaves like an array [..., H, W] where encoders need it to: shape, indexing by model,
    transpose, division by a scalar, and products with small dense matrices. A pytree, so it passes
    through `jit`, `grad` and `vmap`.

    Args:
      up: [..., H, R] float array.
      down: [..., R, W] float array of the same leading shape.

    Example:
      >>> import jax.numpy as jnp
      >>> x = LowRank(up=jnp.ones([5, 8, 2]), down=jnp.ones([5, 2, 6]))
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

    def __getitem__(self, index: Any) -> LowRank:
        """Some of the models: indexes the leading axes."""
        return LowRank(up=self.up[index], down=self.down[index])

    def __matmul__(self, right: jax.Array) -> jax.Array:
        """X @ right for right [W, U], at a cost of R (H + W) U a model."""
        return self.up @ (self.down @ right)

    def __truediv__(self, scalar: Any) -> LowRank:
        """X / scalar."""
        return LowRank(up=self.up / scalar, down=self.down)

    def dense(self) -> jax.Array:
        """The product [..., H, W]; for tests and for looking, not for training."""
        return self.up @ self.down


def stack(matrices: Sequence[np.ndarray | LowRank], rank: int | None = None) -> Any:
    """Matrices of one layer of several models as one batch, in host memory.

    Args:
      matrices: [H, W] arrays, or `LowRank` of NumPy arrays whose ranks may differ.
      rank: the rank of all factors of the batch; None for the largest there is. Factors of a lower
        one are filled up with zeros, which changes no product.

    Returns:
      [N, H, W], or `LowRank` of [N, H, R] and [N, R, W].

    Raises:
      ValueError: if the matrices are not all dense or all factors, if their shapes differ, or if
        factors are of a higher rank.

    Example:
      >>> import numpy as np
      >>> a, b = (LowRank(np.ones([4, r]), np.ones([r, 3])) for r in (1, 2))
      >>> x = stack([a, b])
      >>> x.up.shape, x.dense()[:, 0, 0].tolist()
      ((2, 4, 2), [1.0, 2.0])
    """
    factors = [matrix for matrix in matrices if isinstance(matrix, LowRank)]
    if not factors:
        return np.stack(matrices)  # type: ignore[arg-type]
    if len(factors) < len(matrices):
        raise ValueError("some matrices are dense and some are factors")
    rank = max(matrix.up.shape[-1] for matrix in factors) if rank is None else rank

    def filled(array: np.ndarray, axis: int) -> np.ndarray:
        missing = [(0, 0), (0, 0)]
        missing[axis] = (0, rank - array.shape[axis])
        return np.pad(array, missing)

    return LowRank(
        up=np.stack([filled(matrix.up, 1) for matrix in factors]),
        down=np.stack([filled(matrix.down, 0) for matrix in factors]),
    )
