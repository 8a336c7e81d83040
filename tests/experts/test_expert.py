"""One expert: what it reads, answers and refuses, how it is kept, what its probabilities are."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import calibrated, evaluate, zero_shot
from probex_jax.fitting import Adam, SeveralClasses, Texts, calibration_error
from probex_jax.layer_store import LayerStore
from tests.conftest import CLASSES
from tests.experts.toys import DENSE, TEXT, draw, make_expert, same_variables
from tests.forest.conftest import text_expert

X = draw(1, 5, 6, 5)


def of_store(store, layer="a.weight", **about):
    """An expert that a store's models may be asked of."""
    about = {"tree": store.tree, "classes": list(store.classes)} | about
    return make_expert(layer, store.layers[layer], **about)


def test_what_was_fitted_is_an_expert(tmp_path):
    """With an encoder of one's own, its logits and probabilities those of the fit."""

    class Wide(px.Dense):
        pass

    y, encoders = (X[:, :2, 0] > 0).astype(int), {"wide": Wide}
    found = px.fit(Wide(rep_dim=4), X, y, recipe=Adam(epochs=2))
    about = {"tree": "Mini", "layer": "a", "classes": ["one", "two"], "encoders": encoders}
    expert = px.Expert.of(found, **about)
    np.testing.assert_allclose(expert.logits(X), found.logits(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(expert.probabilities(X), found.predictions(X), rtol=1e-5)
    expert.save(tmp_path / "e")
    assert px.Expert.load(tmp_path / "e", encoders).hash == expert.hash
    with pytest.raises(px.ProbexError, match="wide"):
        px.Expert.load(tmp_path / "e")
    for wrong, named in (({"classes": ["one"]}, "classes"), ({"encoders": {}}, "Wide")):
        with pytest.raises(px.ProbexError, match=named):
            px.Expert.of(found, **{**about, **wrong})


def test_an_expert_is_an_argument_of_transformations():
    """The variables are traced, the rest is static."""
    expert = make_expert(normalise="centre")
    logits = jax.jit(lambda expert, x: expert.logits(x))(expert, X)
    np.testing.assert_allclose(logits, expert.logits(X), rtol=1e-5, atol=1e-5)
    slopes = jax.grad(lambda expert: expert.logits(X).sum())(expert)
    assert np.any(slopes.variables["params"]["encoder"]["probes"])
    doubled = jax.tree.map(lambda leaf: 2 * leaf, expert)
    assert (doubled.card, doubled.encoders) == (expert.card, expert.encoders)
    applied = expert.apply(doubled.variables, X)
    np.testing.assert_array_equal(applied, doubled.logits(X))
    assert jnp.abs(applied - logits).max() > 0.1


def test_an_expert_reads_factors():
    expert, factors = make_expert(), px.LowRank(draw(1, 3, 6, 2), draw(2, 3, 2, 5))
    dense = expert.logits(factors.dense())
    np.testing.assert_allclose(expert.logits(factors), dense, rtol=1e-4, atol=1e-4)


def test_saving_over_an_expert_replaces_it(tmp_path):
    expert = make_expert()
    expert.save(tmp_path / "e")
    expert.with_card(store_hash="4567").save(tmp_path / "e")
    found = px.Expert.load(tmp_path / "e")
    assert found.card.store_hash == "4567"
    same_variables(found, expert)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_damaged_expert_is_not_used(tmp_path):
    make_expert(encoder={"name": "dense", "rep_dim": 500}).save(tmp_path / "e")
    files = [path for path in (tmp_path / "e").rglob("d/*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(px.ProbexError, match=str(tmp_path / "e")):
        px.Expert.load(tmp_path / "e")
    with pytest.raises(px.ProbexError, match="no such expert"):
        px.Expert.load(tmp_path / "nothing")


def test_what_an_expert_cannot_read_is_refused(toy_store, toy_zoo, tmp_path):
    expert = of_store(toy_store)
    with pytest.raises(px.ProbexError, match=r"12x16, .*\(3, 4, 4\)"):
        expert.encode(np.zeros([3, 4, 4], np.float32))
    with pytest.raises(px.ProbexError, match="'fox'"):
        expert.check_fits("Toy", CLASSES[:-1])
    with pytest.raises(px.ProbexError, match="their order"):
        expert.check_fits("Toy", CLASSES[::-1])
    shutil.copytree(toy_zoo, tmp_path / "Other")
    other = px.pack(px.scan(tmp_path / "Other"), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match=r"Toy, .*Other"):
        evaluate(expert, other)
    for answer in (lambda: expert.place(["a cat"]), lambda: zero_shot(expert, toy_store)):
        with pytest.raises(px.ProbexError, match="no text"):
            answer()


class Other:
    """A text encoder that is not the expert's."""

    def __init__(self, name, dim):
        self.name, self.dim = name, dim

    def encode(self, texts):
        return np.ones([len(texts), self.dim], np.float32)


def test_another_text_encoder_is_refused():
    expert = make_expert(head="text", encoder=DENSE)
    for encoder in (Other("small", 16), Other("other", TEXT["dim"])):
        with pytest.raises(px.ProbexError, match=f"text encoder {encoder.name}"):
            expert.place(["a cat"], encoder)
    with pytest.raises(px.ProbexError, match=TEXT["name"]):
        make_expert(head="text", text={**TEXT, "encoder": ""}).place(["a cat"])
    with pytest.raises(px.ProbexError, match="candidates"):
        expert.logits(X)
    with pytest.raises(px.ProbexError, match=r"\(3, 5\)"):
        expert.logits(X, np.ones([3, 5]))
    with pytest.raises(px.ProbexError, match="empty"):
        expert.place([""])


def test_evaluate_is_the_mean_of_what_is_right(toy_store):
    expert = of_store(toy_store)
    score, logits = evaluate(expert, toy_store)
    expected = expert.logits(toy_store.matrices("a.weight", "test"))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
    assert score.value == pytest.approx(np.mean((logits > 0) == (toy_store.targets("test") > 0.5)))


def test_probabilities_are_calibrated(toy_store):
    """By the temperature that a task finds on validation models, and by its own formula."""
    expert = of_store(toy_store)
    x, task = toy_store.matrices("a.weight", "val"), SeveralClasses()
    found, y = calibrated(expert, toy_store), toy_store.targets("val")
    logits = np.asarray(expert.logits(x), np.float64)
    about = found.card.calibration
    assert about.temperature == pytest.approx(task.best_temperature(logits, y), rel=1e-4) != 1
    for who, figures in ((expert, about.before), (found, about.after)):
        p_NY = np.asarray(who.probabilities(x))
        expected = 1 / (1 + np.exp(-logits / who.card.temperature))
        np.testing.assert_allclose(p_NY, expected, rtol=1e-4, atol=1e-7)
        assert figures["val"] == pytest.approx(calibration_error(p_NY.ravel(), y.ravel()), abs=1e-4)
    candidates = make_expert(head="text", calibration={"temperature": 3.0})
    p_NY = candidates.as_probabilities(draw(0, 4, 5))
    np.testing.assert_allclose(p_NY, jax.nn.softmax(draw(0, 4, 5) / 3), rtol=1e-5)


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


def test_the_temperature_is_chosen_on_validation_alone(toy_store):
    x, y = toy_store.matrices("a.weight"), toy_store.targets("train")
    about = {"tree": "Toy", "layer": "a.weight", "classes": CLASSES}
    expert = px.Expert.of(px.fit(px.Dense(len(CLASSES)), x, y), **about)
    first = calibrated(expert, toy_store).card.calibration
    other = calibrated(expert, relabelled(toy_store, "test")).card.calibration
    assert (other.temperature, other.after["val"]) == (first.temperature, first.after["val"])
    assert other.after["test"] > first.after["test"] + 0.1
    worse = calibrated(expert, relabelled(toy_store, "val")).card.calibration
    assert worse.temperature > 10 * first.temperature


def test_an_expert_of_text_is_calibrated_among_the_classes_it_was_trained_on(toy_lora_store):
    store, expert = toy_lora_store, text_expert(toy_lora_store)
    found, classes = calibrated(expert, store), expert.card.classes
    sentences = [f"a photo of a {'a thing' if c == classes[0] else c}" for c in classes]
    texts = expert.text_encoder().encode(sentences)
    logits = np.asarray(expert.logits(store.matrices("a", "val"), texts))
    y = np.array([classes.index(m.labels[0]) for m in store.split("val")])
    expected = Texts().best_temperature(logits, y)
    assert found.card.temperature == pytest.approx(expected, rel=1e-5)


def test_an_expert_is_loaded_where_float64_is_on(tmp_path):
    make_expert(normalise="centre").save(tmp_path / "e")
    with jax.enable_x64(True):
        assert px.Expert.load(tmp_path / "e").card.tree
