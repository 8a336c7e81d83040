"""Ridge regression in closed form, against the primal solution in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.fitting import (
    ClosedForm,
    Number,
    OneClass,
    SeveralClasses,
    Split,
    build_network,
)
from probex_jax.fitting import fit_closed_form as fit_
from probex_jax.fitting.calibration import FACTORS
from probex_jax.matrices import Centred, dense
from tests.numeric import error

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
    """Weights [H · W, Y] by which t = 2 y - 1 is regressed, and the intercept.

    With x less its mean, (XᵀX + λ 1) w = Xᵀ (t - mean t), the penalty in units of the mean of |x|².
    """
    x = read(wide(train.x)).reshape(len(train.y), -1)
    return solved(x, 2 * np.asarray(train.y, np.float64) - 1, penalty)


def solved(x, targets, penalty):
    mean, x = x.mean(axis=0), x - x.mean(axis=0)
    strength = penalty * np.mean(np.sum(x**2, axis=1))
    normal = x.T @ x + strength * np.eye(x.shape[1])
    weight = np.linalg.solve(normal, x.T @ (targets - targets.mean(axis=0)))
    return weight, targets.mean(axis=0) - mean @ weight


def loss_of(logits, y):
    """Binary cross-entropy: -log of the probability of what is so."""
    right = np.where(y > 0.5, logits, -logits)
    return np.mean(np.maximum(-right, 0) + np.log1p(np.exp(-np.abs(right))))


def standardised(x):
    x = x - x.mean(axis=(1, 2), keepdims=True)
    return x / (x.std(axis=(1, 2), keepdims=True, ddof=1) + 1e-8)


def network_of(**fields):
    return build_network({"name": "dense", **fields}, "none", Y)


def fit(recipe, train, val=None, network=None, task=SeveralClasses()):  # noqa: B008
    return fit_(network or network_of(), task, recipe, train, val)


@pytest.mark.parametrize("standardise", [False, True], ids=["as they are", "standardised"])
@pytest.mark.parametrize("kind", ["dense", "factors", "centred factors"])
def test_it_is_the_primal_solution(kind, standardise):
    train, val = data(kind)
    network = network_of(standardise=standardise)
    for penalty in (1e-2, 1.0):
        found = fit(ClosedForm((penalty,)), train, val, network)
        weight, bias = primal(train, penalty, standardised if standardise else lambda x: x)
        params = found.params["encoder"]
        assert params["weight"].shape == (H, W, Y)
        assert params["weight"].dtype == params["bias"].dtype == np.float32
        assert error(params["weight"].reshape(-1, Y), found.factor * weight) <= 1e-4
        assert error(params["bias"], found.factor * bias) <= 1e-4
        logits = jax.jit(network.apply)({"params": found.params}, val.x)
        assert loss_of(np.asarray(logits, np.float64), val.y) == pytest.approx(found.loss, rel=1e-4)


def test_more_models_than_entries_have_the_primal_solution_too():
    """The kernel is then singular, and its smallest eigenvalues are rounding."""
    train, val = data("dense", n=60)
    found = fit(ClosedForm((1e-2,)), train, val)
    weight, _ = primal(train, 1e-2)
    assert error(found.params["encoder"]["weight"].reshape(-1, Y), found.factor * weight) <= 1e-4


def test_penalty_and_factor_are_those_of_the_lowest_loss():
    train, val = data("dense")
    recipe = ClosedForm((10.0, 1e-3, 0.3, 3.0))
    tried = {}
    for penalty in recipe.penalties:
        weight, bias = primal(train, penalty)
        outputs = wide(val.x).reshape(M, -1) @ weight + bias
        for factor in FACTORS:
            tried[penalty, factor] = loss_of(factor * outputs, np.asarray(val.y))
    penalty, factor = min(tried, key=tried.get)
    found = fit(recipe, train, val)
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
    train, val = data("dense", n=24, m=40)
    recipe = ClosedForm()
    on_itself = fit(recipe, train, train)
    assert on_itself.penalty < fit(recipe, train, val).penalty


def test_fitting_again_gives_the_same_bits():
    train, val = data("factors")
    first, second = (fit(ClosedForm(), train, val) for _ in range(2))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("kind", ["dense", "factors"])
def test_a_matrix_of_zeros_among_others_is_finite(kind, standardise):
    train, val = data(kind)
    blank = jax.tree.map(lambda leaf: leaf.at[3].set(0.0), train.x)
    train, network = train._replace(x=blank), network_of(standardise=standardise)
    found = fit(ClosedForm((0.1,)), train, val, network)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found._replace(network=None)))
    assert np.asarray(found.params["encoder"]["weight"]).any()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_matrices_that_say_nothing_are_refused(value):
    train, val = data("dense")
    x = jnp.full_like(dense(train.x), value)
    with pytest.raises(px.ProbexError, match="training matrices"):
        fit(ClosedForm(), train._replace(x=x), val)
    if value:  # no penalty would have a loss then, and the first would be taken
        with pytest.raises(px.ProbexError, match="validation matrices"):
            fit(ClosedForm(), train, val._replace(x=val.x.at[2, 0, 0].set(value)))


def test_classes_that_all_or_no_models_are_of_are_finite():
    train, val = data("dense")
    y = train.y.at[:, 0].set(1.0).at[:, 1].set(0.0)
    found = fit(ClosedForm(), train._replace(y=y), val)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found._replace(network=None)))
    np.testing.assert_array_equal(np.sign(found.params["encoder"]["bias"][:2]), [1.0, -1.0])


# Of few directions of many, and the rest noise: ridge regression on all entries drowns in it.
HIDDEN = (60, 80)


def hidden(n, seed=0):
    rng = np.random.default_rng(seed)
    of_classes = np.random.default_rng(9)
    left, right = (np.linalg.qr(of_classes.normal(size=(s, Y)))[0] for s in HIDDEN)
    y = (rng.random([n, Y]) < 0.5).astype(np.float32)
    x = np.einsum("ny,hy,wy->nhw", 2 * y - 1, left, right) + 0.3 * rng.normal(size=(n, *HIDDEN))
    return Split(x.astype(np.float32), y)


def probex_of(probes=24, **fields):
    sizes = {"n_probes": probes, "proj_dim": probes}
    return build_network({"name": "probex", "relu": False, **sizes, **fields}, "none", Y)


def accuracy(network, params, split):
    logits = np.asarray(network.apply({"params": params}, split.x))
    return float(np.mean((logits > 0) == (split.y > 0)))


@pytest.mark.parametrize("kind", ["dense", "factors", "standardised"])
@pytest.mark.parametrize("known", ["val", "cross-validated"])
def test_few_probes_tell_what_all_entries_hide(known, kind):
    train, val, test = hidden(80), hidden(40, 1), hidden(200, 2)
    network = probex_of(standardise=kind == "standardised")
    if kind == "factors":
        factors = [np.linalg.svd(split.x, full_matrices=False) for split in (train, val)]
        train, val = (
            split._replace(x=px.LowRank(u * s[:, None], v))
            for split, (u, s, v) in zip((train, val), factors, strict=True)
        )
    found = fit(ClosedForm(), train, val if known == "val" else None, network)
    sizes = found.network.encoder
    assert isinstance(sizes, px.ProbeX)
    assert (sizes.n_probes, sizes.proj_dim) in ((16, 16), (24, 24))
    params = found.params["encoder"]
    assert params["probes"].shape == (HIDDEN[1], sizes.n_probes)
    assert params["projection"].shape == (HIDDEN[0], sizes.proj_dim)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype("f4")}
    dense = fit(ClosedForm(), hidden(80), hidden(40, 1), network_of())
    told = accuracy(found.network, found.params, test)
    assert told > accuracy(dense.network, dense.params, test) + 0.02
    if known == "val":
        logits = found.network.apply({"params": found.params}, val.x)
        np.testing.assert_allclose(logits, found.logits, atol=2e-3 * np.abs(found.logits).max())
        assert found.loss == pytest.approx(loss_of(found.logits, val.y), rel=1e-6)


def test_bases_know_nothing_of_the_models_that_choose():
    """What is left out is told alike, whatever its label was; the others are told otherwise."""
    train, recipe = hidden(60), ClosedForm((0.1,))
    found = fit(recipe, train, network=probex_of(16))
    place = found.models[2]
    y = train.y.copy()
    y[place] = 1 - y[place]
    other = fit(recipe, train._replace(y=y), network=probex_of(16))
    assert found.network == other.network
    part = found.logits / found.factor - other.logits / other.factor
    assert np.abs(part[2]).max() <= 1e-6
    assert len(found.models) == 36, "of five parts those that have 32 models"
    assert np.abs(part).max() > 1e-3
    # From models that the bases were chosen with, all is easier than it is.
    rest = np.setdiff1d(np.arange(60), found.models)
    assert found.loss > fit(recipe, train, _part(train, rest), probex_of(16)).loss


def _part(split, models):
    return split._replace(x=split.x[models], y=split.y[models])


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40)], ids=["tall", "wide"])
def test_centred_factors_are_as_their_products(shape, standardise):
    """Of few models the centre is kept as factors, of many it is not."""
    for n_models in (4, 60):
        x = px.LowRank(draw(0, n_models, shape[0], 2), draw(1, n_models, 2, shape[1]))
        y = (draw(2, n_models, Y) > 0).astype(np.float32)
        encoder = px.ProbeX(4, 4, Y, relu=False, standardise=standardise)
        found, whole = (px.fit(encoder, each, y) for each in (x, np.asarray(x.up @ x.down)))
        assert found.network.encoder == whole.network.encoder
        assert ("centre_up" in found.variables["tree"]) == (n_models == 4)
        logits = np.asarray(whole.logits(np.asarray(x.up @ x.down)), np.float64)
        assert error(found.logits(x), logits) <= 2e-3


def test_two_models_and_vectors_are_read_whole():
    for shape, n_models in (((20, 30), 2), ((500, 1), 20)):
        x, y = draw(0, n_models, *shape), np.arange(n_models)[:, None] % 2
        found = px.fit(px.ProbeX(4, 4, 1, relu=False), x, y, normalise="none")
        assert isinstance(found.network.encoder, px.Dense)


def test_matrices_of_few_entries_are_read_whole():
    """As `Dense` reads them, to the bit, where there would be as many responses."""
    train, val = data("dense")
    found, whole = fit(ClosedForm(), train, val, probex_of(5)), fit(ClosedForm(), train, val)
    assert found.network.encoder == px.Dense(Y)
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)


def test_all_entries_are_a_rung_of_the_ladder():
    """They win where every entry tells something; matrices of very many are not read whole."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 30, 40)).astype(np.float32)
    y = (np.einsum("nhw,hwy->ny", x, rng.normal(size=(30, 40, Y))) > 0).astype(np.float32)
    train, val = Split(x[:500], y[:500]), Split(x[500:], y[500:])
    assert fit(ClosedForm(), train, val, probex_of(16)).network.encoder == px.Dense(Y)
    x = draw(1, 40, 512, 513)  # noise, by which all entries happen to be ahead
    y = (draw(51, 40, Y) > 0).astype(np.float32)
    train, val = Split(x[:30], y[:30]), Split(x[30:], y[30:])
    assert isinstance(fit(ClosedForm(), train, val, probex_of(16)).network.encoder, px.ProbeX)


