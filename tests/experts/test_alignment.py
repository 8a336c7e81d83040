"""Alignment with text on toy LoRAs: training, selection, zero-shot, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import Alignment, Recipe, evaluate, sweep, zero_shot
from probex_jax.language import HashingEncoder
from tests.conftest import HELD_OUT, write_toy_lora, write_toy_lora_zoo

pytestmark = pytest.mark.xdist_group("alignment")

ENCODER = {"name": "probex", "n_probes": 8, "proj_dim": 8, "rep_dim": 32}
RECIPE = Recipe(epochs=60, eval_every=10, batch_size=32, learning_rate=3e-3, l2=0.0)
# For what does not depend on how long training takes; one, so that it is compiled once.
SHORT = Recipe(epochs=1, eval_every=1)
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
    assert result.expert.card["layer"] == "a"
    assert result.layers["a"] > 0.8 > result.layers["b"]
    assert result.test.value > 0.8
    found = result.zero_shot
    assert (found.n_held_out, found.n_all) == (3, 16)
    assert found.among_held_out.n_models == found.among_all.n_models == 24
    assert found.among_held_out.value > 0.6
    assert found.among_held_out.value >= found.among_all.value > 3 / 16
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["zero_shot"]["among_all"]["value"] == found.among_all.value
    assert metrics["n_models"]["test_holdout"] == 24


def test_both_checkpoints_are_kept(swept):
    workdir, result = swept
    for name, split in (("expert", "val"), ("expert_val_holdout", "val_holdout")):
        card = px.Expert.load(workdir / name).card
        assert card["selected_on"] == split
        assert card["layer"] == result.expert.card["layer"]
        accuracies = card["metrics"][f"{split}_accuracies"]
        best = card["metrics"][f"{split}_best_epoch"] // RECIPE.eval_every
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
    truth = [model.labels[0] for model in toy_lora_store.split("test_holdout")]
    among_all = [
        (held_out + seen)[i] == name for i, name in zip(cosines.argmax(1), truth, strict=True)
    ]
    among_held_out = [
        held_out[i] == n for i, n in zip(cosines[:, :3].argmax(1), truth, strict=True)
    ]
    assert result.zero_shot.among_all.value == pytest.approx(np.mean(among_all))
    assert result.zero_shot.among_held_out.value == pytest.approx(np.mean(among_held_out))


def test_factors_and_product_give_the_same_answers(swept, toy_lora_store):
    _, result = swept
    x = toy_lora_store.matrices("a", "test")
    expert = result.expert
    for factors, dense in ((expert.encode(x), expert.encode(x.dense())),):
        error = np.linalg.norm(factors - dense) / np.linalg.norm(dense)
        assert error <= 1e-5


def test_the_scale_is_the_deviation_of_the_training_updates(swept, toy_lora_store):
    _, result = swept
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
    assert store.hash != original.expert.card["store_hash"]
    np.testing.assert_array_equal(
        changed.expert.variables["params"]["encoder"]["probes"],
        original.expert.variables["params"]["encoder"]["probes"],
    )
    assert dict(changed.layers) == dict(original.layers)


def test_running_again_trains_nothing(swept, toy_lora_store, monkeypatch):
    workdir, result = swept
    monkeypatch.setattr("probex_jax.experts.sweeps.train", None)
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
        for a, b in zip(
            jax.tree.leaves(whole.variables), jax.tree.leaves(broken.variables), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        assert broken.card == whole.card


def test_without_held_out_classes_there_is_no_zero_shot(tmp_path, toy_lora_zoo):
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    for split in ("val_holdout", "test_holdout"):
        shutil.rmtree(tmp_path / "ToyLoRA" / split)
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    result = run(store, tmp_path / "w", layers=["a"], recipe=SHORT)
    assert result.zero_shot is None
    assert not (tmp_path / "w" / "expert_val_holdout").exists()
    with pytest.raises(px.ProbexError, match="no held-out classes"):
        zero_shot(result.expert, store)


@pytest.mark.parametrize("missing", ["val_holdout", "test_holdout"])
def test_one_held_out_split_is_enough(tmp_path, toy_lora_zoo, missing):
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    shutil.rmtree(tmp_path / "ToyLoRA" / missing)
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    result = run(store, tmp_path / "w", layers=["a"], recipe=SHORT)
    assert (result.zero_shot is None) == (missing == "test_holdout")
    assert (tmp_path / "w" / "expert_val_holdout").exists() == (missing == "test_holdout")


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


class Other:
    """A text encoder that is not the expert's."""

    def __init__(self, name, dim):
        self.name, self.dim = name, dim

    def encode(self, texts):
        return np.ones([len(texts), self.dim], np.float32)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Other("small", 64), "text encoder small gives 64 dimensions, the expert was aligned with"),
        (Other("other", 512), "text encoder other: the expert was aligned with hashing"),
    ],
)
def test_another_text_encoder_is_refused(swept, toy_lora_store, encoder, message):
    expert = swept[1].expert
    with pytest.raises(px.ProbexError, match=message):
        expert.place(["a cat"], encoder)
    with pytest.raises(px.ProbexError, match=message):
        evaluate(expert, toy_lora_store, "test", encoder)
    with pytest.raises(px.ProbexError, match=message):
        zero_shot(expert, toy_lora_store, encoder=encoder)


