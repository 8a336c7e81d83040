"""Temperatures and the calibration error: against truth that is known, and slow references."""

import dataclasses
import json

import numpy as np
import pytest
from probex_jax.experts.calibration import best_temperature, calibration_error

import probex_jax as px
from probex_jax import Expert, ProbexError
from probex_jax.experts import Ridge, calibrated, checkpoints, sweep
from probex_jax.layer_store import LayerStore
from tests.conftest import CLASSES
from tests.forest.conftest import text_expert
from tests.search.conftest import make_expert


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def sigmoid(logits):
    return 0.5 + 0.5 * np.tanh(np.asarray(logits, np.float64) / 2)


def drawn_classes(logits, rng):
    """Targets [N, Y] that the logits are true probabilities of."""
    return (rng.uniform(size=logits.shape) < sigmoid(logits)).astype(np.float32)


def drawn_choices(logits, rng):
    """Targets [N] that the logits are true probabilities of."""
    below = np.cumsum(softmax(logits), axis=1) < rng.uniform(size=(len(logits), 1))
    return np.minimum(below.sum(axis=1), logits.shape[1] - 1).astype(np.int32)


@pytest.mark.parametrize("draw", [drawn_classes, drawn_choices])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_the_temperature_that_logits_were_made_with_is_found(draw, temperature):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5))
    y = draw(logits, rng)
    assert best_temperature(temperature * logits, y) == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("margin", [0.3, 30.0])
@pytest.mark.parametrize(("n_right", "n_wrong"), [(50, 50), (1, 9)])
def test_classes_told_without_a_mistake_are_as_sure_as_their_number_allows(
    margin, n_right, n_wrong
):
    y = np.repeat([1.0, 0.0], [n_right, n_wrong])[:, None]
    logits = margin * (2 * y - 1)
    temperature = best_temperature(logits, y)
    assert np.isfinite(temperature)
    p = sigmoid(margin / temperature)
    # One temperature for both kinds: the mean of what each may claim.
    claims = [(n_right + 1) / (n_right + 2)] * n_right + [(n_wrong + 1) / (n_wrong + 2)] * n_wrong
    assert p == pytest.approx(np.mean(claims), abs=1e-4)


@pytest.mark.parametrize("n_models", [1, 40])
def test_choices_told_without_a_mistake_are_as_sure_as_their_number_allows(n_models):
    y = np.arange(n_models) % 4
    logits = np.where(np.arange(4) == y[:, None], 9.0, -9.0)
    p = softmax(logits / best_temperature(logits, y)).max(axis=1)
    np.testing.assert_allclose(p, (n_models + 1) / (n_models + 2), atol=1e-4)


def test_candidates_that_nobody_would_take_do_not_count():
    y = np.arange(40) % 4
    logits = np.where(np.arange(4) == y[:, None], 9.0, -1e4)
    logits[np.arange(40), (y + 1) % 4] = -9.0
    p = softmax(logits / best_temperature(logits, y)).max(axis=1)
    np.testing.assert_allclose(p, 41 / 42, atol=1e-4)


@pytest.mark.parametrize(
    "y", [np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), np.ones([2, 2])]
)
@pytest.mark.parametrize("logits", [np.zeros([2, 2]), np.full([2, 2], 3e4), [[-5.0, 5], [5, -5]]])
def test_no_logits_ask_for_a_temperature_that_is_none(logits, y):
    temperature = best_temperature(np.asarray(logits, np.float32), y)
    assert 1e-5 < temperature < 1e5


def slow_calibration_error(p, y, n_bins=15):
    """By its definition, entry by entry."""
    if y.ndim == 2:
        entries = [
            (float(p[n, c]), float(y[n, c])) for n in range(len(y)) for c in range(len(p[0]))
        ]
    else:
        entries = [(float(max(p[n])), float(np.argmax(p[n]) == y[n])) for n in range(len(y))]
    total = 0.0
    for number in range(n_bins):
        low, high = number / n_bins, (number + 1) / n_bins
        inside = [e for e in entries if low <= e[0] < high or (high == 1 and e[0] == 1)]
        if inside:
            gap = sum(e[0] for e in inside) / len(inside) - sum(e[1] for e in inside) / len(inside)
            total += len(inside) / len(entries) * abs(gap)
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_calibration_error_is_that_of_its_definition(seed, scale):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(70, 6))
    classes, choices = rng.integers(0, 2, size=(70, 6)), rng.integers(0, 6, size=70)
    for p, y in ((sigmoid(logits), classes), (softmax(logits), choices)):
        assert calibration_error(p, y) == pytest.approx(slow_calibration_error(p, y), abs=1e-12)


