"""One ridge regression on several layers: against refits by hand, in float64."""

import numpy as np
import pytest

import probex_jax as px
from probex_jax.fitting import Number, OneClass, SeveralClasses, multiple_kernels
from probex_jax.fitting.multiple_kernels import best
from probex_jax.fitting.ridge import FOLDS, Kernel, Regression, Ridge, folds

N, Y = 40, 3
PENALTIES = (0.03, 0.3, 3.0)


def layers(seed=0):
    """Models whose classes the first layer shows, the second one a little, the third not."""
    rng = np.random.default_rng(seed)
    place_N = rng.permutation(np.arange(N) % Y)
    shown = rng.normal(size=(Y, 9))[place_N]
    return place_N, {
        "much": shown + 0.7 * rng.normal(size=(N, 9)),
        "little": 100 * (shown[:, :4] + 2.0 * rng.normal(size=(N, 4))),
        "nothing": 0.01 * rng.normal(size=(N, 30)),
    }


def kernels(x):
    return {name: Kernel(each @ each.T) for name, each in x.items()}


def solved(x, targets, penalty, unit):
    """Weights and intercept of the primal ridge regression."""
    mean = x.mean(axis=0)
    normal = (x - mean).T @ (x - mean) + penalty * unit * np.eye(x.shape[1])
    weight = np.linalg.solve(normal, (x - mean).T @ (targets - targets.mean(axis=0)))
    return weight, targets.mean(axis=0) - mean @ weight


def mean_square(x):
    return np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))


@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["centred", "far from zero"])
def test_what_is_left_out_is_told_by_the_others(shift):
    """As if each part had been left out and the rest been fitted; the intercept, too."""
    y, x = layers()
    x, targets = x["much"] - x["much"].mean(axis=0) + shift, np.eye(Y)[y]
    fold_N = folds(OneClass(), y)
    found = Ridge(x @ x.T, targets).left_out(0.3, fold_N)
    for fold in range(FOLDS):
        out = fold_N == fold
        weight, intercept = solved(x[~out], targets[~out], 0.3, mean_square(x))
        np.testing.assert_allclose(found[out], x[out] @ weight + intercept, atol=1e-3)


def test_what_is_left_out_in_pairs_is_told_by_the_other_parts():
    """Without part 2, those of part 0 by parts 1, 3 and 4; its own models are told by none."""
    y, x = layers()
    x, targets, fold_N = x["much"], np.eye(Y)[y], folds(OneClass(), y)
    found = Ridge(x @ x.T, targets).left_out_in_pairs(0.3, fold_N)
    for one, other in ((2, 0), (0, 2), (4, 1)):
        known, out = (fold_N != one) & (fold_N != other), fold_N == other
        weight, intercept = solved(x[known], targets[known], 0.3, mean_square(x))
        np.testing.assert_allclose(found[one, out], x[out] @ weight + intercept, atol=1e-5)
        np.testing.assert_array_equal(found[one, fold_N == one], targets[fold_N == one])


def test_folds_have_their_share_of_every_class():
    y = np.array([0] * 20 + [1] * 10 + [2] * 5)
    fold_N = folds(OneClass(), y)
    for fold in range(FOLDS):
        assert np.bincount(y[fold_N == fold]).tolist() == [4, 2, 1]
    assert np.bincount(folds(SeveralClasses(), np.zeros([7, 2]))).tolist() == [2, 2, 1, 1, 1]
    assert sorted(folds(OneClass(), np.array([0, 1, 1]))) == [0, 1, 2]


def fit_alone(kernels, regression):
    return multiple_kernels.fit_alone(kernels, [regression])[0]


def fit_together(kernels, layers, alone, regression):
    return multiple_kernels.fit_together(kernels, layers, [alone], [regression])[0]


def regression_of(task, y, n_outputs):
    return Regression(task, y, task.regressed(y, n_outputs), PENALTIES, folds(task, y))


def fitted(y, x, task, n_outputs, most=None, room=10**6):
    regression = regression_of(task, y, n_outputs)
    alone = fit_alone(kernels(x), regression)
    sizes = {name: each.shape[1] * n_outputs for name, each in x.items()}
    return alone, fit_together(kernels(x), best([alone], most, sizes, room), alone, regression)


TASKS = {
    "one class": (OneClass(), Y, lambda y: y),
    "several classes": (SeveralClasses(), Y, lambda y: np.eye(Y)[y]),
    "a number": (Number().fitted(np.arange(N)), 1, lambda y: 1.0 * y),
}


