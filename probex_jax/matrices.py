"""Weight matrices of many models, dense or kept as factors, and the products that encoders need.

Dimension letters, here and in all array code: N models, H rows, W columns, U probes,
V projections, T representation, Y outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# How much slower the left-first order of a dense projection runs for the same count of operations
# (XLA on CPU has to contract the middle axis): see experiments/benchmarks/forms.py.
_LEFT_FIRST_RATE = 0.5


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


def project(x: jax.Array | LowRank, left: jax.Array, right: jax.Array) -> jax.Array:
    """Both-sided product leftᵀ X right of every matrix of a batch.

    The order of the products is the cheapest for the shapes; factors are never multiplied out.

    Args:
      x: [N, H, W] float, dense or `LowRank`.
      left: [H, V] float.
      right: [W, U] float.

    Returns:
      [N, V, U] float.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(24.0).reshape(2, 3, 4)
      >>> project(x, left=jnp.ones([3, 1]), right=jnp.ones([4, 1])).ravel()
      Array([ 66., 210.], dtype=float32)
    """
    if isinstance(x, LowRank):
        return _project_factors(x, left, right)
    rows, columns = x.shape[-2:]
    n_left, n_right = left.shape[-1], right.shape[-1]
    right_first = rows * n_right * (columns + n_left)
    left_first = columns * n_left * (rows + n_right)
    if left_first < _LEFT_FIRST_RATE * right_first:
        return jnp.einsum("nhw,hv->nvw", x, left) @ right
    # The transpose of the small intermediate lets both products run as one large matrix product
    # each, which a CPU does faster than a contraction of the middle axis.
    return _rows_times(_rows_times(x, right).mT, left).mT


def factor_order(shape: tuple[int, int], rank: int, n_left: int, n_right: int) -> str:
    """The cheapest order of the products in leftᵀ (up down) right.

    Args:
      shape: (H, W) of the product of the factors.
      rank: R.
      n_left, n_right: columns of `left` and of `right`.

    Returns:
      "both": (leftᵀ up) (down right); "right": leftᵀ (up (down right)), for few columns on the
      right; "left": ((leftᵀ up) down) right, for few on the left.

    Example:
      >>> factor_order((1280, 1280), 16, 128, 128), factor_order((64, 64), 16, 128, 8)
      ('both', 'right')
    """
    rows, columns = shape
    costs = {
        "both": rank * (rows * n_left + columns * n_right + n_left * n_right),
        "right": n_right * (rank * (columns + rows) + rows * n_left),
        "left": n_left * (rank * (columns + rows) + columns * n_right),
    }
    return min(costs, key=lambda order: costs[order])


def _project_factors(x: LowRank, left: jax.Array, right: jax.Array) -> jax.Array:
    rows, columns = x.shape[-2:]
    order = factor_order((rows, columns), x.up.shape[-1], left.shape[-1], right.shape[-1])
    if order == "right":
        return _rows_times((x.up @ _rows_times(x.down, right)).mT, left).mT
    left_NRV = _rows_times(x.up.mT, left)
    if order == "left":
        return _rows_times(left_NRV.mT @ x.down, right)
    return left_NRV.mT @ _rows_times(x.down, right)


def _rows_times(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight, in a form whose gradient is faster on CPU (experiments/benchmarks/forms.py).

    The barrier keeps the transposed weight a tensor of its own; its gradient is then one product
    of contiguous rows, (cotangent)ᵀ x, and not a contraction of the leading axes of both.
    """
    rows = jax.lax.optimization_barrier(weight.T)
    return jax.lax.dot_general(x, rows, (((x.ndim - 1,), (1,)), ((), ())))


def inner(x: jax.Array | LowRank, weight: jax.Array) -> jax.Array:
    """Inner products of every matrix with every slice of a weight tensor.

    Args:
      x: [N, H, W] float, dense or `LowRank`.
      weight: [H, W, T] float.

    Returns:
      [N, T] float, entry (n, t) being the sum over h, w of x[n, h, w] * weight[h, w, t].

    Example:
      >>> import jax.numpy as jnp
      >>> inner(jnp.ones([2, 3, 4]), jnp.ones([3, 4, 1])).ravel()
      Array([12., 12.], dtype=float32)
    """
    if isinstance(x, LowRank):
        return jnp.einsum("nhr,nrw,hwt->nt", x.up, x.down, weight, optimize=_weight_first)
    return x.reshape(x.shape[0], -1) @ weight.reshape(-1, weight.shape[-1])


def std(x: jax.Array | LowRank) -> jax.Array:
    """Standard deviation over all entries of all matrices, a scalar; factors stay factors.

    Example:
      >>> import jax.numpy as jnp
      >>> x = LowRank(up=jnp.array([[[1.0], [3.0]]]), down=jnp.array([[[2.0, 4.0]]]))
      >>> float(std(x)) == float(std(x.dense()))
      True
    """
    if not isinstance(x, LowRank):
        return jnp.std(x)
    size = x.shape[-2] * x.shape[-1]
    squares = ((x.up.mT @ x.up) * (x.down @ x.down.mT)).sum(axis=(-2, -1)) / size
    means = (x.up.sum(axis=-2) * x.down.sum(axis=-1)).sum(axis=-1) / size
    return jnp.sqrt(jnp.maximum(squares.mean() - means.mean() ** 2, 0.0))


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


# Contract the weight with one factor first: the other order would multiply the factors out.
_weight_first: list[tuple[int, ...]] = [(0, 2), (0, 1)]
