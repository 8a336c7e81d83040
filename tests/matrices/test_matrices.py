import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.matrices import Centred, LowRank, inner, project, stack


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


# Rows, columns, rank, projections, probes, and the order of products that is the cheapest.
ORDERS = [
    (32, 24, 4, 16, 16, "both"),
    (64, 48, 16, 40, 4, "right"),
    (48, 64, 16, 4, 40, "left"),
    (10, 12, 20, 16, 16, "right"),
]


def multiplications(order, h, w, r, v, u):
    """Counted one product after the other, independently of the formula."""
    if order == "both":
        return v * h * r + r * w * u + v * r * u
    if order == "right":
        return r * w * u + h * r * u + v * h * u
    return v * h * r + v * r * w + v * w * u


@pytest.mark.parametrize(("h", "w", "r", "v", "u", "order"), ORDERS)
def test_factors_are_multiplied_in_the_cheapest_order(h, w, r, v, u, order):
    costs = {o: multiplications(o, h, w, r, v, u) for o in ("both", "right", "left")}
    assert min(costs, key=costs.get) == order
    x = LowRank(jnp.asarray(draw(0, 3, h, r)), jnp.asarray(draw(1, 3, r, w)))
    left, right = jnp.asarray(draw(2, h, v)), jnp.asarray(draw(3, w, u))
    counted = sum(products(jax.make_jaxpr(project)(x, left, right)))
    assert counted == 3 * costs[order]


def products(jaxpr):
    """Multiplications of every matrix product in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            yield equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))


@pytest.mark.parametrize(("h", "w", "r", "v", "u", "order"), ORDERS)
def test_factors_and_product_have_the_same_gradients(h, w, r, v, u, order):
    x = LowRank(jnp.asarray(draw(0, 3, h, r)), jnp.asarray(draw(1, 3, r, w)))
    both_sides = {"left": jnp.asarray(draw(2, h, v)), "right": jnp.asarray(draw(3, w, u))}
    weight = draw(4, 3, v, u)

    def total(sides, x):
        return jnp.sum(weight * jax.nn.relu(project(x, **sides)))

    actual, expected = jax.grad(total)(both_sides, x), jax.grad(total)(both_sides, x.dense())
    for name in both_sides:
        close(actual[name], np.asarray(expected[name], np.float64), 1e-4)


def test_stacking_fills_up_ranks_and_changes_no_product():
    matrices = [LowRank(draw(r, 6, r), draw(r + 9, r, 5)) for r in (1, 3, 2)]
    for rank, expected in ((None, 3), (7, 7)):
        x = stack(matrices, rank)
        assert x.up.shape == (3, 6, expected)
        assert x.down.shape == (3, expected, 5)
        for n, matrix in enumerate(matrices):
            np.testing.assert_array_equal(x.dense()[n], matrix.dense())
    with pytest.raises(ValueError, match="some matrices are dense"):
        stack([matrices[0], np.ones([6, 5])])
    with pytest.raises(ValueError, match=r"rank 3.*rank 2"):
        stack(matrices, 2)


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


@pytest.mark.parametrize("kind", ["factors", "centred"])
def test_factors_are_good_pytrees(kind):
    x = LowRank(jnp.asarray(draw(0, 4, 6, 2)), jnp.asarray(draw(1, 4, 2, 5)))
    x = x if kind == "factors" else Centred(x, draw(2, 6, 5))
    name = type(x).__name__
    with pytest.raises(TypeError, match=name):
        np.asarray(x)
    with pytest.raises(TypeError, match=name):
        np.stack([x, x])
    assert (len(x), len(x[0]), x.ndim, x.dtype) == (4, 6, 3, jnp.float32)
    models = list(x)
    assert len(models) == 4
    np.testing.assert_array_equal(models[2].dense(), x[2].dense())
    for index in ((0, 1), (slice(None), 0), (..., 0)):
        with pytest.raises(IndexError, match=name):
            x[index]
    with pytest.raises(IndexError, match=name):
        x[0][0]
    assert x[0][None].shape == (1, 6, 5)
    assert name in repr(x)
    assert "float32[4,6,2]" in repr(x)
    assert len(repr(x)) < 100
    # What transformations put in the place of arrays prints, too.
    assert "None" in repr(jax.tree.map(lambda leaf: "None", x))
    assert "float32[4,6,2]" in repr(jax.eval_shape(lambda x: x, x))


def test_stacking_keeps_arrays_where_they_are():
    on_host = [LowRank(draw(r, 6, r), draw(r + 9, r, 5)) for r in (1, 2)]
    on_device = jax.tree.map(jnp.asarray, on_host)
    for matrices, kind in ((on_host, np.ndarray), (on_device, jax.Array)):
        assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(stack(matrices)))
        assert isinstance(stack([matrix.dense() for matrix in matrices]), kind)
    traced = jax.jit(stack)(on_host)
    for actual, expected in zip(
        jax.tree.leaves(traced), jax.tree.leaves(stack(on_host)), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    for wrong in ([], [np.ones([6, 5]), np.ones([5, 6])]):
        with pytest.raises(ValueError, match="array"):
            stack(wrong)


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
