"""The products that encoders are written with, each in the cheapest order for the shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.matrices.batch import (
    at_least_float32,
    batch_shape,
    may_be_sharded,
    with_leading_axes,
)
from probex_jax.matrices.centred import Centred, dense
from probex_jax.matrices.low_rank import LowRank

Matrices = jax.Array | LowRank | Centred

# Speed of the left-first order of a dense projection relative to right-first, at equal FLOPs: XLA
# on CPU has to contract the middle axis (experiments/benchmarks/forms.py).
_LEFT_FIRST_RATE = 0.5
# Added to a standard deviation that is divided by; the published value.
_EPSILON = 1e-8
# The axes of one matrix.
_ENTRIES = (-2, -1)


def project(x: Matrices, left: jax.Array, right: jax.Array) -> jax.Array:
    """Both-sided product leftᵀ X right of every matrix of a batch.

    Uses the cheapest order for the shapes, and never multiplies factors out.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
      left: [H, V] float.
      right: [W, U] float.

    Returns:
      [N, V, U] float, sharded over the models as x is.

    Raises:
      ValueError: if x does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(24.0).reshape(2, 3, 4)
      >>> project(x, left=jnp.ones([3, 1]), right=jnp.ones([4, 1])).ravel()
      Array([ 66., 210.], dtype=float32)
    """
    _, rows, columns = batch_shape(x)
    if isinstance(x, Centred):
        return project(x.factors, left, right) - (left.T @ (x.centre @ right))[None]
    if isinstance(x, LowRank):
        return _project_factors(x, left, right)
    n_left, n_right = left.shape[-1], right.shape[-1]
    right_first = rows * n_right * (columns + n_left)
    left_first = columns * n_left * (rows + n_right)
    if left_first < _LEFT_FIRST_RATE * right_first:
        return jnp.einsum("nhw,hv->nvw", x, left) @ right
    if may_be_sharded(x):
        # Slower on one CPU, but the models keep their own axis. The form below merges it with the
        # probes, a sharding that XLA cannot express: it gathers the batch.
        return jnp.moveaxis(_rows_times(_columns_times(right, x), left), 0, 2)
    # With the probes as the first axis, each product, and each of the gradient's, is one large
    # product of contiguous rows, and only the small result is transposed. A CPU is faster with that
    # than with a contraction of the middle axis (experiments/benchmarks/forms.py), which XLA would
    # make again of arrays with three axes.
    response_UxNH = _columns_times(right, x.reshape(-1, columns))
    projected_UNxV = _rows_times(response_UxNH.reshape(-1, rows), left)
    return jnp.moveaxis(projected_UNxV.reshape(n_right, -1, n_left), 0, 2)


def _project_factors(x: LowRank, left: jax.Array, right: jax.Array) -> jax.Array:
    (rows, columns), rank = x.shape[-2:], x.up.shape[-1]
    n_left, n_right = left.shape[-1], right.shape[-1]
    both = rank * (rows * n_left + columns * n_right + n_left * n_right)
    right_first = n_right * (rank * (columns + rows) + rows * n_left)
    left_first = n_left * (rank * (columns + rows) + columns * n_right)
    cheapest = min(both, right_first, left_first)
    if cheapest == both:
        return _rows_times(x.up.mT, left).mT @ _rows_times(x.down, right)
    if cheapest == right_first:
        return _rows_times((x.up @ _rows_times(x.down, right)).mT, left).mT
    return _rows_times(_rows_times(x.up.mT, left).mT @ x.down, right)


def _rows_times(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight, in a form whose gradient is faster on CPU (experiments/benchmarks/forms.py).

    The barrier keeps the transposed weight a separate tensor, so its gradient is one product of
    contiguous rows, (cotangent)ᵀ x, not a contraction of the leading axes of both.
    """
    rows = jax.lax.optimization_barrier(weight.T)
    return jax.lax.dot_general(x, rows, (((x.ndim - 1,), (1,)), ((), ())))


