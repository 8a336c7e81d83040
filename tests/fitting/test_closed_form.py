"""Ridge regression in closed form, against the primal solution in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probex_jax.experts.calibration import FACTORS
from probex_jax.experts.centring import tree_variables
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import Recipe, Ridge, Split, build_network, fit_ridge, sweep
from probex_jax.matrices import Centred, dense
from tests.numeric import error

pytestmark = pytest.mark.xdist_group("sweeps")

N, M, H, W, Y = 14, 9, 5, 4, 3


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def wide(x):
    """Multiplied out, in float64."""
    if isinstance(x, Centred):
        return wide(x.factors) - wide(x.centre)
    if isinstance(x, px.LowRank):
        return np.asarray(x.up, np.float64) @ np.asarray(x.down, np.float64)
    return np.asarray(x, np.float64)


def sample(kind, seed, n):
    if kind == "dense":
        return draw(seed, n, H, W)
    factors = px.LowRank(draw(seed, n, H, 2), draw(seed + 1, n, 2, W))
    return factors if kind == "factors" else Centred(factors, draw(9, H, W))


def data(kind, n=N, m=M):
    """A training and a validation split; the classes depend on the matrices, and on chance."""
    direction = np.random.default_rng(5).normal(size=(H, W, Y))
    splits = []
    for seed, count in ((0, n), (2, m)):
        x = sample(kind, seed, count)
        noise = np.random.default_rng(seed + 6).normal(size=(count, Y))
        outputs = np.einsum("nhw,hwy->ny", wide(x), direction) + 2 * noise
        y = (outputs > np.array([-1.0, 0.0, 2.0])).astype(np.float32)
        splits.append(Split(jax.device_put(x), jnp.asarray(y)))
    return splits


def primal(train, penalty, read=lambda x: x):
    """Weights [H · W, Y] by which t = 2 y - 1 less its mean is regressed, and that mean.

    (XᵀX + λ 1) w = Xᵀ (t - mean t), with the penalty in units of the mean of |x|².
    """
    x = read(wide(train.x)).reshape(len(train.y), -1)
    targets = 2 * np.asarray(train.y, np.float64) - 1
    strength = penalty * np.mean(np.sum(x**2, axis=1))
    normal = x.T @ x + strength * np.eye(x.shape[1])
    return np.linalg.solve(normal, x.T @ (targets - targets.mean(axis=0))), targets.mean(axis=0)


def loss_of(logits, y):
    """Binary cross-entropy: -log of the probability of what is so."""
    right = np.where(y > 0.5, logits, -logits)
    return np.mean(np.maximum(-right, 0) + np.log1p(np.exp(-np.abs(right))))


def standardised(x):
    x = x - x.mean(axis=(1, 2), keepdims=True)
    return x / (x.std(axis=(1, 2), keepdims=True, ddof=1) + 1e-8)


def network_of(**fields):
    return build_network({"name": "dense", **fields}, "none", Y)


@pytest.mark.parametrize("standardise", [False, True], ids=["as they are", "standardised"])
@pytest.mark.parametrize("kind", ["dense", "factors", "centred factors"])
def test_it_is_the_primal_solution(kind, standardise):
    train, val = data(kind)
    network = network_of(standardise=standardise)
    for penalty in (1e-2, 1.0):
        found = fit_ridge(network, Ridge((penalty,)), train, val)
        weight, bias = primal(train, penalty, standardised if standardise else lambda x: x)
        params = found.params["encoder"]
        assert params["weight"].shape == (H, W, Y)
        assert params["weight"].dtype == params["bias"].dtype == np.float32
        assert error(params["weight"].reshape(-1, Y), found.factor * weight) <= 1e-4
        assert error(params["bias"], found.factor * bias) <= 1e-6
        logits = jax.jit(network.apply)({"params": found.params}, val.x)
        assert loss_of(np.asarray(logits, np.float64), val.y) == pytest.approx(found.loss, rel=1e-4)


def test_more_models_than_entries_have_the_primal_solution_too():
    """The kernel is then singular, and its smallest eigenvalues are rounding."""
    train, val = data("dense", n=60)
    found = fit_ridge(network_of(), Ridge((1e-2,)), train, val)
    weight, _ = primal(train, 1e-2)
    assert error(found.params["encoder"]["weight"].reshape(-1, Y), found.factor * weight) <= 1e-4


def test_penalty_and_factor_are_those_of_the_lowest_loss():
    train, val = data("dense")
    recipe = Ridge((10.0, 1e-3, 0.3, 3.0))
    tried = {}
    for penalty in recipe.penalties:
        weight, bias = primal(train, penalty)
        outputs = wide(val.x).reshape(M, -1) @ weight + bias
        for factor in FACTORS:
            tried[penalty, factor] = loss_of(factor * outputs, np.asarray(val.y))
    penalty, factor = min(tried, key=tried.get)
    found = fit_ridge(network_of(), recipe, train, val)
    assert (found.penalty, found.factor) == (penalty, pytest.approx(factor))
    assert found.loss == pytest.approx(tried[penalty, factor], rel=1e-5)
    # Neither is the first, the last or the only one that would do.
    assert penalty not in (recipe.penalties[0], recipe.penalties[-1])
    assert FACTORS[0] < factor < FACTORS[-1]
    assert max(tried[p, factor] for p in recipe.penalties) > found.loss + 1e-3


def test_the_factors_tried_are_fine_and_far_apart():
    factors = FACTORS
    np.testing.assert_allclose(factors[1:] / factors[:-1], 1.05, rtol=2e-3)
    assert (factors[0], factors[-1]) == (pytest.approx(0.1), pytest.approx(100.0))


def test_what_is_chosen_is_chosen_on_val_alone():
    """From the training models' own outputs the least penalty would be the best."""
    train, val = data("dense")
    recipe = Ridge()
    on_itself = fit_ridge(network_of(), recipe, train, train)
    assert on_itself.penalty < fit_ridge(network_of(), recipe, train, val).penalty


