"""Bases of linear maps of matrices: the probes and projections of a ProbeX that needs no training.

A solution of ridge regression in dual form has for each output y a matrix of weights,
W_y = sum_n alpha_ny X_n. Most of each is noise, since there are more entries than models; what the
outputs share shows in the leading eigenvectors

    U of sum_y W_yᵀ W_y  [W, U],      V of sum_y (W_y U) (W_y U)ᵀ  [H, V]

(where H < W the other way round), which are the factors of a Tucker decomposition of the weights by
sequentially truncated HOSVD. The responses Vᵀ X U are then few enough to be regressed on anew. A
ProbeX without its ReLU is a linear map with such factors (Proposition 2 of its paper).

References:
  Horwitz et al.: arXiv 2410.13569, section 4.2 and Proposition 2.
  Vannieuwenhoven, Vandebril, Meerbergen: A New Truncation Strategy for the Higher-Order Singular
    Value Decomposition, SIAM J. Sci. Comput. 2012.
  Halko, Martinsson, Tropp: Finding Structure with Randomness, SIAM Review 2011 (section 4.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from probex_jax.encoders import ProbeX
from probex_jax.fitting.strips import Strips
from probex_jax.matrices import Matrices, dense

# Most combinations of the outputs whose weights are taken: their principal ones.
_MOST_OUTPUTS = 128
# Columns beyond those asked for, and iterations, of a search for leading eigenvectors.
_MORE = 32
_ITERATIONS = 8
# Rows up to which the Gram matrix of the longer side costs less than what it saves.
_MOST_ROWS = 4096


class Bases(NamedTuple):
    """Probes and projections, the leading ones first.

    Args:
      probes: [W, U] float32, orthonormal columns.
      projection: [H, V], the same.
    """

    probes: np.ndarray
    projection: np.ndarray

    def cut(self, rank: int) -> Bases:
        """The leading ones."""
        return Bases(self.probes[:, :rank], self.projection[:, :rank])

    def of(self, encoder: ProbeX) -> ProbeX:
        """An encoder with as many probes and projections."""
        return encoder.clone(n_probes=self.probes.shape[1], proj_dim=self.projection.shape[1])


def bases(
    strips: Strips, solutions: Sequence[np.ndarray], probes: int, projections: int
) -> list[Bases]:
    """The bases of each of several solutions.

    Args:
      strips: the matrices of N models.
      solutions: of each the coefficients [N, Y] of the models.
      probes, projections: how many of each; of a side that is shorter, all.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> a, b = rng.normal(size=(6, 2)), rng.normal(size=(9, 2))
      >>> x = np.einsum("nr,hr,wr->nhw", rng.normal(size=(20, 2)), a, b).astype(np.float32)
      >>> (found,) = bases(Strips(lambda: [x], 20, (6, 9)), [rng.normal(size=(20, 3))], 2, 2)
      >>> found.probes.shape, found.projection.shape
      ((9, 2), (6, 2))
      >>> kept = found.projection @ (found.projection.T @ x @ found.probes) @ found.probes.T
      >>> np.allclose(kept, x, atol=1e-4)
      True
    """
    across, along = (projections, probes) if strips.transposed else (probes, projections)
    across, along = min(across, strips.columns), min(along, strips.rows)
    solutions_FNS = np.stack([_principal(each) for each in solutions])
    grams_FWW = strips.sum(partial(_column_grams, solutions_FNS))
    across_FWU = [_leading_of(_symmetric(gram_WW), across) for gram_WW in grams_FWW]
    along_FHV = []
    for across_WU, solution_NS in zip(across_FWU, solutions_FNS, strict=True):
        seen = partial(_combined_responses, across_WU, solution_NS)
        along_FHV.append(_leading_rows(strips.joined(strips.map(seen)), along))
    found = zip(across_FWU, along_FHV, strict=True)
    return [Bases(v, u) if strips.transposed else Bases(u, v) for u, v in found]


def responses(strips: Strips, each: Sequence[Bases]) -> np.ndarray:
    """[F, N, U, V] float32: what several bases of equal sizes take of the models, Uᵀ Xᵀ V."""
    sides = [(b.projection, b.probes) if strips.transposed else b for b in each]
    across_FWU, along_FHV = (np.stack(side) for side in zip(*sides, strict=True))
    along = strips.split(along_FHV)
    found_FNUV = strips.sum(partial(_responses, across_FWU), along, dtype=np.float32)
    return found_FNUV.mT if strips.transposed else found_FNUV


def _principal(solution_NY: np.ndarray) -> np.ndarray:
    """[N, S] float32: combinations of the outputs with the same sum of W_y W_yᵀ, or most of it."""
    with threadpool_limits(1):
        vectors_NS, values_S, _ = np.linalg.svd(solution_NY, full_matrices=False)
    return (vectors_NS * values_S)[:, :_MOST_OUTPUTS].astype(np.float32)


@jax.jit
def _column_grams(solutions_FNS: jax.Array, strip: Matrices) -> jax.Array:
    """[F, W, W]: sums of W_yᵀ W_y over the rows of a strip, as `_upper_gram` has them."""
    x_NhW = dense(strip)

    def one(solution_NS: jax.Array) -> jax.Array:
        weights_KW = jnp.tensordot(solution_NS.T, x_NhW, 1).reshape(-1, x_NhW.shape[-1])
        return _upper_gram(weights_KW)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, solutions_FNS)


@jax.jit
def _upper_gram(x_KW: jax.Array) -> jax.Array:
    """[W, W]: Xᵀ X on and above the diagonal, with five eighths of the work."""
    size = -(-x_KW.shape[1] // 4)
    with jax.default_matmul_precision("highest"):
        blocks = [
            jnp.pad(x_KW[:, at : at + size].T @ x_KW[:, at:], ((0, 0), (at, 0)))
            for at in range(0, x_KW.shape[1], size)
        ]
    return jnp.concatenate(blocks)


@jax.jit
def _combined_responses(across_WU: jax.Array, solution_NS: jax.Array, strip: Matrices) -> jax.Array:
    """[h, S · U]: the rows of W_y U of a strip."""
    with jax.default_matmul_precision("highest"):
        found_hSU = jnp.einsum("nhu,ns->hsu", strip @ across_WU, solution_NS)
    return found_hSU.reshape(found_hSU.shape[0], -1)


@jax.jit
def _responses(across_FWU: jax.Array, strip: Matrices, along_FhV: jax.Array) -> jax.Array:
    """[F, N, U, V]: a strip's part of the responses."""

    def one(both: tuple[jax.Array, jax.Array]) -> jax.Array:
        across_WU, along_hV = both
        return jnp.einsum("nhu,hv->nuv", strip @ across_WU, along_hV)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, (across_FWU, along_FhV))


