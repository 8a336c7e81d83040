"""Which models a folder holds."""

import os
import shutil

import pytest

from probex_jax import ProbexError
from probex_jax.search import find_models
from probex_jax.search.embedding import key


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
        "loose/z.sft",
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
        "loose/z",
        "lora/concept",
        "models--org--hub",
        "pickled",
    ]
    assert {model.split for model in find_models(tmp_path)} == {""}


def test_models_of_every_format_are_found(tmp_path):
    for name in (
        "a/one.safetensors",
        "a/one.gguf",
        "a/two.npz",
        "a/three.msgpack",
        "a/four.h5",
        "flax/flax_model.msgpack",
        "numbered/checkpoint_1",
        "numbered/checkpoint_2",
        "gguf/x-00001-of-00002.gguf",
        "gguf/x-00002-of-00002.gguf",
        "orbax1/_METADATA",
        "orbax2/_METADATA",
        "orbax2/d/0",
        "quantised/x.GGUF",
        "other/notes.json",
    ):
        touch(tmp_path / name)
    found = {model.id: model.path for model in find_models(tmp_path)}
    assert found.keys() == {
        *("a/one", "a/one.safetensors", "a/two", "a/three", "a/four", "flax", "numbered", "gguf"),
        *("orbax1", "orbax2", "quantised"),
    }
    assert found["orbax2"] == tmp_path / "orbax2"
    assert found["quantised"] == tmp_path / "quantised" / "x.GGUF"


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


def test_a_malformed_zoo_in_a_folder_is_listed_with_its_fault(tmp_path):
    touch(tmp_path / "good.safetensors")
    touch(tmp_path / "repo" / "train" / "a.safetensors")
    touch(tmp_path / "data" / "train" / "a.jpg")
    (tmp_path / "repo" / "zoo.json").write_text("{")
    found = {model.id: model.fault for model in find_models(tmp_path)}
    assert found.keys() == {"good", "repo", "data"}
    assert "zoo.json is not valid JSON" in found["repo"]
    assert "no models" in found["data"]
    assert found["good"] == ""
    with pytest.raises(ProbexError, match=r"zoo\.json is not valid JSON"):
        find_models(tmp_path / "repo")


@pytest.mark.parametrize("split", ["test", "test_holdout"])
def test_a_split_of_a_zoo_is_listed_as_the_zoo_lists_it(tmp_path, monkeypatch, split):
    for place in ("train/a", "train/b", f"{split}/c", f"{split}/d"):
        touch(tmp_path / "Z" / place / "model.safetensors")
    touch(tmp_path / "Z" / split / "e.safetensors")
    (tmp_path / "Z" / "zoo.json").write_text('{"tree": "Zed", "texts": {"n1": "a wren"}}')
    (tmp_path / "Z" / "labels.json").write_text('{"c": ["n1"]}')
    whole = [model for model in find_models(tmp_path / "Z") if model.split == split]
    assert [model.id for model in whole] == ["c", "d", "e"]
    assert whole[0].stated == ["n1"]
    assert list(find_models(tmp_path / "Z" / split)) == whole
    monkeypatch.chdir(tmp_path / "Z" / split)
    key_of = {model.id: key(model.path) for model in whole}
    assert {model.id: key(model.path) for model in find_models(".")} == key_of


def test_a_folder_named_as_a_split_may_be_no_part_of_a_zoo(tmp_path):
    touch(tmp_path / "test" / "a" / "b" / "x.safetensors")
    touch(tmp_path / "test" / "a" / "b" / "y.safetensors")
    (tmp_path / "zoo.json").write_text("{")
    assert ids(tmp_path / "test") == ["a/b/x", "a/b/y"]


def test_a_folder_of_one_file_is_keyed_by_the_file(tmp_path):
    file = tmp_path / "mine" / "lora" / "pytorch_lora_weights.safetensors"
    touch(file)
    (before,) = find_models(tmp_path)
    assert (before.id, before.path) == ("mine/lora", file)
    assert [(m.id, m.path) for m in find_models(file.parent)] == [("lora", file)]
    touch(file.with_name("other.safetensors"))
    models = find_models(tmp_path)
    assert [m.id for m in models] == ["mine/lora/other", "mine/lora/pytorch_lora_weights"]
    assert before.path in {m.path for m in models}


def test_a_zoos_models_have_the_keys_that_they_have_outside_of_it(tmp_path):
    for name in (
        "a/pytorch_lora_weights.safetensors",
        "b/model.safetensors",
        "c/snapshots/0/model.safetensors",
        "d/model.safetensors.index.json",
        "e.safetensors",
    ):
        touch(tmp_path / "Z" / "train" / name)
    in_zoo = {m.id: key(m.path) for m in find_models(tmp_path / "Z")}
    outside = {m.id: key(m.path) for m in find_models(_moved(tmp_path / "Z" / "train"))}
    assert {id: path.replace("/plain/", "/Z/train/") for id, path in outside.items()} == in_zoo
    assert in_zoo["a"] == str(tmp_path / "Z" / "train" / "a" / "pytorch_lora_weights.safetensors")
    assert in_zoo["b"] == str(tmp_path / "Z" / "train" / "b")


def _moved(split):
    return shutil.copytree(split, split.parents[1] / "plain")


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


def test_an_emptied_folder_or_zoo_holds_none_where_that_is_asked_for(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "zoo" / "train").mkdir(parents=True)
    for name in ("plain", "zoo"):
        assert find_models(tmp_path / name, may_be_empty=True) == ()
        with pytest.raises(ProbexError, match="no models"):
            find_models(tmp_path / name)
    with pytest.raises(ProbexError, match="no such folder"):
        find_models(tmp_path / "nowhere", may_be_empty=True)