def _columns_times(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """weightᵀ rowsᵀ, [K, U] and [..., K] -> [U, ...]; see `_rows_times`."""
    columns = jax.lax.optimization_barrier(weight.T)
    return jax.lax.dot_general(columns, rows, (((1,), (rows.ndim - 1,)), ((), ())))


def inner(x: Matrices, weight: jax.Array) -> jax.Array:
    """Inner products of every matrix with every slice of a weight tensor.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
      weight: [H, W, T] float.

    Returns:
      [N, T] float, entry (n, t) being the sum over h, w of x[n, h, w] * weight[h, w, t].

    Raises:
      ValueError: if x does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> inner(jnp.ones([2, 3, 4]), jnp.ones([3, 4, 1])).ravel()
      Array([12., 12.], dtype=float32)
    """
    n_models, _, _ = batch_shape(x)
    if isinstance(x, Centred):
        return inner(x.factors, weight) - jnp.einsum("hw,hwt->t", dense(x.centre), weight)[None]
    if isinstance(x, LowRank):
        return jnp.einsum("nhr,nrw,hwt->nt", x.up, x.down, weight, optimize=_weight_first)
    return x.reshape(n_models, -1) @ weight.reshape(-1, weight.shape[-1])


def respond(x: Matrices, *probes: jax.Array) -> list[Matrices]:
    """Responses (X P)ᵀ to several sets of probes, by one product. Those of factors are factors.

    Args:
      x: [..., H, W] float, dense, `LowRank` or `Centred`.
      probes: [W, U] float each.

    Returns:
      [..., U, H] for each set, of the same kind as x.

    Example:
      >>> import jax.numpy as jnp
      >>> s, t = respond(jnp.ones([8, 6]), jnp.ones([6, 3]), jnp.zeros([6, 2]))
      >>> s.shape, t.shape
      ((3, 8), (2, 8))
    """
    if isinstance(x, Centred):
        factors, centre = respond(x.factors, *probes), respond(x.centre, *probes)
        return [Centred(f, dense(c)) for f, c in zip(factors, centre, strict=True)]  # type: ignore[arg-type]
    together = jnp.concatenate(probes, axis=-1)
    ends = np.cumsum([probe.shape[-1] for probe in probes])[:-1]
    if isinstance(x, LowRank):
        parts = jnp.split(_rows_times(x.down, together).mT, ends, axis=-2)
        return [LowRank(part, x.up.mT) for part in parts]
    rows = jax.lax.optimization_barrier(together.T)
    return list(jnp.split(rows @ x.mT, ends, axis=-2))


def respond_again(x: Matrices, response: Matrices) -> Matrices:
    """(X S)ᵀ for a response Sᵀ of the transpose, of `respond(x.mT, ...)`.

    Args:
      x: [..., H, W] float, dense, `LowRank` or `Centred`.
      response: [..., U, W], of the same kind as x.

    Returns:
      [..., U, H], of the same kind as x; factors cost only products of the size of the rank.

    Example:
      >>> import jax.numpy as jnp
      >>> x = LowRank(up=jnp.ones([8, 2]), down=jnp.ones([2, 6]))
      >>> (response,) = respond(x.mT, jnp.ones([8, 3]))
      >>> again = respond_again(x, response)
      >>> again.shape, float(again.dense()[0, 0]) == 2 * 6 * 2 * 8
      ((3, 8), True)
    """
    if isinstance(x, Centred):
        assert isinstance(response, Centred)
        # (R - D) (F - C)ᵀ = R Fᵀ - D Fᵀ - R Cᵀ + D Cᵀ: factors, but for the last, which is shared.
        again, shared = _factors_again(x.factors, response.factors), response.centre
        up = [again.up - shared @ x.factors.down.mT, response.factors.up]
        down = [again.down, -(x.centre @ response.factors.down.mT).mT]
        factors = LowRank(jnp.concatenate(up, axis=-1), jnp.concatenate(down, axis=-2))
        return Centred(factors, -(x.centre @ shared.T).T)
    if isinstance(x, LowRank):
        assert isinstance(response, LowRank)
        return _factors_again(x, response)
    return response @ x.mT


def _factors_again(x: LowRank, response: LowRank) -> LowRank:
    return LowRank(response.up @ (response.down @ x.down.mT), x.up.mT)


def contract(response: Matrices, left: jax.Array, *, standardised: bool = False) -> jax.Array:
    """Projects responses: Sᵀ left for a response Sᵀ.

    If `standardised`, S is replaced by (S - mean) / (std + 1e-8), with mean and standard deviation
    (n - 1 denominator) over all entries of one model.

    Args:
      response: [..., U, H] float, dense, `LowRank` or `Centred`.
      left: [H, V] float.
      standardised: whether the responses of each model are standardised first.

    Returns:
      [..., U, V] float.

    Example:
      >>> import jax.numpy as jnp
      >>> contract(jnp.array([[1.0, 2.0, 3.0]]), jnp.eye(3), standardised=True)
      Array([[-1.,  0.,  1.]], dtype=float32)
    """
    if isinstance(response, Centred):
        if not standardised:
            product = contract(response.factors, left)
            return product - with_leading_axes(response.centre @ left, product.ndim)
        response = dense(response)
    if isinstance(response, LowRank):
        response = standardised_factors(response) if standardised else response
        return response.up @ _rows_times(response.down, left)
    product = response @ left
    if not standardised:
        return product
    # After the product, which is smaller than the response.
    exact = at_least_float32(response)
    mean = exact.mean(axis=_ENTRIES, keepdims=True)
    squares = ((exact - mean) ** 2).sum(axis=_ENTRIES, keepdims=True)
    mean_1V = mean * with_leading_axes(at_least_float32(left).sum(axis=0), product.ndim)
    return ((product - mean_1V) / deviation(squares, response.shape)).astype(product.dtype)


def standardised_factors(x: LowRank) -> LowRank:
    """`standardise` of factors, from the factors alone: their rank grows by one."""
    # With d = the mean column of down, X = up (down - d 1') + (up d) 1': orthogonal to each other.
    # The down of a response does not depend on probes: undivided, it needs no gradient.
    up, down = at_least_float32(x.up), at_least_float32(x.down)
    d_R1 = down.mean(axis=-1, keepdims=True)
    down -= d_R1
    mean_H1 = up @ d_R1
    mean_H1 -= mean_H1.mean(axis=_ENTRIES, keepdims=True)
    squares = (up @ (down @ down.mT) * up).sum(axis=_ENTRIES, keepdims=True)
    squares += x.shape[-1] * (mean_H1**2).sum(axis=_ENTRIES, keepdims=True)
    up = jnp.concatenate([up, mean_H1], axis=-1) / deviation(squares, x.shape)
    down = jnp.concatenate([down, jnp.ones_like(down[..., :1, :])], axis=-2)
    return LowRank(up.astype(x.dtype), down.astype(x.dtype))


def deviation(squares: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard deviation, plus 1e-8, of matrices [..., H, W].

    Args:
      squares: sums of the squared distances from the mean of each.
      shape: of the matrices.
    """
    # The gradient of the root is infinite at 0; for a constant matrix it is defined as 0.
    constant = squares <= 0
    root = jnp.sqrt(jnp.where(constant, 1.0, squares) / max(shape[-2] * shape[-1] - 1, 1))
    return jnp.where(constant, 0.0, root) + _EPSILON


# Contract the weight with one factor first: the other order would multiply the factors out.
_weight_first: list[tuple[int, ...]] = [(0, 2), (0, 1)]