@pytest.mark.parametrize("which", TASKS)
def test_it_is_one_regression_on_all_entries(which):
    """Of all layers side by side, each in units of its size, times the root of its weight."""
    task, n_outputs, of = TASKS[which]
    place_N, x = layers()
    y = of(place_N)
    _, found = fitted(y, x, task, n_outputs)
    scaled = np.concatenate(
        [each * (found.weights[name] / mean_square(each)) ** 0.5 for name, each in x.items()],
        axis=1,
    )
    targets = task.regressed(y, n_outputs)
    unit = mean_square(scaled)
    assert unit == pytest.approx(1)
    weight, intercept = solved(scaled, targets, found.chosen.penalty, unit)
    expected = found.chosen.factor * (scaled @ weight + intercept)
    logits = sum(each @ (each.T @ found.solution[name]) for name, each in x.items()) + found.bias
    np.testing.assert_allclose(logits, expected, atol=1e-6 * np.abs(expected).max())


def test_layers_weigh_what_they_tell():
    y, x = layers()
    alone, found = fitted(y, x, OneClass(), Y)
    assert found.weights["much"] > found.weights["little"] > found.weights["nothing"] > 0
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.chosen.loss < regression_of(OneClass(), y, Y).prior_losses()[0]
    assert alone.gains["much"] > alone.gains["little"] > 0 >= alone.gains["nothing"]
    # A layer that tells nothing has a part of the first of two powers alone.
    assert found.weights["nothing"] == pytest.approx(1 / 3 / 2, abs=0.02)
    scaled = {name: 1e3 * each for name, each in x.items()}
    _, again = fitted(y, scaled, OneClass(), Y)
    assert again.weights == pytest.approx(found.weights, rel=1e-6)


def test_a_few_layers_answer_alone_where_others_only_disturb():
    """And all do where each tells a part: by what their own models do not know."""
    rng = np.random.default_rng(2)
    y = np.eye(Y)[rng.permutation(np.arange(N) % Y)]
    one = {"told": y + 0.4 * rng.normal(size=(N, Y))}
    disturbing = {f"noise {n}": rng.normal(size=(N, 30)) for n in range(20)}
    _, found = fitted(y, one | disturbing, SeveralClasses(), Y)
    assert found.weights["told"] > 0.95
    # Those that tell nothing have no share at all, and are not read.
    assert 1 < len(found.weights) < 21
    assert found.solution.keys() == found.weights.keys()
    parts = {f"part {n}": y + 2 * rng.normal(size=(N, Y)) for n in range(20)}
    _, found = fitted(y, parts, SeveralClasses(), Y)
    assert min(found.weights.values()) > 0.49 / 20


def test_where_no_layer_tells_anything_all_weigh_alike():
    y, _ = layers()
    noise = {name: np.random.default_rng(n).normal(size=(N, 4)) for n, name in enumerate("abc")}
    regression = Regression(OneClass(), y, np.eye(Y)[y], PENALTIES, folds(OneClass(), y))
    alone = fit_alone(kernels(noise), regression)
    nothing = alone._replace(gains=dict.fromkeys(noise, -0.1), without=None)
    found = fit_together(kernels(noise), [*noise], nothing, regression)
    assert found.weights == pytest.approx(dict.fromkeys(noise, 1 / 3))


def test_the_best_layers_that_there_is_room_for_are_kept():
    y, x = layers()
    for most, room, kept in (
        (None, 10**6, ["much", "little", "nothing"]),
        (1, 10**6, ["much"]),
        (None, 9 * Y + 30 * Y, ["much", "little"]),
        (None, 1, ["much"]),
    ):
        _, found = fitted(y, x, OneClass(), Y, most, room)
        assert [*found.weights] == kept


def test_its_own_label_says_nothing_of_a_model():
    """What is left out is told alike, whatever its label was."""
    y, x = layers()
    kernel, fold_N = x["much"] @ x["much"].T, folds(SeveralClasses(), np.eye(Y)[y])
    targets = np.eye(Y)[y]
    flipped = targets.copy()
    flipped[3] = 1 - flipped[3]
    one, other = (Ridge(kernel, each).left_out(0.3, fold_N) for each in (targets, flipped))
    np.testing.assert_allclose(one[3], other[3], atol=1e-9)
    assert np.abs(one - other).max() > 1e-2


def regression_on(y, fold_N=None, penalties=PENALTIES):
    task = SeveralClasses()
    return Regression(task, y, 2 * y - 1, penalties, folds(task, y) if fold_N is None else fold_N)


