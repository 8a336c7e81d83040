"""Encoders against independent float64 references: values, gradients, initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.encoders import statistics
from probex_jax.fitting import build_network

N, H, W, U, V, T, Y = 5, 6, 4, 3, 7, 8, 2


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(N, H, W)).astype(np.float32)


def error(actual, expected):
    expected = np.asarray(expected, np.float64)
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def probex_reference(params, x):
    """e = sum over probes l of M_l relu(V' X u_l) + b, probe by probe, as the paper writes it."""
    p = in_float64(params["encoder"])
    kernel = p["encoder"]["dense"]["kernel"].reshape(U, V, T)
    e = np.tile(p["encoder"]["dense"]["bias"], (N, 1))
    for n in range(N):
        for probe in range(U):
            response = p["projection"].T @ x[n].astype(np.float64) @ p["probes"][:, probe]
            e[n] += kernel[probe].T @ np.maximum(response, 0)
    head = in_float64(params["head"]["linear"]["dense"])
    return e @ head["kernel"] + head["bias"]


def dense_reference(params, x):
    p = in_float64(params["encoder"])
    return np.einsum("nhw,hwt->nt", x.astype(np.float64), p["weight"]) + p["bias"]


CASES = {
    "probex": (
        {"name": "probex", "n_probes": U, "proj_dim": V, "rep_dim": T},
        "class",
        probex_reference,
    ),
    "dense": ({"name": "dense"}, "none", dense_reference),
}


def numeric_gradient(function, params, step=1e-6):
    """Central differences of a float64 function, entry by entry."""
    leaves, tree = jax.tree.flatten(in_float64(params))
    gradients = []
    for leaf in leaves:
        gradient = np.zeros_like(leaf)
        for index in np.ndindex(leaf.shape):
            kept = leaf[index]
            leaf[index] = kept + step
            above = function(jax.tree.unflatten(tree, leaves))
            leaf[index] = kept - step
            below = function(jax.tree.unflatten(tree, leaves))
            leaf[index] = kept
            gradient[index] = (above - below) / (2 * step)
        gradients.append(gradient)
    return jax.tree.unflatten(tree, gradients)


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradient_agree_with_float64(case, x):
    encoder, head, reference = CASES[case]
    network = build_network(encoder, head, Y)
    params = network.init(jax.random.key(1), x)["params"]
    assert error(network.apply({"params": params}, x), reference(params, x)) <= 1e-5
    mix = np.random.default_rng(2).normal(size=(N, Y)).astype(np.float32)
    gradient = jax.grad(lambda p: jnp.sum(mix * network.apply({"params": p}, x)))(params)
    expected = numeric_gradient(lambda p: np.sum(mix * reference(p, x)), params)
    for (path, actual), wanted in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(expected), strict=True
    ):
        assert error(actual, wanted) <= 1e-5, path


@pytest.mark.parametrize("case", CASES)
def test_factors_and_their_product_agree(case):
    encoder, head, _ = CASES[case]
    network = build_network(encoder, head, Y)
    rng = np.random.default_rng(0)
    factors = px.LowRank(
        rng.normal(size=(N, H, 2)).astype(np.float32), rng.normal(size=(N, 2, W)).astype(np.float32)
    )
    variables = network.init(jax.random.key(1), factors)
    dense = network.apply(variables, factors.dense())
    assert error(network.apply(variables, factors), dense) <= 1e-5


# Rows, columns, rank, projections, probes: where each order of the products of factors wins.
@pytest.mark.parametrize(
    ("h", "w", "rank", "v", "u"),
    [(40, 32, 4, 16, 16), (40, 32, 12, 32, 3), (32, 40, 12, 3, 32), (8, 10, 16, 12, 12)],
    ids=["both", "right", "left", "right, of a high rank"],
)
def test_probex_of_factors_is_that_of_their_product(h, w, rank, v, u):
    rng = np.random.default_rng(0)
    factors = px.LowRank(
        jnp.asarray(rng.normal(size=(N, h, rank)), jnp.float32),
        jnp.asarray(rng.normal(size=(N, rank, w)), jnp.float32),
    )
    texts = jnp.asarray(rng.normal(size=(Y, 6)), jnp.float32)
    encoder = {"name": "probex", "n_probes": u, "proj_dim": v, "rep_dim": T}
    network = build_network(encoder, "text", Y, logit_scale=3.0)
    params = network.init(jax.random.key(1), factors, texts)["params"]
    mix = rng.normal(size=(N, Y)).astype(np.float32)

    def total(params, x):
        logits = network.apply({"params": params}, x, texts)
        return jnp.sum(mix * logits), logits

    of = jax.grad(total, has_aux=True)
    (gradient, logits), (expected, dense) = of(params, factors), of(params, factors.dense())
    assert error(logits, dense) <= 1e-5
    for (path, actual), wanted in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(expected), strict=True
    ):
        assert error(actual, wanted) <= 1e-4, path