def test_texts_are_needed_and_of_the_right_size(swept, toy_lora_store):
    expert = swept[1].expert
    x = toy_lora_store.matrices("a", "test")
    with pytest.raises(px.ProbexError, match="give embeddings of the candidates"):
        expert.logits(x)
    with pytest.raises(px.ProbexError, match=r"text embeddings of shape \(3, 5\)"):
        expert.logits(x, np.ones([3, 5]))
    with pytest.raises(px.ProbexError, match="empty"):
        expert.place([""])


def test_an_expert_trained_on_a_held_out_class_is_refused(swept, tmp_path):
    """Elsewhere the class is held out, here it was trained on."""
    zoo = write_toy_lora_zoo(tmp_path / "ToyLoRA")
    for split in ("train", "val", "test", "val_holdout", "test_holdout"):
        for model in sorted((zoo / split).iterdir()):
            shutil.rmtree(model)
        concept = "red dog" if split.endswith("holdout") else "blue cat"
        write_toy_lora(zoo / split / f"{split}_0", concept, np.random.default_rng(0))
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match="was trained on class 'red dog', which is held out"):
        zero_shot(swept[1].expert, store)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"red cat": "crane", "red dog": "crane"}, "classes 'red dog' and 'red cat' have the same"),
        ({"red cat": "Red Dog!"}, "classes 'red dog' and 'red cat' are the same to text encoder"),
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
    assert px.Expert.load(tmp_path).text["logit_scale"] == 20.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alignment": Alignment(HashingEncoder(), logit_scale=-1.0)},
            "logit_scale: -1.0 is not a number > 0",
        ),
        ({"alignment": None}, 'head: "text" and settings of the text belong together'),
        ({"head": "class"}, 'head: "text" and settings of the text belong together'),
        ({"normalise": "both"}, "normalise: 'both' is not one of none, scale"),
    ],
)
def test_wrong_settings(toy_lora_store, tmp_path, changes, message):
    with pytest.raises(px.ProbexError, match=message):
        run(toy_lora_store, tmp_path / "w", **changes)
    assert not (tmp_path / "w").exists(), "a refused training must not claim its folder"


def test_a_template_needs_a_place_for_the_class():
    with pytest.raises(px.ProbexError, match=r"text\.template: 'a photo' must hold \{class\} once"):
        Alignment(HashingEncoder(), template="a photo")


def test_a_class_expert_has_no_text(toy_store, tmp_path):
    result = sweep(
        toy_store,
        tmp_path,
        encoder=ENCODER,
        head="class",
        recipe=Recipe(epochs=1, eval_every=1),
        layers=["a.weight"],
    )
    with pytest.raises(px.ProbexError, match="knows classes, no text"):
        result.expert.place(["a cat"])
    with pytest.raises(px.ProbexError, match="knows classes, no text"):
        zero_shot(result.expert, toy_store)
