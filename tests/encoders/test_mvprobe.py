"""MVProbe against an independent float64 reference, dense, as factors and minus a centre."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.encoders import Dense, MVProbe, ProbeX
from probex_jax.encoders.mvprobe import BRANCHES
from probex_jax.matrices import Centred, LowRank
from tests.numeric import draw, error, start, value_and_gradient

N, H, W, R, U, V, T = 3, 6, 5, 2, 3, 4, 2
SETTINGS = [
    {},
    *({"branches": (name,)} for name in BRANCHES),
    {"branches": ("xxtu", "xtu")},
    {"standardise": False},
    {"relu": False},
]


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)


def reference(params, x, branches=BRANCHES, standardise=True, relu=True):
    """Model by model and probe by probe, as the paper writes it."""
    bias = params["encoder"]["dense"]["bias"]
    kernel = params["encoder"]["dense"]["kernel"].reshape(len(branches), U, V, T)
    e = np.tile(bias, (len(x), 1))
    for n, model in enumerate(x):
        maps = {
            "xu": model,
            "xxtu": model @ model.T,
            "xtu": model.T,
            "xtxu": model.T @ model,
        }
        for b, name in enumerate(branches):
            probes, projection = params[f"probes_{name}"], params[f"projection_{name}"]
            s = np.stack([maps[name] @ probe for probe in probes.T], axis=1)
            if standardise:
                s = (s - s.mean()) / (s.std(ddof=1) + 1e-8)
            for probe in range(U):
                projected = projection.T @ s[:, probe]
                e[n] += kernel[b, probe].T @ (np.maximum(projected, 0) if relu else projected)
    return e


def numeric_gradient(function, params, step=1e-5):
    """Central differences of a float64 function, entry by entry."""
    gradients = jax.tree.map(np.zeros_like, params)
    for leaf, gradient in zip(jax.tree.leaves(params), jax.tree.leaves(gradients), strict=True):
        for index in np.ndindex(leaf.shape):
            kept = leaf[index]
            leaf[index] = kept + step
            above = function(params)
            leaf[index] = kept - step
            gradient[index] = (above - function(params)) / (2 * step)
            leaf[index] = kept
    return gradients


def assert_same(actual, expected, tolerance):
    paths = jax.tree_util.tree_leaves_with_path(actual)
    for (path, leaf), wanted in zip(paths, jax.tree.leaves(expected), strict=True):
        assert error(leaf, wanted) <= tolerance, path


@pytest.mark.parametrize("settings", SETTINGS)
def test_forward_and_gradient_agree_with_float64(settings):
    encoder, x = MVProbe(U, V, T, **settings), draw(0, N, H, W)
    params = start(encoder, x)
    value, gradient = value_and_gradient(encoder, params, x)
    p, mix, x = in_float64((params, draw(2, N, T), x))
    assert error(value, reference(p, x, **settings)) <= 1e-5
    expected = numeric_gradient(lambda p: np.sum(mix * reference(p, x, **settings)), p)
    assert_same(gradient, expected, 1e-5)


def sample(kind, h=H, w=W, r=R):
    factors = LowRank(draw(3, N, h, r), draw(4, N, r, w))
    if kind == "factors":
        return factors
    if kind == "padded factors":
        return LowRank(
            jnp.pad(factors.up, ((0, 0), (0, 0), (0, 2))),
            jnp.pad(factors.down, ((0, 0), (0, 2), (0, 0))),
        )
    centre = LowRank(draw(5, h, r + 1), draw(6, r + 1, w))
    return Centred(factors, centre if kind == "centre of factors" else centre.dense())


KINDS = ("factors", "dense centre", "centre of factors")
ENCODERS = {
    "probex": ProbeX(U, V, T),
    "dense": Dense(T),
    "mvprobe": MVProbe(U, V, T),
    "mvprobe as it is": MVProbe(U, V, T, standardise=False),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_factors_and_centres_agree_with_what_they_multiply_out_to(name):
    encoder = ENCODERS[name]
    for kind in KINDS:
        x = sample(kind)
        params = start(encoder, x)
        value, gradient = value_and_gradient(encoder, params, x)
        expected, expected_gradient = value_and_gradient(encoder, params, x.dense())
        assert error(value, expected) <= 1e-5, kind
        assert_same(gradient, expected_gradient, 1e-5)


def test_padding_ranks_with_zeros_changes_nothing():
    encoder, x = MVProbe(U, V, T), sample("factors")
    params = start(encoder, x)
    expected, expected_gradient = value_and_gradient(encoder, params, x)
    value, gradient = value_and_gradient(encoder, params, sample("padded factors"))
    assert error(value, expected) <= 1e-6
    assert_same(gradient, expected_gradient, 1e-6)


def equations(jaxpr):
    """Every equation of a program and of those inside it, in the form for a CPU."""
    for equation in jaxpr.eqns:
        yield equation
        choices = equation.params.get("branches_platforms")
        of_cpu = choices and {"": equation.params["branches"][choices.index(("cpu",))]}
        for inside in jax.extend.core.jaxprs_in_params(of_cpu or equation.params):
            yield from equations(inside)


def program(function, *arguments):
    return list(equations(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENCODERS)
def test_factors_are_never_multiplied_out(name, kind):
    h, w = 90, 70
    encoder, x = ENCODERS[name], sample(kind, h, w)
    params = jax.eval_shape(encoder.init, jax.random.key(1), x)["params"]

    def largest(given):
        def total(params, x):
            return jnp.sum(encoder.apply({"params": params}, given(x)))

        found = program(jax.value_and_grad(total), params, x)
        return max(out.aval.size for equation in found for out in equation.outvars)

    assert largest(type(x).dense) >= N * h * w
    # A gradient or a centre may have the size of one matrix, not of all.
    assert largest(lambda x: x) < N * h * w


def products(encoder, x):
    """Shapes of the results of the matrix products of a forward pass, without models."""
    variables = jax.eval_shape(encoder.init, jax.random.key(1), x)
    found = program(encoder.apply, variables, x)
    return [e.outvars[0].aval.shape for e in found if e.primitive.name == "dot_general"]


def test_two_branches_share_one_product():
    x = draw(0, N, H, W)
    shapes = products(MVProbe(U, V, T), x)
    assert sorted(shapes) == sorted(
        # X [U Z] and Xᵀ [Q W]; X times one half and Xᵀ times the other; projections; the encoder.
        [(2 * U, H), (2 * U, W), (U, H), (U, W), *[(U, V)] * 4, (N, T)]
    )


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        (("xu",), [(U, H)]),
        (("xtu",), [(U, W)]),
        (("xxtu",), [(U, W), (U, H)]),
        (("xtxu",), [(U, H), (U, W)]),
        (("xu", "xtu"), [(U, H), (U, W)]),
    ],
)
def test_a_branch_that_is_off_is_absent(branches, expected):
    x, encoder = draw(0, N, H, W), MVProbe(U, V, T, branches=branches)
    params = start(encoder, x)
    kinds = ("probes", "projection")
    assert params.keys() == {f"{k}_{b}" for k in kinds for b in branches} | {"encoder"}
    assert params["encoder"]["dense"]["kernel"].shape == (len(branches) * U * V, T)
    expected = [*expected, *[(U, V)] * len(branches), (N, T)]
    assert sorted(products(encoder, x)) == sorted(expected)


def test_one_linear_branch_is_probex():
    x = draw(0, N, H, W)
    probex, one = ProbeX(U, V, T), MVProbe(U, V, T, branches=("xu",), standardise=False)
    params = start(probex, x)
    renamed = {
        "probes_xu": params["probes"],
        "projection_xu": params["projection"],
        "encoder": params["encoder"],
    }
    expected, expected_gradient = value_and_gradient(probex, params, x)
    value, gradient = value_and_gradient(one, renamed, x)
    assert error(value, expected) <= 1e-6
    assert error(gradient["probes_xu"], expected_gradient["probes"]) <= 1e-6
    assert error(gradient["projection_xu"], expected_gradient["projection"]) <= 1e-6


def test_initialisation_is_uniform_in_the_bounds_of_the_reference():
    params = MVProbe(64, 25, 8).init(jax.random.key(0), jnp.zeros([1, 100, 36]))["params"]
    bounds = {
        **{f"['probes_{name}']": 64**-0.5 for name in BRANCHES},
        **{f"['projection_{name}']": 100**-0.5 for name in ("xu", "xxtu")},
        **{f"['projection_{name}']": 36**-0.5 for name in ("xtu", "xtxu")},
        "['encoder']['dense']['kernel']": (4 * 64 * 25) ** -0.5,
        "['encoder']['dense']['bias']": (4 * 64 * 25) ** -0.5,
    }
    found = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(params)}
    assert found.keys() == bounds.keys()
    for name, values in found.items():
        assert 0.7 * bounds[name] < np.abs(values).max() <= bounds[name], name


@pytest.mark.parametrize("of", [lambda x: x, LowRank.dense], ids=["factors", "dense"])
@pytest.mark.parametrize("zero", [0.0, 1.0], ids=["zero", "constant"])
def test_the_gradient_of_a_constant_matrix_is_finite(of, zero):
    x = of(LowRank(jnp.full([N, H, R], zero), jnp.full([N, R, W], zero)))
    encoder = MVProbe(U, V, T)
    params = start(encoder, x)
    value, gradient = value_and_gradient(encoder, params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


def on_one_device(function):
    mesh = jax.make_mesh((1,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("m")
    return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split)


TRANSFORMATIONS = {
    "vmap": lambda function: lambda x: jax.vmap(function)(x[:, None])[:, 0],
    "scan": lambda function: lambda x: jax.lax.map(function, x[:, None])[:, 0],
    "checkpoint": jax.checkpoint,
    "shard_map": on_one_device,
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("prepared", [pytest.param(False, marks=pytest.mark.parity), True])
def test_transformations_change_no_value_or_gradient(name, prepared):
    """Those that the loop over models, and the choice of it, have to pass through."""
    encoder, x = MVProbe(U, V, T), draw(0, N, H, W)
    params = start(encoder, x)
    expected, expected_gradient = value_and_gradient(encoder, params, x)

    def total(params, x):
        def function(x):
            return encoder.apply({"params": params}, encoder.prepare(x) if prepared else x)

        e_NT = TRANSFORMATIONS[name](function)(x)
        return jnp.sum(draw(2, N, T) * e_NT), e_NT

    (_, value), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params, x)
    assert error(value, expected) <= 1e-5
    assert_same(gradient, expected_gradient, 1e-5)
