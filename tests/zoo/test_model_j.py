"""Text of strangers in a zoo: refused where it is read, by name."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.search import find_models
from probex_jax.zoo.model_j import LABELS_KEY

ODD = ["\ud800", "a\0b", "\x1b[2J"]


def write_model(root, name, labels="['cat']", split="train"):
    """A model, and its path."""
    path = os.fsencode(root / split) + b"/" + name
    os.makedirs(path)
    weights = {"fc.weight": np.ones((2, 3), np.float32)}
    save_file(weights, root / split / "file", {LABELS_KEY: labels} if labels else None)
    os.rename(root / split / "file", path + b"/model.safetensors")


@pytest.fixture
def zoo(tmp_path):
    for name in (b"one", b"two"):
        write_model(tmp_path / "Zoo", name)
    return tmp_path / "Zoo"


def write(zoo, file, content):
    """JSON as anybody may write it: with lone surrogates spelt out."""
    (zoo / file).write_text(content if isinstance(content, str) else json.dumps(content))


def only_skipped(zoo, tmp_path):
    """The reason why one model is skipped, while the others are packed and searchable."""
    summary = px.pack(px.scan(zoo), tmp_path / "store")
    [(name, reason)] = summary.skipped.items()
    assert {model.id for model in summary.store.models} == {"one", "two"} - {name}
    assert px.LayerStore.open(tmp_path / "store").skipped == {name: reason}
    (name + reason).encode()
    assert name.isprintable()
    assert reason.isprintable()
    return name, reason


@pytest.mark.parametrize("text", ODD)
def test_a_label_that_is_no_name_is_that_model_s_fault(zoo, tmp_path, text):
    write(zoo, "labels.json", {"two": ["cat", text]})
    name, reason = only_skipped(zoo, tmp_path)
    assert name == "two"
    assert "labels.json" in reason
    assert repr(text) in reason


@pytest.mark.parametrize("label", [r"['\ud800']", r"['a\x00b']", r'["\u001b[2J"]'])
def test_so_is_one_in_a_header(zoo, tmp_path, label):
    write_model(zoo, b"three", label)
    name, reason = only_skipped(zoo, tmp_path)
    assert name == "three"
    assert LABELS_KEY in reason


@pytest.mark.parametrize("name", [b"caf\xe9", b"\x1b[2J"])
def test_a_name_of_a_folder_that_is_no_text_is_skipped(zoo, tmp_path, name):
    write_model(zoo, name)
    _, reason = only_skipped(zoo, tmp_path)
    assert repr(os.fsdecode(name))[1:-1] in reason
    for folder in (zoo, zoo / "train", tmp_path):
        found = {model.id: model.fault for model in find_models(folder)}
        assert [bool(fault) for fault in found.values()].count(True) == 1
        assert all(id.isprintable() for id in found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *[({"classes": ["cat", text]}, "classes") for text in ODD],
        *[({"tree": text}, "tree") for text in ODD],
        *[({"texts": {text: "a cat"}}, "texts") for text in ODD],
        *[({"texts": {"cat": text}}, "texts") for text in ODD],
        ('{"classes": ' + "[" * 100_000, "nested"),
        ('{"tree": "a", "tree": "b"}', "'tree' twice"),
        ('{"classes": ' + "9" * 10_000 + "}", "JSON"),
        ('{"classes": NaN}', "classes"),
        ("[1]", "expected an object"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "b", "a"]}, "twice"),
        ({"tree": 5}, "tree"),
        ({"texts": []}, "texts"),
        ({"texts": {"a": 3}}, "'a'"),
        ("\ufeff{}", "JSON"),
        ("\0", "JSON"),
    ],
)
def test_zoo_json_is_refused_as_a_whole(zoo, content, says):
    write(zoo, "zoo.json", content)
    with pytest.raises(px.ProbexError, match=rf"zoo\.json.*{says}") as error:
        px.scan(zoo)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"one": ' + "[" * 100_000, "nested"),
        ('{"one": ["cat"], "one": ["dog"]}', "'one' twice"),
        ('{"one": ' + "9" * 10_000 + "}", "JSON"),
        ('["one"]', "expected an object"),
        ("{", "JSON"),
    ],
)
def test_labels_json_is_refused_where_it_is_no_table(zoo, content, says):
    write(zoo, "labels.json", content)
    with pytest.raises(px.ProbexError, match=rf"labels\.json.*{says}"):
        px.scan(zoo)


def test_a_folder_whose_name_is_no_text_needs_a_tree(zoo):
    os.rename(zoo, os.fsencode(zoo.parent) + b"/caf\xe9")
    zoo = zoo.parent / os.fsdecode(b"caf\xe9")
    with pytest.raises(px.ProbexError, match="tree") as error:
        px.scan(zoo)
    assert str(error.value).isprintable()
    write(zoo, "zoo.json", {"tree": "Named"})
    assert px.scan(zoo).tree == "Named"
