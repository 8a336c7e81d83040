"""Sweeps that keep a committee: chosen on validation alone, tested once."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import Alignment, best_committee, committee, evaluate, load_experts
from probex_jax.fitting import Adam, SeveralClasses, Texts
from probex_jax.integrity import unsealed
from probex_jax.language import HashingEncoder
from probex_jax.search import Subject, measure
from probex_jax.sweeps import sweep
from tests.conftest import CLASSES
from tests.end_to_end import warm
from tests.sweeps.of_layers import of_layer
from tests.sweeps.test_sweeps import check_same_files, same

pytestmark = pytest.mark.xdist_group("sweeps")

RECIPE = Adam(epochs=30, eval_every=10, batch_size=12, learning_rate=1e-2, l2=1e-2)
DENSE = {"encoder": {"name": "dense"}, "head": "none", "recipe": RECIPE}


def write_tree(zoo, *, blank_test=False):
    """Models in which three layers carry the classes, each a little, and one does not."""
    for index in range(60):
        split = ("train", "val", "test")[(index >= 36) + (index >= 48)]
        rng = np.random.default_rng(index)
        chosen = rng.permutation(len(CLASSES))[:3]
        signal = 0.0 if blank_test and split == "test" else 0.35
        weights = {"b.weight": rng.normal(size=(12, 16))}
        for number, layer in enumerate(("a.weight", "d.weight", "e.weight")):
            directions = np.random.default_rng([number]).normal(size=(len(CLASSES), 12, 16))
            weights[layer] = signal * directions[chosen].sum(0) + rng.normal(size=(12, 16))
        folder = zoo / split / f"m{index:02d}"
        folder.mkdir(parents=True)
        arrays = {name: value.astype(np.float32) for name, value in weights.items()}
        labels = str([CLASSES[i] for i in chosen])
        save_file(arrays, folder / "model.safetensors", {"dataset_chosen_targets": labels})
    return zoo


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committee")
    return px.pack(px.scan(write_tree(folder / "Toy")), folder / "store").store


@pytest.fixture(scope="module")
def swept(tree, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swept")
    return workdir, sweep(tree, workdir, committee=3, **DENSE)


def by_layer(workdir, store, split):
    """What the experts of all layers say of a split."""
    found = {}
    for layer in store.layers:
        expert = of_layer(workdir, layer)
        found[layer] = np.asarray(expert.logits(store.matrices(layer, split)))
    return found


def test_the_best_committee_is_kept_and_told_of(swept, tree):
    workdir, result = swept
    answers, y = by_layer(workdir, tree, "val"), tree.targets("val")
    layers = best_committee(answers, y, 3, SeveralClasses())
    assert 1 < len(layers) <= 3
    assert tuple(result.expert.layers) == layers
    metrics = unsealed(json.loads((workdir / "metrics.json").read_text()), workdir)
    assert metrics == result.metrics
    assert (metrics["layers"], metrics["layer"]) == ({"expert": list(layers)}, layers[0])
    accuracies = {layer: np.mean((answers[layer] > 0) == (y > 0.5)) for layer in tree.layers}
    assert metrics["val_accuracy_by_layer"] == pytest.approx(accuracies)
    together = np.mean([answers[layer] for layer in layers], axis=0)
    assert metrics["committee_accuracy"] == pytest.approx(np.mean((together > 0) == (y > 0.5)))
    assert metrics["encoder"] == {"name": "dense"}
    assert result.expert.card.figures.keys() == {
        "committee_accuracy", "test_accuracy", "test_auc", "test_coverage",
        "val_accuracy_by_layer", "val_chance",
    }  # fmt: skip
    answers = by_layer(workdir, tree, "test")
    together = np.mean([answers[layer] for layer in layers], axis=0)
    score, logits = evaluate(px.Expert.load(workdir), tree)
    np.testing.assert_allclose(logits, together, rtol=1e-5, atol=1e-5)
    right = (together > 0) == (tree.targets("test") > 0.5)
    assert result.test.value == score.value == pytest.approx(right.mean())
    assert metrics["test_accuracy"]["value"] == result.test.value


def test_the_choice_never_sees_the_test_split(swept, tree, tmp_path):
    """Other test models, in which no layer carries anything: the same committee, to the bit."""
    zoo = write_tree(tmp_path / "Toy", blank_test=True)
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    assert store.hash != tree.hash
    result, (_, original) = sweep(store, tmp_path / "w", committee=3, **DENSE), swept
    assert list(result.expert.layers) == list(original.expert.layers)
    same(result.expert, original.expert)
    figure = "committee_accuracy"
    assert result.metrics[figure] == original.metrics[figure]
    assert result.test.value < original.test.value - 0.1


@pytest.mark.parametrize("most", [1, 2])
def test_the_most_layers_are_respected(swept, tree, tmp_path, most):
    workdir, _ = swept
    result = sweep(tree, tmp_path, committee=most, **DENSE)
    answers = by_layer(workdir, tree, "val")
    expected = best_committee(answers, tree.targets("val"), most, SeveralClasses())
    assert tuple(result.expert.layers) == expected


def test_a_choice_that_was_interrupted_is_made_again(swept, tree, tmp_path, monkeypatch):
    """All layers are finished; nothing is trained, and the same is chosen."""
    workdir, result = swept
    shutil.copytree(workdir, tmp_path / "w")
    (tmp_path / "w" / "metrics.json").unlink()
    for layer in result.expert.layers:
        of_layer(workdir, layer).save(tmp_path / "w" / "layers" / layer / "expert")
    monkeypatch.setattr(sys.modules["probex_jax.sweeps.train"], "train", None)
    again = sweep(tree, tmp_path / "w", committee=3, **DENSE)
    assert again.metrics == result.metrics
    check_same_files(tmp_path / "w", workdir)


def test_the_chosen_are_kept_once(swept, tree):
    """Among the layers are those that were not chosen, and nothing is trained again."""
    workdir, result = swept
    kept = {path.parent.name for path in workdir.glob("layers/*/expert")}
    assert kept == set(tree.layers) - set(result.expert.layers)
    assert kept
    done = []
    again = sweep(tree, workdir, committee=3, **DENSE, on_progress=lambda *told: done.append(told))
    same(again.expert, result.expert)
    assert done == [(layer, RECIPE.epochs) for layer in tree.layers]


@pytest.mark.parity
def test_evaluate_takes_a_committee(swept, tree):
    workdir, result = swept
    done = warm.run("evaluate", f"--experts={workdir}", f"--store={tree.path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{result.test.value:.3f}" in done.stdout
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    shutil.rmtree(workdir / "evaluation")
    assert metrics["layers"] == list(result.expert.layers)
    assert metrics["classify"]["accuracy"]["value"] == result.test.value


@pytest.fixture(scope="module")
def aligned(toy_lora_store, tmp_path_factory):
    """Both layers of the toy LoRAs, so briefly trained that more candidates are harder to tell."""
    workdir = tmp_path_factory.mktemp("aligned")
    result = sweep(
        toy_lora_store,
        workdir,
        encoder={"name": "dense", "rep_dim": 16},
        head="text",
        recipe=Adam(epochs=4, eval_every=2, batch_size=32, learning_rate=3e-3, l2=0.0),
        alignment=Alignment(HashingEncoder(), spec="hashing", logit_scale=20.0),
        normalise="scale",
        committee=2,
    )
    return workdir, result


def test_the_held_out_committee_is_chosen_on_held_out_models(aligned, toy_lora_store):
    workdir, result = aligned
    store, experts = toy_lora_store, load_experts(workdir)
    seen, held_out = list(store.seen_classes), list(store.held_out_classes)
    candidates = {"val": seen, "val_holdout": held_out + seen}
    for split, folder in (("val", "expert"), ("val_holdout", "expert_val_holdout")):
        sentences = [f"a photo of a {name}" for name in candidates[split]]
        texts = HashingEncoder().encode(sentences)
        answers, kept = {}, {}
        for layer in store.layers:
            kept[layer] = of_layer(workdir, layer, folder=folder)
            assert kept[layer].card.selected_on == split
            answers[layer] = np.asarray(kept[layer].logits(store.matrices(layer, split), texts))
        y = store.class_indices(split, candidates[split])
        expected = best_committee(answers, y, 2, Texts())
        assert tuple(experts[split].layers) == expected
        assert result.metrics["layers"][folder] == list(expected)
        card = experts[split].card
        assert card.selected_on == split
        right = np.mean([answers[layer] for layer in expected], axis=0).argmax(1) == y
        assert card.figures["committee_accuracy"] == pytest.approx(right.mean())
        for member in experts[split].members:
            same(member, kept[member.layer])


def test_representations_of_a_committee_are_measured(aligned, toy_lora_store):
    workdir, result = aligned
    both = {
        split: committee(
            [of_layer(workdir, layer, folder=folder) for layer in toy_lora_store.layers]
        )
        for split, folder in (("val", "expert"), ("val_holdout", "expert_val_holdout"))
    }
    subject = Subject(both, toy_lora_store, neighbours=3)
    tasks = ("classify", "zero_shot", "knn", "occ", "retrieval")
    found = {task: measure(subject, task) for task in tasks}
    assert all(figures for figures in found.values())
    known, asked = (both["val"].encode(toy_lora_store.by_layer(s)) for s in ("train", "test"))
    labels = {
        s: np.array([m.labels[0] for m in toy_lora_store.split(s)]) for s in ("train", "test")
    }
    near = labels["train"][np.asarray(asked @ known.T).argsort(axis=1)[:, ::-1][:, :3]]
    precision = np.mean(near == labels["test"][:, None])
    measured = {figure.key: figure.score.value for figure in found["retrieval"]}
    assert measured["precision_seen"] == pytest.approx(precision, abs=0.03)
    score, _ = evaluate(both["val"], toy_lora_store)
    assert found["classify"][0].score.value == score.value
    assert result.zero_shot is not None
