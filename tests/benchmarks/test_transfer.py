"""The transfer experiment: what trains, what chooses, and what is only tested."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from experiments.benchmarks.transfer import measure, report
from experiments.benchmarks.transfer.measure import Models, Tree
from probex_jax.errors import ProbexError
from probex_jax.fitting import ClosedForm, SeveralClasses, Split, build_network, fit_closed_form

LAYER = "a.weight"
CLASSES, ROWS, COLUMNS = 5, 6, 7


def _tree(name, seed, sizes=(40, 12, 30), noise=2.0):
    """Models whose classes show in directions of their own tree, around a root of its own."""
    rng = np.random.default_rng(seed)
    root_HW = 5 * rng.normal(size=(ROWS, COLUMNS))
    directions_YHW = rng.normal(size=(CLASSES, ROWS, COLUMNS))

    def models(count):
        y_NY = (rng.random((count, CLASSES)) < 0.5).astype(np.float32)
        noise_NHW = rng.normal(size=(count, ROWS, COLUMNS))
        x_NHW = root_HW + np.einsum("ny,yhw->nhw", y_NY, directions_YHW) + noise * noise_NHW
        return Models(x_NHW.astype(np.float32), y_NY)

    return Tree(name, *map(models, sizes))


def _spoilt(models):
    return Models(np.full_like(models.x_NHW, np.nan), models.y_NY)


def _same(one, other):
    """Whether two outcomes are of the same classifier."""
    return all(
        getattr(one, field.name) == getattr(other, field.name)
        for field in dataclasses.fields(one)
        if field.name != "right_N"
    )


FOREST = [_tree("one", 1), _tree("two", 2), _tree("three", 3)]
UNSEEN = _tree("unseen", 4)


@pytest.fixture(scope="module", autouse=True)
def few_penalties():
    """Fewer than the experiment tries: a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "RECIPE", ClosedForm(penalties=(0.01, 0.1, 1.0)))
        yield


@pytest.fixture(scope="module")
def found():
    return measure.settings(FOREST, UNSEEN)


def test_within_is_the_ordinary_ridge_of_centred_matrices(found):
    tree = FOREST[0]
    mean_HW = tree.train.x_NHW.astype(np.float64).mean(axis=0)
    x_ND, val_MD, test_KD = (
        (s.x_NHW - mean_HW).reshape(len(s.x_NHW), -1) for s in (tree.train, tree.val, tree.test)
    )
    outcome = found[measure.WITHIN]["one"]
    # Its primal form: entries, not models, are solved for.
    target_NY = 2 * tree.train.y_NY - 1
    damping = outcome.penalty * (x_ND**2).sum() / len(x_ND)
    covariance_DD = x_ND.T @ x_ND + damping * np.eye(x_ND.shape[1])
    weight_DY = np.linalg.solve(covariance_DD, x_ND.T @ (target_NY - target_NY.mean(0)))

    def right(x_ND, y_NY):
        return np.mean((x_ND @ weight_DY + target_NY.mean(0) > 0) == (y_NY > 0.5), axis=1)

    np.testing.assert_allclose(outcome.right_N, right(test_KD, tree.test.y_NY), atol=1e-7)
    assert outcome.val_accuracy == pytest.approx(right(val_MD, tree.val.y_NY).mean())
    assert outcome.right_N.mean() > 0.8


def test_within_is_what_the_library_fits_to_a_packed_tree(toy_store):
    tree = Tree.read(toy_store, LAYER)
    moments = toy_store.moments(LAYER)
    splits = (
        Split(jnp.asarray((s.x_NHW - moments.mean) / moments.centred_std, jnp.float32), s.y_NY)
        for s in (tree.train, tree.val)
    )
    network = build_network({"name": "dense"}, "none", len(toy_store.classes))
    fitted = fit_closed_form(network, SeveralClasses(), measure.RECIPE, *splits)
    outcome = measure.transfer([tree], [tree])[0]
    assert (outcome.penalty, outcome.n_train) == (fitted.penalty, 70)
    assert outcome.val_loss == pytest.approx(fitted.loss, rel=1e-4)


def test_together_is_the_fit_of_all_models_one_after_the_other(found):
    train, val = (
        Models(
            np.concatenate([getattr(tree, split).x_NHW for tree in FOREST]),
            np.concatenate([getattr(tree, split).y_NY for tree in FOREST]),
        )
        for split in ("train", "val")
    )
    expected = measure.told(train, val, [tree.test for tree in FOREST])
    for tree, outcome in zip(FOREST, expected, strict=True):
        assert _same(found[measure.TOGETHER][tree.name], outcome)
        np.testing.assert_array_equal(found[measure.TOGETHER][tree.name].right_N, outcome.right_N)
    assert outcome.n_train == 3 * 40
    assert UNSEEN.name not in found[measure.TOGETHER]


def test_of_the_tested_tree_nothing_reaches_training_or_validation_across(found):
    """Not finite matrices stop a fit, and would change a choice."""
    for tree in (*FOREST, UNSEEN):
        spoilt = Tree(tree.name, _spoilt(tree.train), _spoilt(tree.val), tree.test)
        others = [other for other in FOREST if other.name != tree.name]
        outcome = found[measure.ACROSS][tree.name]
        again = measure.transfer(others, [spoilt])[0]
        assert _same(outcome, again)
        np.testing.assert_array_equal(outcome.right_N, again.right_N)
        assert outcome.n_train == 40 * len(others)
        with pytest.raises(ProbexError, match="not finite"):
            measure.transfer([*others, spoilt], [spoilt])


