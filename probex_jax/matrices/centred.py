"""Factors minus a matrix that all models share, never multiplied out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.matrices.batch import batch_shape, with_leading_axes
from probex_jax.matrices.low_rank import Factored, LowRank, short


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Centred(Factored):
    """Matrices up @ down - centre, with one centre for all of them.

    Behaves like `LowRank`. The models of a batch share the products with the centre; only products
    with their own factors, such as [H, W] @ [W, R], are computed for each.

    Args:
      factors: [..., H, W].
      centre: [H, W] float, an array or `LowRank`.

    Example:
      >>> import jax.numpy as jnp
      >>> factors = LowRank(up=jnp.ones([5, 8, 2]), down=jnp.ones([5, 2, 6]))
      >>> x = Centred(factors, centre=jnp.ones([8, 6]))
      >>> x.shape, float(x.dense().max())
      ((5, 8, 6), 1.0)
    """

    factors: LowRank
    centre: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrices, [..., H, W]."""
        return self.factors.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.factors.ndim

    @property
    def dtype(self) -> Any:
        """Dtype of the matrices."""
        return jnp.result_type(self.factors.dtype, self.centre.dtype)

    @property
    def mT(self) -> Centred:
        """The transposed matrices [..., W, H]."""
        return Centred(self.factors.mT, self.centre.mT)

    def __repr__(self) -> str:
        return f"Centred({self.factors!r}, centre={short(self.centre)})"

    def _models(self, index: Any) -> Centred:
        return Centred(self.factors[index], self.centre)

    def __matmul__(self, right: jax.Array) -> jax.Array:
        """X @ right for right [W, U]."""
        return self._minus(self.factors @ right, self.centre @ right)

    def __truediv__(self, scalar: Any) -> Centred:
        """X / scalar."""
        return Centred(self.factors / scalar, self.centre / scalar)

    def dense(self) -> jax.Array:
        """The matrices [..., H, W]: for inspection, not for training."""
        return self._minus(self.factors.dense(), dense(self.centre))

    @staticmethod
    def _minus(each: jax.Array, shared: jax.Array) -> jax.Array:
        return each - with_leading_axes(shared, each.ndim)


def dense(x: jax.Array | LowRank | Centred) -> jax.Array:
    """Matrices as an array, multiplied out if they are factors.

    Args:
      x: [..., H, W] float, dense, `LowRank` or `Centred`.

    Returns:
      An array [..., H, W].
    """
    return x.dense() if isinstance(x, LowRank | Centred) else x


def centred(x: Any, centre: Any) -> Any:
    """Every matrix of a batch minus the centre.

    Args:
      x: [N, H, W] float, dense or `LowRank`.
      centre: [H, W] float, dense or `LowRank`.

    Returns:
      [N, H, W]; `Centred` if x is `LowRank`.

    Raises:
      ValueError: if x does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> float(centred(jnp.ones([5, 8, 6]), jnp.ones([8, 6])).max())
      0.0
    """
    batch_shape(x)
    if isinstance(x, LowRank):
        return Centred(x, centre)
    return x - dense(centre)[None]