@pytest.mark.parametrize("seed", range(12))
def test_its_own_label_has_no_part_in_what_weights_are_made_of(seed):
    """Nor in the penalties that these come from; the weights in the end are of all labels."""
    place_N, x = layers(seed)
    y = np.eye(Y)[place_N]
    flipped = y.copy()
    flipped[seed] = 1 - flipped[seed]
    penalties = np.geomspace(1e-3, 10.0, 13)
    one, other = (
        fit_alone(kernels(x), regression_on(each, penalties=penalties)) for each in (y, flipped)
    )
    part = folds(SeveralClasses(), y)[seed]
    for name in x:
        assert one.without[name][part] == pytest.approx(other.without[name][part], abs=1e-12)
        assert one.gains[name] != pytest.approx(other.gains[name], abs=1e-6)


def test_its_own_label_has_no_part_in_the_weights_that_it_is_told_by():
    place_N, x = layers()
    y = np.eye(Y)[place_N]
    flipped = y.copy()
    flipped[3] = 1 - flipped[3]
    told = []
    for each in (y, flipped):
        regression = regression_on(each, penalties=[0.3])
        found = fit_together(kernels(x), [*x], fit_alone(kernels(x), regression), regression)
        told.append(found.chosen.logits[3] / found.chosen.factor)
    np.testing.assert_allclose(*told, atol=1e-9)


def test_models_that_are_never_left_out_are_known_to_every_part():
    """Three parts choose, and the others are fitted to whatever is left out."""
    place_N, x = layers()
    y = np.eye(Y)[place_N]
    fold_N = folds(SeveralClasses(), y)
    fold_N = np.where(fold_N < 3, fold_N, -1)
    regression = regression_on(y, fold_N, [0.3])
    alone = fit_alone({"much": Kernel(x["much"] @ x["much"].T)}, regression)
    unit = mean_square(x["much"])
    for part in range(3):
        outputs, prior = 2 * y - 1, 2 * y - 1
        for other in {0, 1, 2} - {part}:
            known, out = (fold_N != part) & (fold_N != other), fold_N == other
            weight, intercept = solved(x["much"][known], 2 * y[known] - 1, 0.3, unit)
            outputs[out] = x["much"][out] @ weight + intercept
            prior[out] = (2 * y[known] - 1).mean(axis=0)
        others = (fold_N >= 0) & (fold_N != part)
        loss, nothing = (
            SeveralClasses().best_factor(each[others], y[others])[1] for each in (outputs, prior)
        )
        assert alone.without["much"][part] == pytest.approx(nothing - loss, abs=1e-5)


def test_where_features_are_chosen_the_weights_are_of_all_models():
    """A part's features know the others' targets, so no weights can be told without one."""
    place_N, x = layers()
    y, found = np.eye(Y)[place_N], kernels(x)
    found["much"] = Kernel(found["much"].whole, np.stack([found["much"].whole] * FOLDS))
    alone = fit_alone(found, regression_on(y))
    assert alone.without is None
    plain = fit_alone(kernels(x), regression_on(y))
    # The penalty is in units of the models that are left, not of all.
    assert alone.gains == pytest.approx(plain.gains, rel=1e-2)
    together = fit_together(found, [*x], alone, regression_on(y))
    assert together.weights["nothing"] == pytest.approx(1 / 3 / 2, abs=0.02)


@pytest.mark.parametrize("which", [["much"], ["much", "little"]])
@pytest.mark.parametrize("n_models", [2, 3, 5, 6])
def test_of_a_few_models_all_but_one_may_be_the_same(n_models, which):
    x = {name: np.concatenate([np.zeros([n_models - 1, 4]), np.ones([1, 4])]) for name in which}
    y = (np.arange(n_models) == n_models - 1).astype(float)[:, None]
    found = kernels(x)
    regression = regression_on(y)
    together = fit_together(found, which, fit_alone(found, regression), regression)
    assert sum(together.weights.values()) == pytest.approx(1)
    assert np.isfinite(together.chosen.logits).all()


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_models_that_are_all_the_same_are_refused(value):
    with pytest.raises(px.ProbexError, match="training matrices"):
        Ridge(np.full([4, 4], value), np.eye(4))


