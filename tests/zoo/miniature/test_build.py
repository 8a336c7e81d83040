"""Building the tiny zoo: layout, labels, recorded accuracy, determinism, resume, bad input."""

import ast
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import zoo_miniature
from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature import CLASSES, TREES, Lora, Settings, ViT, build, data, hf_files
from probex_jax.zoo.miniature.finetuning import accuracy, fine_tune
from probex_jax.zoo.miniature.recipes import classifier_recipes as recipes
from tests.zoo.miniature.reading import contents, metadata_of

# One worker builds the zoo; only one tree, as nearly all of the time is compilation.
pytestmark = pytest.mark.xdist_group("zoo")

_TREE = "MiniMAE"

_LORA = Lora(
    digits=3,
    transforms=3,
    models=3,
    rank=4,
    images=(5, 7),
    steps=(3, 5),
    learning_rates=(3e-3, 1e-2),
    batch_size=4,
    pretraining_steps=4,
    pretraining_batch_size=8,
    pretraining_rate=2e-3,
    models_at_once=4,
)

_TINY = Settings(
    trees=(_TREE,),
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
    # Not the default, and it compiles sooner.
    vit=ViT(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40),
    lora=_LORA,
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo, the summaries of its building, and the progress it reported."""
    out = tmp_path_factory.mktemp("zoo")
    progress = []
    return out, build(_TINY, out, progress.append), progress


def _models(tree_folder):
    return sorted(tree_folder.glob("*/models--*/snapshots/*/model.safetensors"))


def test_layout_is_model_js(zoo):
    out, summaries, progress = zoo
    assert sum(progress) == _TINY.models
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
                assert metadata_of(path)["model_idx"] == str(int(number))
        assert sorted(numbers) == list(range(_TINY.models))
        assert not list(folder.rglob(".partial*"))


def test_labels_and_settings_of_models_are_in_their_files(zoo):
    out, _, _ = zoo
    orders = set()
    for path in _models(out / _TREE):
        metadata = metadata_of(path)
        chosen = ast.literal_eval(metadata["dataset_chosen_targets"])
        assert len(set(chosen)) == _TINY.chosen
        assert set(chosen) <= set(CLASSES)
        orders.add(tuple(chosen))
        config = json.loads((path.parent / "config.json").read_text())
        assert list(config["id2label"].values()) == chosen
        assert int(metadata["steps"]) in _TINY.steps
        assert 1e-3 <= float(metadata["learning_rate"]) <= 3e-3
        assert 1e-4 <= float(metadata["weight_decay"]) <= 1e-2
    assert len(orders) == _TINY.models, "models share their classes"
    assert any(list(order) != sorted(order, key=CLASSES.index) for order in orders)


def test_the_table_has_no_column_that_says_the_same_of_all_models(zoo):
    out, _, _ = zoo
    header, *rows = (out / _TREE / "labels.csv").read_text().splitlines()
    assert header == "model,learning_rate,weight_decay,steps,accuracy"
    assert len(rows) == _TINY.models


def test_recorded_accuracy_is_that_of_the_written_file(zoo):
    out, summaries, _ = zoo
    for summary in summaries:
        held_back = data.load(_TINY.vit.image_size).held_back
        score = jax.jit(lambda p, x: accuracy(_TINY.vit, p, x))
        recorded = []
        for path in _models(out / summary.tree):
            metadata = metadata_of(path)
            recorded.append(float(metadata["accuracy"]))
            chosen = ast.literal_eval(metadata["dataset_chosen_targets"])
            own = held_back[[CLASSES.index(name) for name in chosen]]
            assert float(score(hf_files.load(path), own)) == pytest.approx(
                recorded[-1], abs=1.5 / (own.shape[0] * own.shape[1])
            )
        assert summary.score == pytest.approx(np.mean(recorded))
        assert len(set(recorded)) > 1


def test_the_architecture_is_that_of_the_settings(zoo):
    out, _, _ = zoo
    card = json.loads((out / _TREE / "zoo.json").read_text())
    assert card["settings"]["vit"] == dataclasses.asdict(_TINY.vit)
    for path in (*_models(out / _TREE), out / _TREE / "root" / "model.safetensors"):
        config = json.loads((path.parent / "config.json").read_text())
        assert config.items() >= dataclasses.asdict(_TINY.vit).items()
        shapes = {name: value.shape for name, value in hf_files.load(path).items()}
        assert shapes == _TINY.vit.shapes(len(config["id2label"]))
    with pytest.raises(ProbexError, match=r"vit\.hidden_size"):
        build(dataclasses.replace(_TINY, vit=dataclasses.replace(_TINY.vit, hidden_size=48)), out)


@pytest.mark.parametrize("tree", ["MiniSupViT", "MiniMAE", "MiniResNet"])
def test_zoos_from_before_the_architecture_was_a_setting_are_gone_on_with(tree):
    settings = dataclasses.replace(_TINY, vit=ViT())
    assert "vit" not in TREES[tree].card(settings, tree)["settings"]
    assert ("vit" in TREES[tree].card(_TINY, tree)["settings"]) == (tree != "MiniResNet")


def test_the_wide_zoo_is_wide():
    config = zoo_miniature.get_config("wide").to_dict()
    vit = ViT(**config["vit"])
    assert config["models"] >= 300
    assert vit.hidden_size >= 192
    assert vit.intermediate_size == 4 * vit.hidden_size


_KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from probex_jax.zoo.miniature import Lora, Settings, Variety, ViT, build

def kill_after_a_batch(models):
    if models:
        os.kill(os.getpid(), signal.SIGKILL)

build({settings!r}, Path(sys.argv[1]), kill_after_a_batch)
"""


@pytest.mark.parity
def test_a_killed_build_goes_on_to_the_same_bytes(zoo, tmp_path):
    out, _, _ = zoo
    script = _KILLED_BUILD.format(settings=_TINY)
    command = [sys.executable, "-c", script, tmp_path]
    killed = subprocess.run(command, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    kept = {path: path.stat().st_mtime_ns for path in _models(tmp_path / _TREE)}
    assert len(kept) == _TINY.models_at_once
    torn = tmp_path / _TREE / f".partial-models--MiniZoo--{_TREE}__model_idx_0000"
    (torn / "refs").mkdir(parents=True)  # what a kill amid a model leaves
    progress = []
    build(_TINY, tmp_path, progress.append)
    assert progress[0] == len(kept)
    assert sum(progress) == _TINY.models
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "models were built again"
    assert contents(tmp_path) == contents(out)


def test_what_has_lost_its_weights_is_built_again(zoo, tmp_path):
    out, _, _ = zoo
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    first, second, *others = _models(tmp_path / _TREE)
    shutil.rmtree(first.parents[1])  # all snapshots
    second.unlink()
    (tmp_path / _TREE / "root" / "model.safetensors").unlink()
    progress = []
    build(_TINY, tmp_path, progress.append)
    assert progress[0] == len(others)
    assert contents(tmp_path) == contents(out)


def test_another_seed_gives_other_models():
    other = dataclasses.replace(_TINY, seed=8)
    ours, theirs = recipes(_TINY, "MiniMAE"), recipes(other, "MiniMAE")
    assert all(a.classes != b.classes for a, b in zip(ours, theirs, strict=True))
    assert recipes(_TINY, "MiniMAE") == ours
    assert recipes(_TINY, "MiniMAE") != recipes(_TINY, "MiniSupViT")


def test_models_do_not_depend_on_their_neighbours(zoo):
    out, _, _ = zoo
    digits = data.load(_TINY.vit.image_size)
    root = hf_files.load(out / _TREE / "root" / "model.safetensors")

    def tune(batch):
        return fine_tune(_TINY.vit, root, digits, batch, batch_size=8, max_steps=5)

    batch = recipes(_TINY, _TREE)[:4]
    assert len({recipe.steps for recipe in batch}) > 1, "the test needs models that wait"
    mixed, scores = tune(batch)
    for place in (1, 2):
        alike, score = tune([batch[place]] * 4)
        for name, value in alike.items():
            np.testing.assert_array_equal(value[3], mixed[name][place])
        assert score[3] == scores[place]


def test_other_settings_are_refused_by_name(zoo):
    out, _, _ = zoo
    other = dataclasses.replace(_TINY, seed=8, steps=(3, 4))
    with pytest.raises(ProbexError, match=r"another config: seed is 7 there, 8 here; steps is "):
        build(other, out)


IMPOSSIBLE = {
    "trees": (("MiniViT",), (), (_TREE, _TREE), _TREE, ([_TREE],), None),
    "models": (0, 10.0, True),
    "seed": (-1, 2**63, "7"),
    "chosen": (21, None),
    "steps": ((), (0,), (2**31,), (3, 5.0), 5),
    "learning_rates": ((1e-2, 1e-3), (1e-3,), 1e-3, (1e-3, float("nan"))),
    "weight_decays": ((0.0, 1e-2), (1e-4, float("inf")), ("1e-4", 1e-2)),
    "batch_size": (-3,),
    "pretraining_steps": (2.5,),
    "pretraining_batch_size": (None,),
    "pretraining_rate": (0.0, float("nan"), 10**400),
    "models_at_once": (0,),
    "vit": ({"hidden_size": 32}, None),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in IMPOSSIBLE for value in IMPOSSIBLE[field]]
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ProbexError, match=f"^{field}: "):
        dataclasses.replace(_TINY, **{field: value})


IMPOSSIBLE_VITS = {
    "image_size": (12, 0),
    "patch_size": (3, 16),
    "hidden_size": (0, 32.0),
    "num_hidden_layers": (0,),
    "num_attention_heads": (5, True),
    "intermediate_size": (-1,),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, x) for field in IMPOSSIBLE_VITS for x in IMPOSSIBLE_VITS[field]]
)
def test_impossible_architectures_are_refused(field, value):
    with pytest.raises(ProbexError, match=rf"^vit\.{field}: "):
        dataclasses.replace(_TINY, vit=dataclasses.replace(ViT(), **{field: value}))


def test_files_of_strided_arrays_hold_their_values(tmp_path):
    strided = np.arange(12.0).reshape(3, 4).T
    path = tmp_path / "x.safetensors"
    path.write_bytes(hf_files.serialise({"w": strided}, {}))
    np.testing.assert_array_equal(hf_files.load(path)["w"], strided)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self, contents):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ProbexError, match=r"a/config\.json: No space left on device$"):
        hf_files.write(tmp_path, tmp_path / "a", {"config.json": b"{}"})