def test_no_test_split_reaches_a_fit_or_a_choice(found):
    def spoilt(tree):
        return Tree(tree.name, tree.train, tree.val, _spoilt(tree.test))

    again = measure.settings([spoilt(tree) for tree in FOREST], spoilt(UNSEEN))
    for setting, of_setting in found.items():
        for name, outcome in of_setting.items():
            assert _same(outcome, again[setting][name]), (setting, name)
    assert measure.validation_within(found) == measure.validation_within(again)


def test_the_unseen_tree_trains_and_chooses_nothing_but_its_own_within(found):
    hard = measure.settings(FOREST, _tree("unseen", 4, noise=50.0))
    assert hard[measure.WITHIN]["unseen"].val_accuracy < 0.7
    assert measure.validation_within(hard) == measure.validation_within(found)
    for setting, of_setting in found.items():
        for tree in FOREST:
            assert _same(of_setting[tree.name], hard[setting][tree.name]), (setting, tree.name)


def test_a_centred_tree_has_no_place(found):
    """Wherever the trees are moved to, the control is the same; across is not of one place."""
    moved = [
        Tree(t.name, *(Models(s.x_NHW + 8 * n, s.y_NY) for s in (t.train, t.val, t.test)))
        for n, t in enumerate((*FOREST, UNSEEN))
    ]
    again = measure.settings(moved[:-1], moved[-1])
    for name, outcome in found[measure.ACROSS_CENTRED].items():
        np.testing.assert_allclose(
            again[measure.ACROSS_CENTRED][name].right_N, outcome.right_N, atol=1e-7
        )
    assert not all(_same(again[measure.ACROSS][n], o) for n, o in found[measure.ACROSS].items())


def test_joining_models_are_of_the_other_tree_and_choose_nothing():
    tree, other = FOREST[:2]
    closed = Tree(other.name, other.train, _spoilt(other.val), _spoilt(other.test))
    outcomes = {
        (count, seed): outcome
        for count, seed, outcome in measure.joined(tree, closed, 40, [0, 10, 40], [0, 1])
    }
    # All models of a tree in another order: the same classifier but for rounding.
    within = measure.transfer([tree], [tree])[0]
    for seed in (0, 1):
        assert outcomes[0, seed].val_loss == pytest.approx(within.val_loss, rel=1e-3)
        both = measure.told(measure.pooled([tree.train, other.train]), tree.val, [tree.test])[0]
        assert outcomes[40, seed].val_loss == pytest.approx(both.val_loss, rel=1e-3)
    assert {count: o.n_train for (count, _), o in outcomes.items()} == {0: 40, 10: 50, 40: 80}
    # Some of them: a draw a seed, of either tree.
    drawn = {seed: o for count, seed, o in measure.joined(tree, closed, 20, [0], [0, 1])}
    assert drawn[0].n_train == 20
    for one, another in ((drawn[0], drawn[1]), (outcomes[10, 0], outcomes[10, 1])):
        assert abs(one.val_loss - another.val_loss) > 1e-3
    with pytest.raises(ProbexError, match="two: 41 of 40 training models"):
        next(measure.joined(tree, other, 40, [41], [0]))


def test_layers_are_those_that_all_stores_have_in_one_shape(toy_store, toy_lora_store):
    class Other(px.LayerStore):
        def __init__(self, name, **changes):
            self.__dict__ = {**toy_store.__dict__, "path": toy_store.path / name, **changes}

    wide = {**toy_store.layers, "b.weight": (1, 2), "classifier.weight": (3, 4)}
    few = Other("few", layers=wide)
    assert measure.shared_layers([toy_store, few]) == [LAYER]
    assert "classifier.weight" not in measure.shared_layers([few])
    for stores, message in (
        ([toy_store, toy_store], "one name"),
        ([toy_store, Other("other", classes=("ant",))], "other: its classes"),
        ([toy_lora_store], "factors"),
        ([toy_store, Other("none", layers={"c": (1, 1)})], "share no"),
    ):
        with pytest.raises(ProbexError, match=message):
            measure.shared_layers(stores)


def test_the_report_has_what_was_found(found, tmp_path):
    tree, other = FOREST[:2]
    joined = [
        report.Joined(tree.name, other.name, 20, count, seed, outcome)
        for count, seed, outcome in measure.joined(tree, other, 20, [0, 30], [0, 1])
    ]
    hashes = {t.name: "0" * 64 for t in (*FOREST, UNSEEN)}
    text = report.write(report.Found(LAYER, {LAYER: found}, joined, hashes, (0, 1), 1.0), tmp_path)
    within, across = (found[s]["unseen"].right_N.mean() for s in (measure.WITHIN, measure.ACROSS))
    cells = next(line for line in text.splitlines() if line.startswith("| unseen")).split("|")
    assert cells[2].startswith(f" {within:.3f} [")
    assert cells[5].startswith(f" {across:.3f} [")
    assert cells[3].strip() == ""
    none, some = (
        np.mean([j.outcome.right_N for j in joined if j.joining == count]) for count in (0, 30)
    )
    cells = next(line for line in text.splitlines() if "| 20 " in line).split("|")
    assert cells[4].startswith(f" {none:.3f} [")
    assert cells[5].startswith(f" {some - none:+.3f} [")
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert len(written["layers"]) == 4 + 3 + 4 + 4
    assert len(written["joined"]) == 4
    assert (tmp_path / "transfer.png").read_bytes().startswith(b"\x89PNG")
