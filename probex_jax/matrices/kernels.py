"""Matrices as samples: standardised, their inner products, and their weighted sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from probex_jax.matrices.batch import at_least_float32, batch_shape
from probex_jax.matrices.centred import dense
from probex_jax.matrices.low_rank import LowRank
from probex_jax.matrices.products import Matrices, deviation, standardised_factors

# Size of a block of the [N · R, N · R] products that the inner products of factors are sums of.
_BLOCK_BYTES = 256 * 2**20


def standardise(x: Matrices) -> jax.Array | LowRank:
    """Every matrix with mean 0 and standard deviation 1 over its entries.

        (X - mean) / (std + 1e-8),  std with the n - 1 denominator

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.

    Returns:
      [N, H, W] of the same dtype; for `LowRank`, factors of a rank one higher.

    Example:
      >>> import jax.numpy as jnp
      >>> standardise(jnp.array([[[1.0, 2.0, 3.0]]]))
      Array([[[-1.,  0.,  1.]]], dtype=float32)
    """
    if isinstance(x, LowRank):
        return standardised_factors(x)
    exact = at_least_float32(dense(x))
    exact -= exact.mean(axis=(-2, -1), keepdims=True)
    squares = (exact**2).sum(axis=(-2, -1), keepdims=True)
    return (exact / deviation(squares, x.shape)).astype(x.dtype)


def gram(x: Matrices, y: Matrices) -> jax.Array:
    """Inner products of every matrix of one batch with every matrix of another.

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
      y: [M, H, W] float, of the same kind as x.

    Returns:
      [N, M] float; factors are not multiplied out.

    Raises:
      ValueError: if x or y does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> gram(jnp.ones([2, 3, 4]), jnp.ones([1, 3, 4])).ravel()
      Array([12., 12.], dtype=float32)
    """
    for batch in (x, y):
        batch_shape(batch)
    # Linear systems are solved with them: the default precision of accelerators is too low.
    with jax.default_matmul_precision("highest"):
        return _gram(x, y)


def _gram(x: Matrices, y: Matrices) -> jax.Array:
    if not isinstance(x, LowRank):
        x, y = dense(x), dense(y)
        return x.reshape(x.shape[0], -1) @ y.reshape(y.shape[0], -1).T
    assert isinstance(y, LowRank)
    (n, _, rank), (m, _, y_rank) = x.up.shape, y.up.shape
    size = max(1, _BLOCK_BYTES // (4 * rank * m * y_rank))
    up_HMS = jnp.moveaxis(y.up, 0, 1).reshape(y.up.shape[1], -1)
    down_WMS = jnp.moveaxis(y.down, -1, 0).reshape(y.down.shape[2], -1)

    def row(block: LowRank) -> jax.Array:
        # <A B, C D> = sum over both ranks of (Aᵀ C) * (B Dᵀ)
        products = (block.up.mT @ up_HMS) * (block.down @ down_WMS)
        return products.sum(axis=1).reshape(-1, m, y_rank).sum(axis=2)

    return jnp.concatenate([row(x[start : start + size]) for start in range(0, n, size)])


def combination(x: Matrices, weight: jax.Array) -> jax.Array:
    """Weighted sums of matrices: sum over n of weight[n, t] x[n], as [H, W, T].

    Args:
      x: [N, H, W] float, dense, `LowRank` or `Centred`.
      weight: [N, T] float.

    Returns:
      [H, W, T] float.

    Raises:
      ValueError: if x does not have three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> combination(jnp.ones([2, 3, 4]), jnp.ones([2, 1])).shape
      (3, 4, 1)
    """
    with jax.default_matmul_precision("highest"):
        return _combination(x, weight)


def _combination(x: Matrices, weight: jax.Array) -> jax.Array:
    _, rows, columns = batch_shape(x)
    if not isinstance(x, LowRank):
        return (dense(x).reshape(x.shape[0], -1).T @ weight).reshape(rows, columns, -1)

    def one(weight_N: jax.Array) -> jax.Array:
        up = x.up * weight_N[:, None, None]
        return jnp.moveaxis(up, 0, 1).reshape(rows, -1) @ x.down.reshape(-1, columns)

    return jnp.moveaxis(jax.lax.map(one, weight.T), 0, -1)