def test_fitting_again_gives_the_same_bits():
    train, val = data("factors")
    first, second = (fit_ridge(network_of(), Ridge(), train, val) for _ in range(2))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("kind", ["dense", "factors"])
def test_a_matrix_of_zeros_among_others_is_finite(kind, standardise):
    train, val = data(kind)
    blank = jax.tree.map(lambda leaf: leaf.at[3].set(0.0), train.x)
    found = fit_ridge(
        network_of(standardise=standardise), Ridge((0.1,)), train._replace(x=blank), val
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.asarray(found.params["encoder"]["weight"]).any()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_matrices_that_say_nothing_are_refused(value):
    train, val = data("dense")
    x = jnp.full_like(dense(train.x), value)
    with pytest.raises(px.ProbexError, match="training matrices are all zero, or not finite"):
        fit_ridge(network_of(), Ridge(), train._replace(x=x), val)


def test_a_validation_model_that_is_not_finite_is_refused():
    """No penalty would have a loss then, and the first would be taken."""
    train, val = data("dense")
    with pytest.raises(px.ProbexError, match="some validation matrices are not finite"):
        fit_ridge(network_of(), Ridge(), train, val._replace(x=val.x.at[2, 0, 0].set(jnp.nan)))


def test_a_sweep_names_the_layer_that_cannot_be_fitted(tmp_path):
    for split in ("train", "val", "test"):
        for number in range(2):
            folder = tmp_path / "Zeros" / split / f"{split}{number}"
            folder.mkdir(parents=True)
            zeros = {"a": np.zeros((4, 3), np.float32)}
            labels = {"dataset_chosen_targets": f"['{'xy'[number]}']"}
            save_file(zeros, folder / "model.safetensors", labels)
    store = px.pack(px.scan(tmp_path / "Zeros"), tmp_path / "s").store
    settings = {"encoder": {"name": "dense"}, "head": "none", "recipe": Ridge()}
    with pytest.raises(px.ProbexError, match="s: a: the training matrices are all zero"):
        sweep(store, tmp_path / "w", **settings)


def test_classes_that_all_or_no_models_are_of_are_finite():
    train, val = data("dense")
    y = train.y.at[:, 0].set(1.0).at[:, 1].set(0.0)
    found = fit_ridge(network_of(), Ridge(), train._replace(y=y), val)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    np.testing.assert_array_equal(np.sign(found.params["encoder"]["bias"][:2]), [1.0, -1.0])


SMALL = {"n_probes": 3, "proj_dim": 4, "rep_dim": 2}


@pytest.mark.parametrize(
    ("encoder", "head"),
    [
        ({"name": "probex", **SMALL}, "class"),
        ({"name": "mvprobe", **SMALL}, "class"),
        ({"name": "probex", **SMALL, "rep_dim": Y}, "none"),
        ({"name": "dense", "rep_dim": 8}, "class"),
    ],
)
def test_other_networks_are_refused(encoder, head, toy_store, tmp_path):
    train, val = data("dense")
    message = 'recipe "ridge" fits the encoder dense to classes, with head "none"'
    with pytest.raises(px.ProbexError, match=message):
        fit_ridge(build_network(encoder, head, Y), Ridge(), train, val)
    encoder = encoder | ({"rep_dim": 6} if head == "none" else {})
    with pytest.raises(px.ProbexError, match=message):
        sweep(toy_store, tmp_path / "w", encoder=encoder, head=head, recipe=Ridge())
    assert not (tmp_path / "w").exists(), "a refused training must not claim its folder"


def test_one_of_several_texts_is_no_target():
    train, val = data("dense")
    with pytest.raises(px.ProbexError, match="to classes"):
        fit_ridge(network_of(), Ridge(), train._replace(y=jnp.zeros(N, jnp.int32)), val)


@pytest.mark.parametrize("penalties", [(), (0.0,), (-1.0, 1.0), (True,), ("1",), 3.0, (np.inf,)])
def test_penalties_are_numbers_above_zero(penalties):
    with pytest.raises(px.ProbexError, match=r"recipe\.penalties: .* are not numbers > 0"):
        Ridge(penalties)


@pytest.mark.parametrize("which", ["dense", "factors"])
def test_a_sweep_keeps_what_was_fitted(which, toy_store, toy_lora_store, tmp_path):
    """Fitted here to what NumPy centres: the same logits as those of the expert that is loaded."""
    store, layer = (toy_store, "a.weight") if which == "dense" else (toy_lora_store, "a")
    encoder = {"name": "dense", "standardise": True}
    settings = {"encoder": encoder, "head": "none", "normalise": "centre", "layers": [layer]}
    told = []
    result = sweep(
        store,
        tmp_path,
        recipe=Ridge([0.1, 1.0]),
        on_progress=lambda *progress: told.append(progress),
        **settings,
    )
    assert told == [(layer, 1)]
    tree = tree_variables(store, layer, "centre")
    centre = wide(store.matrices(layer)).mean(axis=0)
    splits = {
        name: Split(
            jnp.asarray((wide(store.matrices(layer, name)) - centre) / tree["scale"], jnp.float32),
            jnp.asarray(store.targets(name)),
        )
        for name in ("train", "val", "test")
    }
    network = build_network(encoder, "none", len(store.classes))
    fitted = fit_ridge(network, Ridge((0.1, 1.0)), splits["train"], splits["val"])
    expected = network.apply({"params": fitted.params}, splits["test"].x)
    expert = px.Expert.load(tmp_path)
    found = expert.logits(store.matrices(layer, "test"))
    assert error(found, np.asarray(expected, np.float64)) <= 2e-3
    metrics = expert.card["metrics"]
    assert metrics["penalty"] == fitted.penalty
    assert metrics["val_loss"] == pytest.approx(fitted.loss, rel=1e-3)
    logits = np.asarray(expert.logits(store.matrices(layer, "val")))
    right = (logits > 0) == (store.targets("val") > 0.5)
    assert metrics["val_accuracy"] == pytest.approx(right.mean())
    assert expert.card["recipe"] == {"penalties": [0.1, 1.0]}
    assert json.loads((tmp_path / "metrics.json").read_text())["recipe"] == expert.card["recipe"]
    if which == "dense":
        assert result.test.value > 0.85
    # Found finished, with the settings as they are; other ones are another training.
    again = []
    sweep(
        store,
        tmp_path,
        recipe=Ridge((0.1, 1)),
        on_progress=lambda *progress: again.append(progress),
        **settings,
    )
    assert again == told
    with pytest.raises(px.ProbexError, match=r"recipe\.penalties is \[0\.1, 1\.0\] there"):
        sweep(store, tmp_path, recipe=Ridge((0.1,)), **settings)
    with pytest.raises(px.ProbexError, match=r"recipe\.penalties is .*recipe\.seed is absent"):
        sweep(store, tmp_path, recipe=Recipe(), **settings)
