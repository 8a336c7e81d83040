"""Zoos in buckets: listed at once, and packed to the same bits as from the disk."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.buckets import write
from probex_jax.errors import ProbexError
from probex_jax.search import find_models
from tests import s3
from tests.end_to_end.warm import run

ROOT = f"s3://{s3.BUCKET}"


def weights(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(seed).normal(size=(8, 6)).astype("f4")
    save_file({"a.weight": matrix, "a.bias": matrix[0]}, path)


def with_splits(folder):
    for seed, name in enumerate(("train/one", "train/two", "val/three", "test/four")):
        weights(folder / name / "model.safetensors", seed)
    weights(folder / "train" / "five.safetensors", 9)
    weights(folder / "val/models--me--six/snapshots/abc/model.safetensors", 10)
    (folder / "val/models--me--six/refs").mkdir()
    (folder / "val/models--me--six/refs/main").write_text("abc")
    (folder / "train" / ".hidden").mkdir()
    (folder / "train" / ".hidden" / "x.safetensors").write_text("")
    names = ("one", "two", "three", "four", "five", "models--me--six")
    rows = [f"{name},{'xy'[n % 2]}" for n, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["model,kind", *rows]))
    (folder / "zoo.json").write_text('{"tree": "Mine"}')


def flat(folder):
    for seed in range(4):
        weights(folder / "models" / f"m{seed}.safetensors", seed)
    (folder / "labels.json").write_text('{"m0": "x", "m1": "y", "m2": ["x", "y"], "m9": "x"}')
    (folder / "splits.json").write_text(
        '{"kind-0": {"train": ["m0", "m1"], "val": ["m2"], "test": ["m3"]}}'
    )
    (folder / "zoo.json").write_text('{"tree": "Flat", "classes": ["x", "y"]}')


def named(folder):
    weights(folder / "elsewhere" / "w.safetensors", 1)
    (folder / "zoo.json").write_text('{"tree": "N", "models": {"w": "elsewhere/w.safetensors"}}')


@pytest.mark.parametrize("make", [with_splits, flat, named])
def test_as_on_the_disk(server, at, tmp_path, make):
    make(tmp_path / "zoo")
    s3.put(tmp_path / "zoo", at)
    local = px.scan(tmp_path / "zoo")
    asked = server.asked
    there = px.scan(at)
    assert server.asked - asked < 8
    assert [(m.id, m.split, m.stated) for m in there.models] == [
        (m.id, m.split, m.stated) for m in local.models
    ]
    assert (there.tree, there.classes, there.unmatched) == (
        local.tree,
        local.classes,
        local.unmatched,
    )
    assert there.tables == local.tables
    for one, other in zip(there.models, local.models, strict=True):
        assert one.where == f"{at}/{other.path.relative_to(tmp_path / 'zoo').as_posix()}"
        with one.open() as m, other.open() as n:
            np.testing.assert_array_equal(m.matrix("a.weight"), n.matrix("a.weight"))


def test_packs_to_the_same_bits_whatever_fails(server, at, tmp_path):
    with_splits(tmp_path / "zoo")
    (tmp_path / "zoo" / "labels.csv").unlink()
    labels = dict.fromkeys(("one", "three", "five", "models--me--six"), "x")
    labels |= dict.fromkeys(("two", "four"), "y")
    (tmp_path / "zoo" / "labels.json").write_text(json.dumps(labels))
    s3.put(tmp_path / "zoo", at)
    local = px.pack(px.scan(tmp_path / "zoo"), tmp_path / "local").store
    server.share = 0.1
    try:
        there = px.pack(px.scan(at), tmp_path / "there").store
    finally:
        server.share = 0.0
    assert [m.id for m in there.models] == [m.id for m in local.models]
    assert there.tables == local.tables
    for split in ("train", "val", "test"):
        for layer in local.layers:
            np.testing.assert_array_equal(
                there.matrices(layer, split), local.matrices(layer, split)
            )


@pytest.mark.parity
def test_the_command_takes_an_address(server, at, tmp_path):
    flat(tmp_path / "zoo")
    s3.put(tmp_path / "zoo", at)
    done = run("pack", f"--zoo={at}", f"--store={tmp_path}/store", env=server.env)
    assert done.returncode == 0, done.stderr
    store = px.LayerStore.open(tmp_path / "store")
    assert [model.id for model in store.models] == ["m0", "m1", "m2", "m3"]
    assert store.models[3].source == f"{at}/models/m3.safetensors"
    done = run("pack", f"--zoo={at}/none", f"--store={tmp_path}/none", env=server.env)
    assert (done.returncode, f"{at}/none: no such folder" in done.stderr) == (2, True)


def test_models_are_found_as_in_a_folder(at, tmp_path):
    with_splits(tmp_path / "zoo")
    weights(tmp_path / "more" / "deep" / "a.safetensors", 1)
    weights(tmp_path / "more" / "deep" / "b.safetensors", 1)
    weights(tmp_path / "one" / "model.safetensors", 1)
    s3.put(tmp_path, at)
    for part in ("", "/more", "/zoo", "/zoo/train"):
        there, local = find_models(f"{at}{part}"), find_models(f"{tmp_path}{part}")
        assert [(m.id, m.split) for m in there] == [(m.id, m.split) for m in local]
        for one, other in zip(there, local, strict=True):
            with one.open() as m, other.open() as n:
                np.testing.assert_array_equal(m.matrix("a.weight"), n.matrix("a.weight"))


def test_what_is_no_zoo(at, tmp_path):
    write(f"{at}/empty/readme.txt", b"")
    write(f"{at}/zoos/one/train/m.safetensors", b"")
    write(f"{at}/bad/zoo.json", b"[]")
    for url, message in {
        f"{at}/none": "no such folder",
        f"{at}/empty": "no models",
        f"{at}/zoos": "one of the zoos in it, such as 'one'",
        f"{at}/bad": "zoo.json",
        "s3://there-is-none/zoo": "NoSuchBucket",
    }.items():
        with pytest.raises(ProbexError, match=message) as caught:
            px.scan(url)
        assert str(caught.value).startswith(url)


@pytest.mark.parity
def test_a_harvest_of_a_bucket_can_be_packed(server, at, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        tags = json.dumps({"10_a": {("cat", "dog")[number % 2]: 9, "1girl": 10}})
        path = tmp_path / "downloads" / f"m{number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        factors = {"up.weight": rng.normal(size=(8, 2)), "down.weight": rng.normal(size=(2, 8))}
        tensors = {f"a.lora_{name}": factor for name, factor in factors.items()}
        save_file(tensors, path, {"ss_tag_frequency": tags})
    s3.put(tmp_path / "downloads", at)
    assert run("harvest", f"--models={at}", f"--out={tmp_path}/zoos").returncode == 0
    (zoo,) = (path.parent for path in (tmp_path / "zoos").glob("*/zoo.json"))
    store = px.pack(px.scan(zoo), tmp_path / "store").store
    assert len(store.packed) == 24
    assert store.tables.columns["tags"]["m1"] == ("dog",)
    assert {model.where for model in px.scan(zoo).models} == {
        f"{at}/m{n}.safetensors" for n in range(24)
    }
