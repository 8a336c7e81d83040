"""What always giving the commonest answer has, counted by hand."""

from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from experiments import steps
from probex_jax.experts import evaluate
from probex_jax.experts.chance import chance, chance_by_class, shortfall
from probex_jax.fitting import ClosedForm, OneClass, SeveralClasses
from probex_jax.sweeps import run_statnn, sweep
from probex_jax.zoo.model_j import LABELS_KEY

CLOSED = {"encoder": {"name": "dense"}, "head": "none", "recipe": ClosedForm((0.1,))}


def store(folder, **labels):
    """A store of models of noise: split to the labels of its models."""
    rng = np.random.default_rng(0)
    for split, of_models in labels.items():
        for number, names in enumerate(of_models):
            path = folder / "Noise" / split / f"{split}{number}"
            path.mkdir(parents=True)
            weights = {"a": rng.normal(size=(4, 3)).astype(np.float32)}
            save_file(weights, path / "model.safetensors", {LABELS_KEY: str(list(names))})
    return px.pack(px.scan(folder / "Noise"), folder / "s").store


def several(found, split):
    return chance(SeveralClasses(), found, split, found.classes)


def by_class(found, split):
    return chance_by_class(SeveralClasses(), found, split, found.classes)


def test_of_each_class_what_most_training_models_are(tmp_path):
    found = store(tmp_path, train=["abc", "ab", "ac", "bd"], val=["ab", "a"], test=["ad", "b", "c"])
    # a: 3 of 4, yes; b: 3 of 4, yes; c: half, no; d: 1 of 4, no.
    assert by_class(found, "test") == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert several(found, "test") == pytest.approx(6 / 12)
    assert several(found, "val") == pytest.approx(7 / 8)


def test_a_class_that_no_training_model_is_of_is_answered_no(tmp_path):
    found = store(tmp_path, train="aa", val_holdout="z", test="aa")
    assert found.classes == ("a", "z")
    assert by_class(found, "val_holdout") == pytest.approx([0, 0])
    assert several(found, "test") == 1


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [("aaabbc", "abbcc", 1 / 5), ("aaabbc", "aabc", 2 / 4), ("aabbc", "bbbc", (0 + 3 / 4) / 2)],
)
def test_of_candidates_the_commonest_of_training_is_given(tmp_path, train, test, expected):
    """Of as common ones the mean; of each class how common it is."""
    found = store(tmp_path, train=train, test=test)
    assert chance(OneClass(), found, "test", "abc") == pytest.approx(expected)
    shares = [train.count(name) / len(train) for name in "abc"]
    assert chance_by_class(OneClass(), found, "test", "abc") == pytest.approx(shares)


def test_of_candidates_that_no_training_model_is_of_the_commonest_asked_counts(tmp_path):
    found = store(tmp_path, train="aab", test_holdout="ccccd")
    assert chance(OneClass(), found, "test_holdout", "cdefgh") == pytest.approx(4 / 5)


def test_metrics_and_cards_and_evaluations_have_it(toy_store, tmp_path):
    result = sweep(toy_store, tmp_path / "w", **CLOSED)
    fitted = toy_store.split("train") + toy_store.split("val")
    models = {"test": toy_store.split("test"), "train and val": fitted}
    known = {"test": toy_store.split("train"), "train and val": fitted}
    for split, found in (
        ("test", result.metrics["test_accuracy"]["chance"]),
        ("test", result.expert.card.figures["test_accuracy"]["chance"]),
        ("test", result.test.chance),
        ("test", evaluate(result.expert, toy_store)[0].chance),
        ("test", run_statnn(toy_store, tmp_path / "s", n_trees=2)["test_accuracy"]["chance"]),
        ("train and val", result.metrics["val_chance"]),
        ("train and val", result.expert.card.figures["val_chance"]),
    ):
        counts = Counter(label for model in known[split] for label in model.labels)
        usual = {name for name, count in counts.items() if count > len(known[split]) / 2}
        right = [
            (name in model.labels) == (name in usual)
            for model in models[split]
            for name in toy_store.classes
        ]
        assert found == pytest.approx(np.mean(right))
    assert f"{result.test.chance:.3f}" in str(result.test)
    row = steps.train_row(result.metrics)
    assert row["chance"] == f"{result.test.chance:.3f}"
    assert [row["chance"] for row in steps.layer_rows(result.metrics)] == [
        result.metrics["val_chance"]
    ] * len(toy_store.layers)


def test_a_training_that_learnt_nothing_says_so(tmp_path):
    rare = {split: ["a"] * 15 + ["b"] for split in ("train", "val", "test")}
    result = sweep(store(tmp_path, **rare), tmp_path / "w", **CLOSED)
    assert result.metrics["test_accuracy"]["chance"] == 15 / 16
    line, *of_auc = steps.not_above_chance(result.metrics)
    assert "0.938" in line
    assert "above" in line
    area = result.metrics["test_auc"]
    assert area["chance"] == 0.5
    assert bool(of_auc) == (area["low"] <= 0.5)
    assert all(f"{area['value']:.3f}" in line for line in of_auc)


def test_a_training_of_an_earlier_version_says_nothing(toy_store, tmp_path):
    metrics = dict(sweep(toy_store, tmp_path / "w", **CLOSED).metrics)
    metrics["test_accuracy"] = {
        name: value for name, value in metrics["test_accuracy"].items() if name != "chance"
    }
    del metrics["val_chance"]
    assert steps.not_above_chance(metrics) == []
    assert steps.train_row(metrics)["chance"] == ""
    assert all("chance" not in row for row in steps.layer_rows(metrics))


@pytest.mark.parametrize(
    ("value", "low", "chance", "expected"),
    [
        (0.871, 0.84, 0.875, "not above"),
        (0.875, 0.875, 0.875, "not above"),
        (0.1 + 0.2, 0.1 + 0.2, 0.3, "not above"),
        (0.88, 0.86, 0.875, "not clearly above"),
        (0.9, 0.875, 0.875, "not clearly above"),
        (0.9, 0.88, 0.875, ""),
        (0.1, 0.0, None, ""),
        (0.1, 0.0, "a half", ""),
        (0.1, 0.0, True, ""),
    ],
)
def test_what_the_interval_reaches_is_not_clearly_above(value, low, chance, expected):
    assert shortfall({"value": value, "low": low, "chance": chance}) == expected
