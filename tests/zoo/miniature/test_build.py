"""Building the tiny zoo: layout, labels, recorded accuracy, determinism, resume, bad input."""

import ast
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open

from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature import CLASSES, TREES, Settings, build, data, hf_files
from probex_jax.zoo.miniature.finetuning import accuracy, fine_tune
from probex_jax.zoo.miniature.settings import recipes

_TINY = Settings(
    trees=("MiniMAE", "MiniResNet"),
    models=10,
    seed=7,
    chosen=10,
    steps=(3, 5),
    learning_rates=(1e-3, 3e-3),
    weight_decays=(1e-4, 1e-2),
    batch_size=8,
    pretraining_steps=4,
    pretraining_batch_size=8,
    pretraining_rate=2e-3,
    models_at_once=4,
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo, the summaries of its building, and the progress it reported."""
    out = tmp_path_factory.mktemp("zoo")
    progress = []
    summaries = build(_TINY, out, progress.append)
    return out, summaries, progress


def _models(tree_folder):
    return sorted(tree_folder.glob("*/models--*/snapshots/*/model.safetensors"))


def _metadata(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def _contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout_is_model_js(zoo):
    out, summaries, progress = zoo
    assert sum(progress) == 2 * _TINY.models
    for summary in summaries:
        folder = out / summary.tree
        assert summary.models == {"train": 7, "val": 1, "test": 2}
        assert json.loads((folder / "zoo.json").read_text())["classes"] == list(CLASSES)
        assert {path.name for path in (folder / "root").iterdir()} == {
            "config.json",
            "model.safetensors",
        }
        numbers = []
        for split, count in summary.models.items():
            cached = sorted((folder / split).iterdir())
            assert len(cached) == count
            for model in cached:
                prefix, number = model.name.rsplit("_", 1)
                assert prefix == f"models--MiniZoo--{summary.tree}__model_idx"
                numbers.append(int(number))
                revision = (model / "refs" / "main").read_text()
                assert len(revision) == 40
                assert set(revision) <= set("0123456789abcdef")
                assert (model / "snapshots" / revision / "config.json").is_file()
                path = model / "snapshots" / revision / "model.safetensors"
                assert _metadata(path)["model_idx"] == str(int(number))
        assert sorted(numbers) == list(range(_TINY.models))
        assert not list(folder.rglob(".partial*"))


def test_labels_and_settings_of_models_are_in_their_files(zoo):
    out, _, _ = zoo
    orders = set()
    for path in _models(out / "MiniMAE") + _models(out / "MiniResNet"):
        metadata = _metadata(path)
        chosen = ast.literal_eval(metadata["dataset_chosen_targets"])
        assert len(set(chosen)) == _TINY.chosen
        assert set(chosen) <= set(CLASSES)
        orders.add(tuple(chosen))
        config = json.loads((path.parent / "config.json").read_text())
        assert list(config["id2label"].values()) == chosen
        assert int(metadata["steps"]) in _TINY.steps
        assert 1e-3 <= float(metadata["learning_rate"]) <= 3e-3
        assert 1e-4 <= float(metadata["weight_decay"]) <= 1e-2
    assert len(orders) == 2 * _TINY.models, "models share their classes"
    assert any(list(order) != sorted(order, key=CLASSES.index) for order in orders)


def test_recorded_accuracy_is_that_of_the_written_file(zoo):
    out, summaries, _ = zoo
    for summary in summaries:
        architecture = TREES[summary.tree].architecture
        held_back = data.load(architecture.image_size).held_back
        score = jax.jit(lambda p, x, architecture=architecture: accuracy(architecture, p, x))
        recorded = []
        for path in _models(out / summary.tree):
            metadata = _metadata(path)
            recorded.append(float(metadata["accuracy"]))
            chosen = ast.literal_eval(metadata["dataset_chosen_targets"])
            own = held_back[[CLASSES.index(name) for name in chosen]]
            assert float(score(hf_files.load(path), own)) == pytest.approx(
                recorded[-1], abs=1.5 / (own.shape[0] * own.shape[1])
            )
        assert summary.accuracy == pytest.approx(np.mean(recorded))
        assert len(set(recorded)) > 1


def test_resumed_and_repeated_builds_give_the_same_bytes(zoo, tmp_path):
    out, _, _ = zoo
    name = "MiniResNet"
    shutil.copytree(out / name, tmp_path / "cut" / name)
    for path in _models(tmp_path / "cut" / name)[::3]:
        shutil.rmtree(path.parents[2])
    kept = {p: p.stat().st_mtime_ns for p in _models(tmp_path / "cut" / name)}
    torn = tmp_path / "cut" / name / ".partial-models--MiniZoo--MiniResNet__model_idx_0000"
    (torn / "refs").mkdir(parents=True)  # what a killed build may leave
    progress = []
    only = dataclasses.replace(_TINY, trees=(name,))
    build(only, tmp_path / "cut", progress.append)
    assert progress[0] == len(kept)
    assert sum(progress) == _TINY.models
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "finished models were built again"
    assert _contents(tmp_path / "cut" / name) == _contents(out / name)
    build(only, tmp_path / "anew")
    assert _contents(tmp_path / "anew" / name) == _contents(out / name)


def test_another_seed_gives_other_models():
    other = dataclasses.replace(_TINY, seed=8)
    ours, theirs = recipes(_TINY, "MiniMAE"), recipes(other, "MiniMAE")
    assert all(a.classes != b.classes for a, b in zip(ours, theirs, strict=True))
    assert recipes(_TINY, "MiniMAE") == ours
    assert recipes(_TINY, "MiniMAE") != recipes(_TINY, "MiniSupViT")


def test_side_by_side_is_one_by_one(zoo):
    out, _, _ = zoo
    architecture = TREES["MiniMAE"].architecture
    digits = data.load(architecture.image_size)
    root = hf_files.load(out / "MiniMAE" / "root" / "model.safetensors")

    def tune(batch):
        return fine_tune(architecture, root, digits, batch, batch_size=8, max_steps=5)

    batch = [*recipes(_TINY, "MiniMAE")[:4]]
    assert len({recipe.steps for recipe in batch}) > 1, "the test needs models that wait"
    together, scores = tune(batch)
    for place, recipe in list(enumerate(batch))[1:3]:
        alone, score = tune([recipe])
        for name, value in alone.items():
            if name.endswith("key.bias"):  # softmax undoes it: its gradient is rounding alone
                continue
            np.testing.assert_allclose(value[0], together[name][place], rtol=1e-3, atol=1e-5)
        assert score[0] == pytest.approx(scores[place], abs=0.01)


def test_other_settings_are_refused_by_name(zoo):
    out, _, _ = zoo
    other = dataclasses.replace(_TINY, seed=8, steps=(3, 4))
    with pytest.raises(ProbexError, match=r"another config: seed is 7 there, 8 here; steps is "):
        build(other, out)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trees", ("MiniViT",), "no tree 'MiniViT'; there are MiniSupViT"),
        ("trees", (), "at least one tree"),
        ("trees", ("MiniMAE", "MiniMAE"), "each once"),
        ("chosen", 21, "not between 1 and 20"),
        ("steps", (), "steps: empty"),
        ("steps", (0,), "less than 1"),
        ("models", 0, "models: 0 is less than 1"),
        ("learning_rates", (1e-2, 1e-3), "learning_rates: expected"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(ProbexError, match=message):
        dataclasses.replace(_TINY, **{field: value})


def test_files_of_strided_arrays_hold_their_values(tmp_path):
    strided = np.arange(12.0).reshape(3, 4).T
    path = tmp_path / "x.safetensors"
    path.write_bytes(hf_files.serialise({"w": strided}, {}))
    np.testing.assert_array_equal(hf_files.load(path)["w"], strided)