SMALL = {"n_probes": 3, "proj_dim": 4, "rep_dim": Y}


@pytest.mark.parametrize(
    ("encoder", "head", "task"),
    [
        ({"name": "probex", **SMALL}, "class", SeveralClasses()),
        ({"name": "probex", **SMALL}, "none", SeveralClasses()),
        ({"name": "probex", **SMALL, "relu": False}, "class", SeveralClasses()),
        ({"name": "dense", "rep_dim": 8}, "class", SeveralClasses()),
        ({"name": "dense"}, "none", px.Texts()),
    ],
)
def test_other_networks_and_tasks_are_refused(encoder, head, task):
    with pytest.raises(px.ProbexError, match="dense"):
        fit(ClosedForm(), *data("dense"), build_network(encoder, head, Y), task)


@pytest.mark.parametrize("task", [OneClass(), Number()], ids=["one class", "number"])
def test_other_tasks_regress_their_own_targets(task):
    """One-hot, or the number standardised; without penalty they are told exactly."""
    train, _ = data("dense", n=60)
    scores = wide(train.x).reshape(60, -1) @ np.random.default_rng(5).normal(size=(H * W, Y))
    y = scores.argmax(axis=1) if task == OneClass() else 5 + 3 * scores[:, 0]
    task, rep_dim = task.fitted(y), Y if task == OneClass() else 1
    targets = np.eye(Y)[y] if rep_dim == Y else (y[:, None] - y.mean()) / y.std()
    train = train._replace(y=y)
    network = build_network({"name": "dense"}, "none", rep_dim)
    found = fit(ClosedForm((1e-2,)), train, train, network, task)
    x = wide(train.x).reshape(60, -1)
    weight, _ = solved(x, targets, 1e-2)
    assert (
        error(found.params["encoder"]["weight"].reshape(-1, rep_dim), found.factor * weight) <= 1e-4
    )
    assert (found.factor == 1) == (rep_dim == 1)


def test_without_val_each_model_is_told_by_others():
    """Five-fold, by hand: the logits are of solutions that did not see their model."""
    train, _ = data("dense", n=20)
    recipe = ClosedForm((0.1,))
    found = fit(recipe, train)
    np.testing.assert_allclose(
        fit(recipe, train, train).params["encoder"]["weight"] / found.params["encoder"]["weight"],
        fit(recipe, train, train).factor / found.factor,
        rtol=1e-4,
    )
    flipped = train._replace(y=train.y.at[3].set(1 - train.y[3]))
    other = fit(recipe, flipped)
    own = found.logits[3] / found.factor - other.logits[3] / other.factor
    assert np.abs(own).max() <= 1e-9, "its own label says nothing of it"
    rest = found.logits / found.factor - other.logits / other.factor
    assert np.abs(np.delete(rest, 3, axis=0)).max() > 1e-2
    assert found.loss > fit(recipe, train, train).loss


@pytest.mark.parametrize("penalties", [(), (0.0,), (-1.0, 1.0), (True,), ("1",), 3.0, (np.inf,)])
def test_penalties_are_numbers_above_zero(penalties):
    with pytest.raises(px.ProbexError, match=r"recipe\.penalties: "):
        ClosedForm(penalties)
