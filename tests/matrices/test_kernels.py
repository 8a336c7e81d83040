"""Matrices as samples: standardised, their inner products and their weighted sums, by NumPy."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.encoders import Dense
from probex_jax.matrices import Centred, LowRank, combination, dense, gram, kernels, standardise
from tests.numeric import draw, error

H, W = 7, 5
HIGHEST = jax.lax.Precision.HIGHEST


def wide(x):
    """Multiplied out, in float64."""
    if isinstance(x, Centred):
        return wide(x.factors) - wide(x.centre)
    if isinstance(x, LowRank):
        return np.asarray(x.up, np.float64) @ np.asarray(x.down, np.float64)
    return np.asarray(x, np.float64)


def sample(kind, n, seed=0, rank=2):
    if kind == "dense":
        return draw(seed, n, H, W)
    factors = LowRank(draw(seed, n, H, rank), draw(seed + 1, n, rank, W))
    centres = {
        "dense centre": draw(8, H, W),
        "centre of factors": LowRank(draw(8, H, 3), draw(9, 3, W)),
    }
    return factors if kind == "factors" else Centred(factors, centres[kind])


KINDS = ["dense", "factors", "dense centre", "centre of factors"]
# Bytes that a block may take: that of one model, of two or three of four, of all.
BLOCKS = [1, 4 * 2 * 3 * 3 * 2, 2**20]


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_gram_holds_every_inner_product(kind, block_bytes, monkeypatch):
    """The ranks of the two batches differ, as those of a store and of other models may."""
    monkeypatch.setattr(kernels, "_BLOCK_BYTES", block_bytes)
    x, y = sample(kind, 5), sample(kind, 3, seed=4, rank=3)
    expected = np.einsum("nhw,mhw->nm", wide(x), wide(y))
    assert gram(x, y).shape == (5, 3)
    assert error(gram(x, y), expected) <= 1e-6
    assert error(gram(y, x), expected.T) <= 1e-6


def test_gram_of_factors_makes_no_more_than_a_block(monkeypatch):
    """Neither the products of all pairs of factors nor the matrices are made."""
    n, rank = 400, 3
    monkeypatch.setattr(kernels, "_BLOCK_BYTES", 4 * rank * n * rank * 40)
    x = LowRank(jnp.ones([n, 90, rank]), jnp.ones([n, rank, 70]))
    made = jax.make_jaxpr(gram)(x, x)
    largest = max(out.aval.size for equation in made.eqns for out in equation.outvars)
    assert largest == n * n, "more than the result"


def products(jaxpr):
    """Every matrix product of a program, of the programs inside it, too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inside in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inside)


@pytest.mark.parametrize("kind", ["dense", "factors"])
def test_sums_are_as_exact_as_float32(kind):
    """On accelerators products have some three digits unless they are asked for more."""
    x, weight = sample(kind, 5), draw(20, 5, 4)
    for made in (jax.make_jaxpr(gram)(x, x), jax.make_jaxpr(combination)(x, weight)):
        found = [equation.params["precision"] for equation in products(made.jaxpr)]
        assert found
        assert all(p in (HIGHEST, (HIGHEST, HIGHEST)) for p in found)


@pytest.mark.parametrize("kind", KINDS)
def test_combination_is_the_weighted_sum(kind):
    x, weight = sample(kind, 5), draw(20, 5, 4)
    expected = np.einsum("nhw,nt->hwt", wide(x), wide(weight))
    assert combination(x, weight).shape == (H, W, 4)
    assert error(combination(x, weight), expected) <= 1e-6


def standardised(x):
    centre = x.mean(axis=(1, 2), keepdims=True)
    return (x - centre) / (x.std(axis=(1, 2), keepdims=True, ddof=1) + 1e-8)


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_standardised_by_itself(kind, mean):
    x = sample(kind, 5)
    factors = x.factors if isinstance(x, Centred) else x
    if isinstance(factors, LowRank):  # one more pair of factors, of a constant
        up = jnp.concatenate([factors.up, jnp.ones([5, H, 1])], axis=2)
        down = jnp.concatenate([factors.down, jnp.full([5, 1, W], mean)], axis=1)
        factors = LowRank(up, down)
        x = Centred(factors, x.centre) if isinstance(x, Centred) else factors
    else:
        x = x + mean
    found = standardise(x)
    assert isinstance(found, LowRank) == (kind == "factors")
    assert error(wide(dense(found)), standardised(wide(x))) <= 1e-6 * max(1.0, mean)
    if kind == "factors":
        assert found.up.shape[-1] == factors.up.shape[-1] + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_encoder_standardises_what_it_reads(kind):
    x, encoder = sample(kind, 5), Dense(3, standardise=True)
    params = jax.jit(encoder.init)(jax.random.key(0), x)["params"]
    expected = np.einsum("nhw,hwt->nt", standardised(wide(x)), wide(params["weight"]))
    expected += np.asarray(params["bias"], np.float64)
    assert error(jax.jit(encoder.apply)({"params": params}, x), expected) <= 1e-5
    plain = jax.jit(Dense(3).apply)({"params": params}, x)
    assert error(plain, expected) > 0.1, "the two could not be told apart"


@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["dense", "factors"])
def test_a_constant_matrix_becomes_zero(kind, value):
    x = LowRank(jnp.full([2, H, 1], value), jnp.ones([2, 1, W]))
    found = standardise(x if kind == "factors" else x.dense())
    np.testing.assert_array_equal(dense(found), np.zeros([2, H, W]))