def asked_together(reduced):
    """Three things asked of models, one of half of them, and the kernels that they share."""
    place_N, x = layers()
    known = np.flatnonzero(np.arange(N) % 2 == 0)
    fold_N = np.arange(N) % FOLDS
    of_half = np.where(np.arange(len(known)) < 30, np.arange(len(known)) % FOLDS, -1)
    number, half = Number().fitted(np.arange(N)), Number().fitted(1.0 * known)
    value, several = np.sin(np.arange(N)), np.eye(Y)[place_N]
    found = kernels(x)
    if reduced:
        rng = np.random.default_rng(1)
        others = [x["little"] + 0.1 * rng.normal(size=x["little"].shape) for _ in range(FOLDS)]
        found["little"] = Kernel(found["little"].whole, np.stack([o @ o.T for o in others]))
    regressions = [
        Regression(SeveralClasses(), several, 2 * several - 1, PENALTIES, fold_N),
        Regression(number, value, number.regressed(value, 1), PENALTIES, fold_N),
        Regression(half, value[known], half.regressed(value[known], 1), PENALTIES, of_half,
                   models=known),
    ]  # fmt: skip
    return found, regressions


@pytest.mark.parametrize("reduced", [False, True], ids=["of all", "features chosen by parts"])
def test_asked_together_each_is_told_as_if_it_were_asked_alone(reduced):
    """Also what is known of some of the models alone, whose kernels are theirs."""
    shared, regressions = asked_together(reduced)
    each = multiple_kernels.fit_alone(shared, regressions)
    together = multiple_kernels.fit_together(shared, [*shared], each, regressions)
    for regression, alone, found in zip(regressions, each, together, strict=True):
        own = {name: kernel.of(regression.models) for name, kernel in shared.items()}
        regression = Regression(
            regression.task, regression.y, regression.targets_NY, PENALTIES, regression.fold_N
        )
        expected_alone = fit_alone(own, regression)
        expected = fit_together(own, [*own], expected_alone, regression)
        assert alone.gains == pytest.approx(expected_alone.gains)
        assert found.weights == pytest.approx(expected.weights)
        assert found.chosen.penalty == expected.chosen.penalty
        np.testing.assert_allclose(found.chosen.logits, expected.chosen.logits, atol=1e-8)
        for name in own:
            np.testing.assert_allclose(found.solution[name], expected.solution[name], atol=1e-8)


def test_solutions_stand_side_by_side_in_one():
    """Its logits are those of each; models that say nothing of one have no part in it."""
    shared, regressions = asked_together(False)
    each = multiple_kernels.fit_alone(shared, regressions)
    found = multiple_kernels.fit_together(shared, [*shared], each, regressions)
    merged = multiple_kernels.merged(found, regressions)
    whole = sum(shared[name].whole @ merged.solution[name] for name in merged.weights)
    known = regressions[2].models
    columns = [
        sum(
            shared[name].whole[:, slice(None) if one.models is None else one.models]
            @ own.solution[name]
            for name in own.weights
        )
        for one, own in zip(regressions, found, strict=True)
    ]
    np.testing.assert_allclose(whole, np.concatenate(columns, axis=1), atol=1e-8)
    unknown = np.setdiff1d(np.arange(N), known)
    for solution in merged.solution.values():
        assert not solution[unknown, -1].any()
        assert solution[known, -1].any()


def test_layers_that_tell_any_of_what_is_asked_are_kept():
    """By what is left of the loss, each thing counting as much."""
    _, x = layers()
    y = np.random.default_rng(0).permutation(N) % 2
    x["other"] = y[:, None] + 0.1 * np.random.default_rng(1).normal(size=(N, 5))
    place_N, _ = layers()
    regressions = [regression_of(OneClass(), place_N, Y), regression_of(OneClass(), y, 2)]
    each = multiple_kernels.fit_alone(kernels(x), regressions)
    assert best(each, 2, dict.fromkeys(x, 1), 10) == ["other", "much"]
    assert best(each[:1], 2, dict.fromkeys(x, 1), 10) == ["much", "little"]


def test_what_is_left_out_is_told_by_features_that_do_not_know_it():
    """Where these tell nothing, the loss is that of the prior, whatever features of all tell."""
    place_N, x = layers()
    y, rng = np.eye(Y)[place_N], np.random.default_rng(5)
    noise = [each @ each.T for each in rng.normal(size=(FOLDS, N, 30))]
    found = {"much": Kernel(x["much"] @ x["much"].T, np.stack(noise))}
    regression = regression_on(y)
    together = fit_together(found, ["much"], fit_alone(found, regression), regression)
    assert together.chosen.loss > 0.9 * regression.prior_losses()[0]
    plain = {"much": Kernel(found["much"].whole)}
    told = fit_together(plain, ["much"], fit_alone(plain, regression), regression)
    assert told.chosen.loss < 0.6 * regression.prior_losses()[0]
