import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.matrices import LowRank, inner, project


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    error = np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)
    assert error <= tolerance


# Rows, columns, projections, probes: square, and shapes where each order of products wins.
SHAPES = [(6, 6, 3, 4), (40, 5, 2, 16), (5, 40, 16, 2)]


@pytest.mark.parametrize(("h", "w", "v", "u"), SHAPES)
@pytest.mark.parametrize("low_rank", [False, True])
def test_project_is_the_product_from_both_sides(h, w, v, u, low_rank):
    x = LowRank(draw(0, 3, h, 2), draw(1, 3, 2, w)) if low_rank else draw(0, 3, h, w)
    left, right = draw(2, h, v), draw(3, w, u)
    dense = np.asarray(x.dense() if low_rank else x, np.float64)
    close(project(x, left, right), np.einsum("hv,nhw,wu->nvu", left, dense, right))


@pytest.mark.parametrize("low_rank", [False, True])
def test_inner_is_the_sum_of_products(low_rank):
    x = LowRank(draw(0, 3, 7, 2), draw(1, 3, 2, 5)) if low_rank else draw(0, 3, 7, 5)
    weight = draw(2, 7, 5, 4)
    dense = np.asarray(x.dense() if low_rank else x, np.float64)
    close(inner(x, weight), np.einsum("nhw,hwt->nt", dense, weight))


def test_low_rank_behaves_like_its_product():
    x = LowRank(jnp.asarray(draw(0, 4, 6, 2)), jnp.asarray(draw(1, 4, 2, 5)))
    dense = np.asarray(x.dense(), np.float64)
    assert x.shape == dense.shape
    assert x.ndim == 3
    assert x.dtype == jnp.float32
    right = draw(2, 5, 3)
    close(x @ right, dense @ right)
    close(x.mT.dense(), dense.swapaxes(-1, -2))
    close(x[np.array([2, 0])].dense(), dense[[2, 0]])


def test_low_rank_passes_through_transformations():
    x = LowRank(jnp.asarray(draw(0, 4, 6, 2)), jnp.asarray(draw(1, 4, 2, 5)))
    total = jax.jit(lambda x: jnp.sum(x @ jnp.ones([5, 1])))
    gradient = jax.grad(total)(x)
    assert isinstance(gradient, LowRank)
    close(gradient.up, np.einsum("nhw,nrw->nhr", np.ones([4, 6, 5]), x.down))


def test_low_rank_is_never_multiplied_out():
    x = LowRank(jnp.ones([2, 300, 3]), jnp.ones([2, 3, 200]))
    for function in (
        lambda x: x @ jnp.ones([200, 4]),
        lambda x: project(x, jnp.ones([300, 4]), jnp.ones([200, 4])),
        lambda x: inner(x, jnp.ones([300, 200, 4])),
    ):
        shapes = [v.aval.shape for e in jax.make_jaxpr(function)(x).eqns for v in e.outvars]
        assert not any(shape[-2:] == (300, 200) and shape[0] == 2 for shape in shapes if shape)
