"""Which models a folder holds."""

import os

import pytest

from probex_jax import ProbexError
from probex_jax.search import find_models


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def ids(folder):
    return [model.id for model in find_models(folder)]


def test_models_of_every_kind_are_found_in_order(tmp_path):
    for name in (
        "b/one/model.safetensors",
        "b/one/extra.safetensors",
        "b/one/checkpoints/model.safetensors",
        "a/shards/model.safetensors.index.json",
        "a/shards/model-00001-of-00002.safetensors",
        "models--org--hub/snapshots/0/model.safetensors",
        "lora/concept/pytorch_lora_weights.safetensors",
        "loose/x.safetensors",
        "loose/y.safetensors",
        "pickled/pytorch_model.bin",
        ".cache/model.safetensors",
        "notes/readme.txt",
    ):
        touch(tmp_path / name)
    assert ids(tmp_path) == [
        "a/shards",
        "b/one",
        "loose/x",
        "loose/y",
        "lora/concept",
        "models--org--hub",
        "pickled",
    ]
    assert {model.split for model in find_models(tmp_path)} == {""}


def test_a_zoo_keeps_its_ids_splits_and_tree(toy_zoo):
    models = find_models(toy_zoo)
    assert len(models) == 100
    assert models[0].id == "model_0000"
    assert {model.tree for model in models} == {"Toy"}
    assert {model.split for model in models} == {"train", "val", "test"}


def test_zoos_in_a_folder_are_told_apart_by_their_paths(tmp_path):
    for zoo in ("A", "B"):
        touch(tmp_path / "zoos" / zoo / "train" / "m" / "model.safetensors")
    (tmp_path / "zoos" / "B" / "zoo.json").write_text('{"tree": "Bee", "texts": {"n1": "a bee"}}')
    models = find_models(tmp_path)
    assert [(m.id, m.tree, m.split) for m in models] == [
        ("zoos/A/m", "A", "train"),
        ("zoos/B/m", "Bee", "train"),
    ]
    assert models[1].texts == {"n1": "a bee"}


def test_one_model_is_a_folder_of_one(tmp_path):
    touch(tmp_path / "vit" / "model.safetensors")
    assert [(m.id, m.path) for m in find_models(tmp_path / "vit")] == [("vit", tmp_path / "vit")]


def test_a_file_and_a_folder_of_one_name_have_two_ids(tmp_path):
    touch(tmp_path / "m" / "model.safetensors")
    touch(tmp_path / "m.safetensors")
    assert ids(tmp_path) == ["m", "m.safetensors"]


def test_links_that_lead_back_end(tmp_path):
    touch(tmp_path / "a" / "model.safetensors")
    touch(tmp_path / "b" / "x.safetensors")
    touch(tmp_path / "b" / "y.safetensors")
    os.symlink(tmp_path, tmp_path / "b" / "up")
    os.symlink(tmp_path / "a", tmp_path / "c")
    assert ids(tmp_path) == ["a", "b/x", "b/y"]


def test_nothing_to_find_is_said(tmp_path):
    with pytest.raises(ProbexError, match="no such folder"):
        find_models(tmp_path / "none")
    with pytest.raises(ProbexError, match="no models in it"):
        find_models(tmp_path)