def test_the_calibration_error_at_its_ends():
    y = np.array([[1.0, 0.0]])
    assert calibration_error(np.array([[1.0, 0.0]]), y) == 0
    assert calibration_error(np.array([[0.0, 1.0]]), y) == 1
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(50_000, 4))
    assert calibration_error(sigmoid(logits), drawn_classes(logits, rng)) < 0.01
    assert calibration_error(sigmoid(5 * logits), drawn_classes(logits, rng)) > 0.1


@pytest.fixture(scope="module")
def swept(toy_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swept")
    result = sweep(
        toy_store,
        workdir,
        encoder={"name": "dense"},
        head="none",
        recipe=Ridge(penalties=(0.1,)),
        normalise="centre",
        layers=["a.weight"],
    )
    return workdir, result


def test_a_sweep_calibrates_what_it_keeps_and_says_so(swept, toy_store):
    workdir, result = swept
    expert = Expert.load(workdir)
    about = expert.card["calibration"]
    logits = {s: np.asarray(expert.logits(toy_store.by_layer(s))) for s in ("val", "test")}
    y = {split: toy_store.targets(split) for split in logits}
    assert about["split"] == "val"
    assert expert.temperature == about["temperature"] == best_temperature(logits["val"], y["val"])
    assert expert.temperature != 1
    for when, temperature in (("before", 1.0), ("after", expert.temperature)):
        for split in ("val", "test"):
            expected = slow_calibration_error(sigmoid(logits[split] / temperature), y[split])
            assert about[when][split] == pytest.approx(expected, abs=1e-5)
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["calibration"] == about == result.metrics["calibration"]


def test_probabilities_are_the_calibrated_ones(swept, toy_store):
    expert, x = Expert.load(swept[0]), toy_store.by_layer("test")
    logits = np.asarray(expert.logits(x), float)
    p_NY = expert.probabilities(x)
    np.testing.assert_allclose(p_NY, sigmoid(logits / expert.temperature), rtol=1e-4)
    plain = Expert(expert.variables, {k: v for k, v in expert.card.items() if k != "calibration"})
    assert plain.temperature == 1
    np.testing.assert_allclose(plain.probabilities(x), sigmoid(logits), rtol=1e-4, atol=1e-7)


def test_candidates_share_one_probability():
    expert = make_expert(head="text")
    expert = Expert(expert.variables, {**expert.card, "calibration": {"temperature": 3.0}})
    logits = np.random.default_rng(0).normal(size=(4, 5))
    p_NY = expert.as_probabilities(logits)
    np.testing.assert_allclose(p_NY, softmax(logits / 3), rtol=1e-5)


def relabelled(store, split):
    """The store with every label of a split turned round."""
    copy = LayerStore.open(store.path)
    copy.models = tuple(
        dataclasses.replace(m, labels=tuple(c for c in CLASSES if c not in m.labels))
        if m.split == split
        else m
        for m in copy.models
    )
    return copy


def test_the_temperature_is_chosen_on_validation_alone(swept, toy_store):
    expert = Expert.load(swept[0])
    first = calibrated(expert, toy_store).card["calibration"]
    other = calibrated(expert, relabelled(toy_store, "test")).card["calibration"]
    assert other["temperature"] == first["temperature"] == expert.temperature
    assert other["after"]["val"] == first["after"]["val"]
    assert other["after"]["test"] > first["after"]["test"] + 0.1
    worse = calibrated(expert, relabelled(toy_store, "val")).card["calibration"]
    assert worse["temperature"] > 10 * first["temperature"]


def test_an_expert_of_text_is_calibrated_among_the_classes_it_was_trained_on(toy_lora_store):
    store = toy_lora_store
    expert = text_expert(store)
    found = calibrated(expert, store)
    classes = expert.card["classes"]
    sentences = [f"a photo of a {'a thing' if c == classes[0] else c}" for c in classes]
    texts = expert.text_encoder().encode(sentences)
    logits = np.asarray(expert.logits(store.matrices("a", "val"), texts))
    y = np.array([classes.index(m.labels[0]) for m in store.split("val")])
    assert found.temperature == pytest.approx(best_temperature(logits, y), rel=1e-5)
    expected = slow_calibration_error(softmax(logits / found.temperature), y)
    assert found.card["calibration"]["after"]["val"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), "1.0"])
def test_a_card_with_a_wrong_temperature_is_refused(tmp_path, wrong):
    expert = make_expert()
    card = {**expert.card, "calibration": {"temperature": wrong}}
    checkpoints.save(tmp_path / "e", expert.variables, card)
    with pytest.raises(ProbexError, match=r"calibration\.temperature") as error:
        px.Expert.load(tmp_path / "e")
    assert "\n" not in str(error.value)


def test_calibration_that_is_no_object_is_refused(tmp_path):
    expert = make_expert()
    checkpoints.save(tmp_path / "e", expert.variables, {**expert.card, "calibration": [2.0]})
    with pytest.raises(ProbexError, match=r"calibration\.temperature"):
        px.Expert.load(tmp_path / "e")