@jax.jit
def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return left @ right


@jax.jit
def _square_product(a_HK: jax.Array, right_HR: jax.Array) -> jax.Array:
    """[H, R]: A Aᵀ times a few columns."""
    with jax.default_matmul_precision("highest"):
        return a_HK @ (a_HK.T @ right_HR)


def _symmetric(upper_WW: np.ndarray) -> np.ndarray:
    """A matrix of which one half is given, float32."""
    upper_WW = np.triu(upper_WW)
    return np.asarray(upper_WW + np.triu(upper_WW, 1).T, np.float32)


def _leading_rows(a_HK: np.ndarray, rank: int) -> np.ndarray:
    """[H, rank] float32: leading eigenvectors of A Aᵀ, multiplied out where that is little."""
    if len(a_HK) > _MOST_ROWS:
        return _leading(partial(_square_product, jnp.asarray(a_HK)), len(a_HK), rank)
    gram_HH = np.empty([len(a_HK)] * 2, np.float32)
    # In pieces, as `_upper_gram`; but A, which is large, is not copied.
    size = -(-len(a_HK) // 4)
    for row in range(0, len(a_HK), size):
        for column in range(row, len(a_HK), size):
            part = _product(a_HK[row : row + size], a_HK[column : column + size].T)
            gram_HH[row : row + size, column : column + size] = part
            gram_HH[column : column + size, row : row + size] = part.T
    return _leading_of(gram_HH, rank)


def _leading_of(gram_WW: np.ndarray, rank: int) -> np.ndarray:
    """[W, rank] float32: leading eigenvectors of a symmetric matrix >= 0."""
    return _leading(partial(_product, jnp.asarray(gram_WW)), len(gram_WW), rank)


def _leading(product: Callable[[np.ndarray], jax.Array], size: int, rank: int) -> np.ndarray:
    """[W, rank] float32: leading eigenvectors of a symmetric matrix, given its product with others.

    By subspace iteration: exact where eigenvalues fall; of those that are nearly alike some.
    """
    start_WR = np.random.default_rng(0).normal(size=(size, min(size, rank + _MORE)))
    basis_WR = start_WR.astype(np.float32)
    with threadpool_limits(1):  # BLAS's threads wait for each other longer than they work
        for _ in range(_ITERATIONS):
            basis_WR = np.linalg.qr(np.asarray(product(basis_WR)))[0]
        inner_RR = basis_WR.T @ np.asarray(product(basis_WR))
        _, vectors_RR = np.linalg.eigh((inner_RR + inner_RR.T) / 2)
        return np.ascontiguousarray((basis_WR @ vectors_RR[:, ::-1])[:, :rank], np.float32)