@pytest.mark.parametrize("case", CASES)
def test_models_do_not_influence_each_other(case, x):
    encoder, head, _ = CASES[case]
    network = build_network(encoder, head, Y)
    variables = network.init(jax.random.key(1), x)
    together = network.apply(variables, x)
    for n in range(N):
        np.testing.assert_allclose(
            network.apply(variables, x[n : n + 1])[0], together[n], rtol=1e-4
        )


@pytest.mark.parametrize("kind", [px.Dense, px.ProbeX])
def test_a_single_entry_is_not_standardised_away(kind):
    x = np.array([3.0, -1.0, 0.5], np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(kind(rep_dim=2, standardise=True).read(x), x)


def test_probes_pass_through_standardised_entries(x):
    params = px.ProbeX(U, V, T).init(jax.random.key(0), x)
    found = px.ProbeX(U, V, T, standardise=True).apply(params, 7.0 * x + 2.0)
    standardised = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), ddof=1, keepdims=True)
    assert error(found, px.ProbeX(U, V, T).apply(params, standardised)) <= 1e-5


def test_linear_probex_is_a_tucker_decomposition(x):
    """Proposition 2 of the paper: without the ReLU, one dense tensor [H, W, Y] does the same."""
    encoder, head, _ = CASES["probex"]
    network = build_network({**encoder, "relu": False}, head, Y)
    params = network.init(jax.random.key(1), x)["params"]
    p = in_float64(params)
    core_UVT = p["encoder"]["encoder"]["dense"]["kernel"].reshape(U, V, T)
    head_p = p["head"]["linear"]["dense"]
    tensor_HWY = np.einsum(
        "hv,wu,uvt,ty->hwy",
        p["encoder"]["projection"],
        p["encoder"]["probes"],
        core_UVT,
        head_p["kernel"],
    )
    offset_Y = p["encoder"]["encoder"]["dense"]["bias"] @ head_p["kernel"] + head_p["bias"]
    expected = np.einsum("nhw,hwy->ny", x.astype(np.float64), tensor_HWY) + offset_Y
    assert error(network.apply({"params": params}, x), expected) <= 1e-5


def test_initialisation_is_uniform_in_the_bounds_of_the_reference():
    network = build_network({"name": "probex", "n_probes": 64, "proj_dim": 25}, "class", 9)
    params = network.init(jax.random.key(0), jnp.zeros([1, 100, 36]))["params"]
    bounds = {
        "['encoder']['probes']": 64**-0.5,
        "['encoder']['projection']": 100**-0.5,
        "['encoder']['encoder']['dense']['kernel']": (64 * 25) ** -0.5,
        "['encoder']['encoder']['dense']['bias']": (64 * 25) ** -0.5,
        "['head']['linear']['dense']['kernel']": 512**-0.5,
        "['head']['linear']['dense']['bias']": 512**-0.5,
    }
    found = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(params)}
    assert found.keys() == bounds.keys()
    for name, values in found.items():
        assert 0.8 * bounds[name] < np.abs(values).max() <= bounds[name], name
        deviation = np.std(values) / (bounds[name] / np.sqrt(3))
        assert 0.6 < deviation < 1.4, name


def test_the_paper_s_number_of_parameters():
    network = build_network(
        {"name": "probex", "n_probes": 128, "proj_dim": 128, "rep_dim": 128}, "class", 100
    )
    x = jax.ShapeDtypeStruct((1, 768, 768), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_306_788


def test_statistics_against_numpy(x):
    flat = x.reshape(N, -1).astype(np.float64)
    expected = np.column_stack(
        [flat.mean(1), flat.var(1), np.percentile(flat, [0, 25, 50, 75, 100], 1).T]
    )
    assert error(statistics(jnp.asarray(x)), expected) <= 1e-5


def test_statistics_do_not_depend_on_the_order_of_entries(x):
    shuffled = np.random.default_rng(3).permuted(x.reshape(N, -1), axis=1).reshape(N, H, W)
    np.testing.assert_allclose(
        statistics(jnp.asarray(x)), statistics(jnp.asarray(shuffled)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("encoder", "head", "message"),
    [
        ({"name": "mlp"}, "class", "encoder.name: 'mlp' is not one of probex, mvprobe, dense"),
        ({"name": "probex", "probes": 3}, "class", "encoder.probes: probex has only n_probes"),
        ({"name": "dense"}, "class", "rep_dim"),
        ({"name": "probex", "n_probes": 0}, "class", "encoder.n_probes: 0"),
        ({"name": "probex", "n_probes": 2.5}, "class", "encoder.n_probes: 2.5"),
        ({"name": "dense"}, "words", "head: 'words' is not one of class, none, text"),
    ],
)
def test_wrong_settings_are_named(encoder, head, message):
    with pytest.raises(px.ProbexError, match=message):
        build_network(encoder, head, 3)
