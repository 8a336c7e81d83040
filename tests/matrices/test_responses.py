"""Responses to probes, of one matrix and of several: dense, as factors, minus a centre."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.matrices import (
    Centred,
    LowRank,
    centred,
    contract,
    dense,
    for_each,
    project,
    respond,
    respond_again,
)
from tests.numeric import draw, error

H, W, R, U = 7, 5, 2, 3
FACTORS = LowRank(draw(0, H, R), draw(1, R, W))
KINDS = {
    "dense": draw(2, H, W),
    "factors": FACTORS,
    "dense centre": Centred(FACTORS, draw(3, H, W)),
    "centre of factors": Centred(FACTORS, LowRank(draw(4, H, 3), draw(5, 3, W))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_responses_are_products(kind):
    x, p, q = KINDS[kind], draw(6, W, U), draw(7, W, 2)
    wide = np.asarray(dense(x), np.float64)
    for response, probes in zip(respond(x, p, q), (p, q), strict=True):
        assert isinstance(response, type(x))
        assert error(dense(response), (wide @ probes).T) <= 1e-6
    (response,) = respond(x.mT, draw(8, H, U))
    assert error(dense(respond_again(x, response)), (wide @ wide.T @ draw(8, H, U)).T) <= 1e-6


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_of_several_matrices_each_is_treated_alone(kind, standardise):
    @jax.jit
    def chain(x):
        first, second = respond(x.mT, draw(8, H, U), draw(9, H, 2))
        first = contract(first, draw(10, W, 4), standardised=standardise)
        second = contract(respond_again(x, second), draw(11, H, 4), standardised=standardise)
        return jnp.concatenate([first, second], axis=-2)

    shared = getattr(KINDS[kind], "centre", None)
    several = LowRank(draw(12, 3, H, R), draw(13, 3, R, W))
    several = several.dense() if kind == "dense" else several
    several = several if shared is None else Centred(several, shared)
    for n, actual in enumerate(chain(several)):
        assert error(actual, np.asarray(chain(several[n]), np.float64)) <= 1e-5


def standardised(s):
    return (s - s.mean()) / (s.std(ddof=1) + 1e-8)


# A mean of so many deviations: rounding of the factors themselves is then about 1e-7 of it.
@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0])
def test_factors_are_standardised_as_their_product_is(mean):
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(40, 3)), rng.normal(size=(3, 50))
    up, down = np.column_stack([up, np.ones(40)]), np.vstack([down, np.full(50, mean)])
    factors = LowRank(up.astype(np.float32), down.astype(np.float32))
    expected = standardised(np.float64(factors.up) @ np.float64(factors.down))
    left = draw(1, 50, 4)
    actual = contract(factors, left, standardised=True)
    # Had from squares minus the square of the mean, this would be off by mean² · 1e-7.
    assert error(actual, expected @ np.float64(left)) <= 1e-5 * max(1.0, mean / 10)
    scale = np.linalg.norm(np.asarray(actual)) / np.linalg.norm(expected @ np.float64(left))
    assert abs(scale - 1) <= 1e-5


@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0])
def test_a_dense_response_is_standardised(mean):
    response = draw(0, 40, 50) + mean
    expected = standardised(np.asarray(response, np.float64))
    left = draw(1, 50, 4)
    actual = contract(response, left, standardised=True)
    assert error(actual, expected @ np.float64(left)) <= 1e-5 * max(1.0, mean / 10)


@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["dense", "factors", "dense centre"])
def test_the_gradient_of_a_constant_is_finite(kind, value):
    x = LowRank(jnp.full([H, R], value), jnp.ones([R, W]))
    x = {"dense": x.dense(), "factors": x, "dense centre": Centred(x, jnp.ones([H, W]))}[kind]

    def total(x):
        (response,) = respond(x, jnp.ones([W, U]))
        return jnp.sum(contract(response, jnp.ones([H, 2]), standardised=True))

    value, gradient = jax.jit(jax.value_and_grad(total))(x)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("centre", ["dense", "factors"])
def test_centred_behaves_like_the_difference(centre):
    factors = LowRank(draw(0, 4, H, R), draw(1, 4, R, W))
    shared = KINDS["dense"] if centre == "dense" else FACTORS
    x = centred(factors, shared)
    wide = np.asarray(factors.dense(), np.float64) - np.asarray(dense(shared), np.float64)
    assert isinstance(x, Centred)
    assert (x.shape, x.ndim, x.dtype) == ((4, H, W), 3, jnp.float32)
    assert error(x.dense(), wide) <= 1e-6
    assert error(centred(factors.dense(), shared), wide) <= 1e-6
    assert error(x @ draw(2, W, U), wide @ np.asarray(draw(2, W, U))) <= 1e-6
    assert error(x.mT.dense(), wide.swapaxes(1, 2)) <= 1e-6
    assert error((x / 3.0).dense(), wide / 3) <= 1e-6
    assert error(x[np.array([2, 0])].dense(), wide[[2, 0]]) <= 1e-6
    left, right = draw(3, H, 2), draw(4, W, U)
    assert error(project(x, left, right), np.asarray(left).T @ wide @ np.asarray(right)) <= 1e-5
    sums = for_each(lambda x: (x @ jnp.ones([W, 1])).sum(axis=(-2, -1)), x)
    np.testing.assert_allclose(sums, wide.sum((1, 2)), rtol=1e-5, atol=1e-5)
