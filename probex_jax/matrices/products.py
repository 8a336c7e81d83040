"""The products that encoders are written against, each in the cheapest order for the shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from probex_jax.matrices.low_rank import LowRank

# How much slower the left-first order of a dense projection runs for the same count of operations
# (XLA on CPU has to contract the middle axis): see experiments/benchmarks/forms.py.
_LEFT_FIRST_RATE = 0.5


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


# Contract the weight with one factor first: the other order would multiply the factors out.
_weight_first: list[tuple[int, ...]] = [(0, 2), (0, 1)]
