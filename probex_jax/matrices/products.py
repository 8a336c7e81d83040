"""The products that encoders are written against, each in the cheapest order for the shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.matrices.centred import Centred, dense
from probex_jax.matrices.low_rank import LowRank

Matrices = jax.Array | LowRank | Centred

# How much slower the left-first order of a dense projection runs for the same count of operations
# (XLA on CPU has to contract the middle axis): see experiments/benchmarks/forms.py.
_LEFT_FIRST_RATE = 0.5
# Added to a standard deviation that is divided by; the published value.
_EPSILON = 1e-8


def project(x: Matrices, left: jax.Array, right: jax.Array) -> jax.Array:
    """Both-sided product leftᵀ X right of every matrix of a batch.

    The order of the products is the cheapest for the shapes; factors are never multiplied out.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
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
    if isinstance(x, Centred):
        return project(x.factors, left, right) - (left.T @ (x.centre @ right))[None]
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


def inner(x: Matrices, weight: jax.Array) -> jax.Array:
    """Inner products of every matrix with every slice of a weight tensor.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
      weight: [H, W, T] float.

    Returns:
      [N, T] float, entry (n, t) being the sum over h, w of x[n, h, w] * weight[h, w, t].

    Example:
      >>> import jax.numpy as jnp
      >>> inner(jnp.ones([2, 3, 4]), jnp.ones([3, 4, 1])).ravel()
      Array([12., 12.], dtype=float32)
    """
    if isinstance(x, Centred):
        return inner(x.factors, weight) - jnp.einsum("hw,hwt->t", dense(x.centre), weight)[None]
    if isinstance(x, LowRank):
        return jnp.einsum("nhr,nrw,hwt->nt", x.up, x.down, weight, optimize=_weight_first)
    return x.reshape(x.shape[0], -1) @ weight.reshape(-1, weight.shape[-1])


def respond(x: Matrices, *probes: jax.Array) -> list[Matrices]:
    """Responses X P to several sets of probes, by one product; of factors they stay factors.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
      probes: [W, U] float each.

    Returns:
      [N, H, U] for each, of the kind of x.

    Example:
      >>> import jax.numpy as jnp
      >>> s, t = respond(jnp.ones([5, 8, 6]), jnp.ones([6, 3]), jnp.zeros([6, 2]))
      >>> s.shape, t.shape
      ((5, 8, 3), (5, 8, 2))
    """
    ends = np.cumsum([probe.shape[-1] for probe in probes])[:-1]
    together = jnp.concatenate(probes, axis=-1)
    if isinstance(x, Centred):
        factors = respond(x.factors, *probes)
        centre = jnp.split(x.centre @ together, ends, axis=-1)
        return [Centred(f, c) for f, c in zip(factors, centre, strict=True)]  # type: ignore[arg-type]
    if isinstance(x, LowRank):
        down = jnp.split(_rows_times(x.down, together), ends, axis=-1)
        return [LowRank(x.up, part) for part in down]
    return list(jnp.split(_rows_times(x, together), ends, axis=-1))


def respond_again(x: Matrices, response: Matrices) -> Matrices:
    """X S for responses S of every matrix's transpose, of `respond(x.mT, ...)`.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
      response: [N, W, U], of the kind of x.

    Returns:
      [N, H, U], of the kind of x; the factors of a response to factors come from products of the
      size of the rank.

    Example:
      >>> import jax.numpy as jnp
      >>> x = LowRank(up=jnp.ones([5, 8, 2]), down=jnp.ones([5, 2, 6]))
      >>> (response,) = respond(x.mT, jnp.ones([8, 3]))
      >>> again = respond_again(x, response)
      >>> again.shape, float(again.dense()[0, 0, 0]) == 2 * 6 * 2 * 8
      ((5, 8, 3), True)
    """
    if isinstance(x, Centred):
        assert isinstance(response, Centred)
        factors, again = x.factors, respond_again(x.factors, response.factors)
        # (F - C) (S - D) = F S - F D - C S + C D, where F and S are factors, and C D is shared.
        up = jnp.concatenate([factors.up, -(x.centre @ response.factors.up)], axis=-1)
        down = [again.down - factors.down @ response.centre, response.factors.down]
        return Centred(LowRank(up, jnp.concatenate(down, axis=-2)), -(x.centre @ response.centre))
    if isinstance(x, LowRank):
        assert isinstance(response, LowRank)
        return LowRank(x.up, (x.down @ response.up) @ response.down)
    return x @ response


def standardise(x: Matrices) -> jax.Array | LowRank:
    """Every matrix with mean 0 and standard deviation 1 over all of its entries.

        (X - mean) / (std + 1e-8),  std with the n - 1 denominator

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.

    Returns:
      [N, H, W]; of `LowRank` factors of a rank that is one higher, had from them alone.

    Example:
      >>> import jax.numpy as jnp
      >>> standardise(jnp.array([[[1.0, 2.0, 3.0]]]))
      Array([[[-1.,  0.,  1.]]], dtype=float32)
    """
    size = x.shape[-2] * x.shape[-1]
    if not isinstance(x, LowRank):
        x = dense(x)
        x -= x.mean(axis=(-2, -1), keepdims=True)
        squares = (x**2).sum(axis=(-2, -1), keepdims=True)
        return x / _deviation(squares, size)
    # With a = the mean row of up, d = the mean column of down, and what is left of both,
    # X = up' down' + up' d 1' + 1 a' down' + a'd 1 1': orthogonal to each other, the last the mean.
    a_N1R = x.up.mean(axis=-2, keepdims=True)
    d_NR1 = x.down.mean(axis=-1, keepdims=True)
    up, down = x.up - a_N1R, x.down - d_NR1
    rows_N1W = a_N1R @ down
    squares = ((up.mT @ up) * (down @ down.mT)).sum(axis=(-2, -1), keepdims=True)
    squares += x.shape[-1] * ((up @ d_NR1) ** 2).sum(axis=(-2, -1), keepdims=True)
    squares += x.shape[-2] * (rows_N1W**2).sum(axis=(-2, -1), keepdims=True)
    scale = _deviation(squares, size)
    return LowRank(
        jnp.concatenate([up, jnp.ones_like(up[..., :1])], axis=-1),
        jnp.concatenate([x.down, rows_N1W], axis=-2) / scale,
    )


def _deviation(squares: jax.Array, size: int) -> jax.Array:
    # The gradient of the root is infinite at 0: of a matrix that is constant it is taken as 0.
    constant = squares <= 0
    root = jnp.sqrt(jnp.where(constant, 1.0, squares) / max(size - 1, 1))
    return jnp.where(constant, 0.0, root) + _EPSILON


def contract(x: jax.Array | LowRank | Centred, left: jax.Array) -> jax.Array:
    """Xᵀ left of every matrix of a batch, in a form whose gradient is fast on CPU.

    Args:
      x: [N, H, U] float.
      left: [H, V] float.

    Returns:
      [N, U, V] float.

    Example:
      >>> import jax.numpy as jnp
      >>> contract(jnp.ones([5, 8, 3]), jnp.ones([8, 2])).shape
      (5, 3, 2)
    """
    if isinstance(x, Centred):
        return contract(x.factors, left) - (x.centre.mT @ left)[None]
    if isinstance(x, LowRank):
        return x.down.mT @ _rows_times(x.up.mT, left)
    return _rows_times(x.mT, left)


# Contract the weight with one factor first: the other order would multiply the factors out.
_weight_first: list[tuple[int, ...]] = [(0, 2), (0, 1)]
