"""Alignment with text on toy LoRAs: training, selection, zero-shot, and what is refused."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import Alignment, zero_shot
from probex_jax.experts.alignment import ZeroShot, class_texts, text_logits, with_seen_offset
from probex_jax.fitting import Adam
from probex_jax.integrity import unsealed
from probex_jax.language import HashingEncoder
from probex_jax.sweeps import sweep
from tests.conftest import HELD_OUT, write_toy_lora, write_toy_lora_zoo

pytestmark = pytest.mark.xdist_group("alignment")

ENCODER = {"name": "probex", "n_probes": 8, "proj_dim": 8, "rep_dim": 32}
RECIPE = Adam(epochs=60, eval_every=10, batch_size=32, learning_rate=3e-3, l2=0.0)
# For what does not depend on how long training takes; one, so that it is compiled once.
SHORT = Adam(epochs=1, eval_every=1)
ALIGNMENT = Alignment(HashingEncoder(), spec="hashing", logit_scale=20.0)


def run(store, workdir, **changes):
    settings = {
        "encoder": ENCODER,
        "head": "text",
        "recipe": RECIPE,
        "alignment": ALIGNMENT,
        "normalise": "scale",
    }
    return sweep(store, workdir, **(settings | changes))


@pytest.fixture(scope="module")
def swept(toy_lora_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alignment")
    return workdir, run(toy_lora_store, workdir)


def test_seen_and_held_out_concepts_are_found_by_their_words(swept):
    workdir, result = swept
    assert list(result.expert.layers) == ["a"]
    assert result.layers["a"] > 0.8 > result.layers["b"]
    assert result.test.value > 0.8
    found = result.zero_shot
    assert (found.n_held_out, found.n_all) == (3, 16)
    assert found.among_held_out.n_models == found.among_all.n_models == 24
    assert found.among_held_out.value > 0.6
    assert found.among_held_out.value >= found.among_all.value > 3 / 16
    metrics = unsealed(json.loads((workdir / "metrics.json").read_text()), workdir)
    assert metrics["zero_shot"]["among_all"]["value"] == found.among_all.value
    assert metrics["n_models"]["test_holdout"] == 24
    for name, split in (("expert", "val"), ("expert_val_holdout", "val_holdout")):
        card = px.Expert.load(workdir / name).card
        assert card.selected_on == split
        assert card.members[0].layer == "a"
        accuracies = card.figures[f"{split}_accuracies"]
        best = card.figures[f"{split}_best_epoch"] // RECIPE.eval_every
        assert accuracies[best] == max(accuracies)


def test_zero_shot_is_what_the_texts_say(swept, toy_lora_store):
    """Against cosines of the stored representations and texts, computed by NumPy."""
    workdir, result = swept
    expert = px.Expert.load(workdir / "expert_val_holdout")
    held_out, seen = sorted(HELD_OUT), list(toy_lora_store.seen_classes)
    sentences = [f"a photo of a {name}" for name in held_out + seen]
    texts = np.asarray(expert.place(sentences))
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, rtol=1e-5)
    e = np.asarray(expert.encode(toy_lora_store.matrices("a", "test_holdout")))
    cosines = (e / np.linalg.norm(e, axis=1, keepdims=True)) @ texts.T
    offset = expert.text.seen_offset / expert.text.logit_scale
    cosines[:, len(held_out) :] -= offset
    truth = [model.labels[0] for model in toy_lora_store.split("test_holdout")]
    among_all = [
        (held_out + seen)[i] == name for i, name in zip(cosines.argmax(1), truth, strict=True)
    ]
    among_held_out = [
        held_out[i] == n for i, n in zip(cosines[:, :3].argmax(1), truth, strict=True)
    ]
    assert result.zero_shot.among_all.value == pytest.approx(np.mean(among_all))
    assert result.zero_shot.among_held_out.value == pytest.approx(np.mean(among_held_out))


def test_classes_trained_on_stand_back_for_new_ones(swept, toy_lora_store):
    """By as much as gives both their due on validation; what is among equals stays as it is."""
    workdir, result = swept
    expert = px.Expert.load(workdir / "expert_val_holdout")
    raw = expert.with_card(text=dataclasses.replace(expert.text, seen_offset=None))
    assert expert.text.seen_offset
    assert with_seen_offset(raw, ALIGNMENT.candidates(toy_lora_store)).card == expert.card

    def harmonic(each):
        found = zero_shot(each, toy_lora_store, "val_holdout")
        return 2 / (1 / found.among_all.value + 1 / found.seen_among_all.value)

    assert harmonic(expert) > harmonic(raw)
    before, after = zero_shot(raw, toy_lora_store), result.zero_shot
    assert before.among_held_out == after.among_held_out
    assert after.seen_among_all.n_models == len(toy_lora_store.split("test"))
    seen = toy_lora_store.seen_classes
    texts = class_texts(expert, toy_lora_store, seen, None)
    logits = [text_logits(each, toy_lora_store, "test", seen, texts) for each in (raw, expert)]
    np.testing.assert_array_equal(*(each.argmax(axis=1) for each in logits))
    written = json.loads((workdir / "metrics.json").read_text())["zero_shot"]
    assert ZeroShot.from_json(written) == after
    earlier = {name: value for name, value in written.items() if name != "seen_among_all"}
    assert ZeroShot.from_json(earlier).seen_among_all is None


def test_factors_and_product_give_the_same_answers(swept, toy_lora_store):
    _, result = swept
    x = toy_lora_store.matrices("a", "test")
    expert = result.expert
    factors, dense = expert.encode(x), expert.encode(x.dense())
    assert np.linalg.norm(factors - dense) <= 1e-5 * np.linalg.norm(dense)
    # The scale is the deviation of the training updates.
    product = np.asarray(toy_lora_store.matrices("a", "train").dense(), np.float64)
    np.testing.assert_allclose(result.expert.variables["tree"]["scale"], product.std(), rtol=1e-4)


def test_held_out_models_do_not_reach_the_training(swept, toy_lora_zoo, toy_lora_store, tmp_path):
    """Other held-out models, as many: the same parameters to the bit."""
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    rng = np.random.default_rng(1)
    for model in toy_lora_store.models:
        if model.split in ("val_holdout", "test_holdout", "test"):
            folder = tmp_path / "ToyLoRA" / model.split / model.id
            write_toy_lora(folder, model.labels[0], rng)
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    changed, (_, original) = run(store, tmp_path / "w"), swept
    assert store.hash != original.expert.card.store_hash
    np.testing.assert_array_equal(
        changed.expert.variables["params"]["encoder"]["probes"],
        original.expert.variables["params"]["encoder"]["probes"],
    )
    assert dict(changed.layers) == dict(original.layers)


def test_running_again_trains_nothing(swept, toy_lora_store, monkeypatch):
    workdir, result = swept
    monkeypatch.setattr(sys.modules["probex_jax.sweeps.train"], "train", None)
    again = run(toy_lora_store, workdir)
    assert again.metrics == result.metrics
    assert again.zero_shot == result.zero_shot


def test_an_interrupted_training_goes_on_to_the_same_bits(swept, toy_lora_store, tmp_path):
    calls = []

    def interrupt(layer, epochs):
        calls.append(epochs)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(toy_lora_store, tmp_path, save_every_s=0, on_progress=interrupt)
    resumed = []
    run(
        toy_lora_store,
        tmp_path,
        save_every_s=0,
        on_progress=lambda layer, epochs: resumed.append(epochs),
    )
    assert resumed[0] == sum(calls[:-1]), "it began anew"
    for name in ("expert", "expert_val_holdout"):
        whole, broken = (px.Expert.load(folder / name) for folder in (swept[0], tmp_path))
        assert broken.hash == whole.hash


@pytest.mark.parametrize(
    "missing", [("val_holdout",), ("test_holdout",), ("val_holdout", "test_holdout")]
)
def test_one_held_out_split_is_enough(tmp_path, toy_lora_zoo, missing):
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    for split in missing:
        shutil.rmtree(tmp_path / "ToyLoRA" / split)
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    result = run(store, tmp_path / "w", layers=["a"], recipe=SHORT)
    assert (result.zero_shot is None) == ("test_holdout" in missing)
    assert (tmp_path / "w" / "expert_val_holdout").exists() == ("val_holdout" not in missing)
    if len(missing) == 2:
        with pytest.raises(px.ProbexError, match="no held-out classes"):
            zero_shot(result.expert, store)


class Counting:
    """The hashing encoder, counting what it is asked."""

    def __init__(self):
        self.asked = []
        self.name, self.dim = HashingEncoder().name, HashingEncoder().dim

    def encode(self, texts):
        self.asked.append(len(texts))
        return HashingEncoder().encode(texts)


def test_classes_are_embedded_once_for_all_layers(toy_lora_store, tmp_path):
    encoder = Counting()
    alignment = Alignment(encoder, spec="hashing", logit_scale=20.0)
    run(toy_lora_store, tmp_path, alignment=alignment, recipe=SHORT)
    # Once before training two layers; then for the test among 13, and zero-shot among all 16.
    assert encoder.asked == [16, 13, 16]


def test_an_expert_trained_on_a_held_out_class_is_refused(swept, tmp_path):
    """Elsewhere the class is held out, here it was trained on."""
    zoo = write_toy_lora_zoo(tmp_path / "ToyLoRA")
    for split in ("train", "val", "test", "val_holdout", "test_holdout"):
        for model in sorted((zoo / split).iterdir()):
            shutil.rmtree(model)
        concept = "red dog" if split.endswith("holdout") else "blue cat"
        write_toy_lora(zoo / split / f"{split}_0", concept, np.random.default_rng(0))
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match="'red dog', which is held out"):
        zero_shot(swept[1].expert, store)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"red cat": "crane", "red dog": "crane"},
            "'red dog' and 'red cat' .*'a photo of a crane'",
        ),
        ({"red cat": "Red Dog!"}, "'red dog' and 'red cat' .*hashing"),
    ],
)
def test_classes_that_texts_do_not_tell_apart_are_refused(toy_lora_zoo, tmp_path, texts, message):
    """`red cat` is held out: its words must not be those of a class that is trained on."""
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    (tmp_path / "ToyLoRA" / "zoo.json").write_text(json.dumps({"texts": texts}))
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match=message):
        run(store, tmp_path / "w")
    assert not (tmp_path / "w").exists(), "a refused training must not claim its folder"


def test_a_whole_number_as_scale_is_kept_as_a_number(toy_lora_store, tmp_path):
    short = {"layers": ["a"], "recipe": SHORT}
    run(toy_lora_store, tmp_path, alignment=Alignment(HashingEncoder(), logit_scale=20), **short)
    assert px.Expert.load(tmp_path).text.logit_scale == 20.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alignment": Alignment(HashingEncoder(), logit_scale=-1.0)},
            "logit_scale: -1.0",
        ),
        ({"alignment": None}, 'head: "text"'),
        ({"head": "class"}, 'head: "text"'),
        ({"task": px.SeveralClasses()}, 'head: "text"'),
    ],
)
def test_wrong_settings(toy_lora_store, tmp_path, changes, message):
    with pytest.raises(px.ProbexError, match=message):
        run(toy_lora_store, tmp_path / "w", **changes)
    assert not (tmp_path / "w").exists(), "a refused training must not claim its folder"


def test_a_template_needs_a_place_for_the_class():
    with pytest.raises(px.ProbexError, match=r"text\.template: 'a photo'"):
        Alignment(HashingEncoder(), template="a photo")
