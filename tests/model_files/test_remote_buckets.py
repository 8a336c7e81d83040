"""Models in buckets, on S3 on localhost: as on the disk, from few bytes, whatever fails."""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.buckets import NotThere, write
from probex_jax.errors import ProbexError
from probex_jax.model_files import Remote, open_model
from tests import s3
from tests.model_files.remote import COMMON, FAR, random, same, weights_file
from tests.proxy import counting


def sharded(folder):
    names = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    for shard in set(names.values()):
        tensors = {name: FAR[name] for name, file in names.items() if file == shard}
        weights_file(folder / shard, tensors, COMMON)
    index = json.dumps({"weight_map": names})
    (folder / "model.safetensors.index.json").write_text(index)


def lora(folder):
    path = "base_model.model.q_proj.lora_{}.weight"
    tensors = {path.format("A"): random((4, 64)), path.format("B"): random((32, 4), seed=1)}
    weights_file(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text('{"lora_alpha": 12, "r": 4}')


def cached_by_the_hub_s_client(folder):
    weights_file(folder / "snapshots" / "0123abcd" / "model.safetensors", FAR, COMMON)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")


def one_file(folder):
    weights_file(folder / "any name.safetensors", FAR, COMMON)
    (folder / "config.json").write_text('{"model_type": "vit"}')


@pytest.mark.parametrize("make", [sharded, lora, cached_by_the_hub_s_client, one_file])
@pytest.mark.parametrize("faults", [0.0, 0.1])
def test_as_on_the_disk(server, at, tmp_path, make, faults):
    make(tmp_path)
    s3.put(tmp_path, at)
    server.share = faults
    try:
        for address in (at, f"{at}/", Path(at)):
            with open_model(tmp_path) as local, open_model(address) as there:
                assert there.layers == local.layers
                assert (there.metadata, there.config) == (local.metadata, local.config)
                for name, matrix in there.matrices(local.layers).items():
                    same(matrix, local.matrix(name))
                    same(there.rows(name, [3, 0, 3]), local.rows(name, [3, 0, 3]))
    finally:
        server.share = 0.0


def test_a_file_and_what_is_beside_it(at, tmp_path):
    one_file(tmp_path)
    s3.put(tmp_path, at)
    with open_model(f"{at}/any name.safetensors") as m:
        assert m.config == {"model_type": "vit"}
        assert m.beside("nothing.json") == {}
        same(m.matrix("d"), FAR["d"])
        assert m.path == f"{at}/any name.safetensors"


def test_one_layer_takes_little_more_than_its_bytes(server, at, tmp_path, monkeypatch):
    """Of a file of 12 layers of 768 x 768 one is read."""
    layers = {
        f"vit.encoder.layer.{n}.attention.attention.{kind}.weight": np.full((768, 768), n, "f4")
        for n in range(4)
        for kind in ("query", "key", "value")
    }
    norms = {
        f"vit.encoder.layer.{n}.layernorm_{k}.bias": random(768) for n in range(4) for k in "ab"
    }
    save_file({**layers, **norms}, tmp_path / "model.safetensors")
    s3.put(tmp_path, at)
    name = "vit.encoder.layer.2.attention.attention.key.weight"
    with counting(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        with open_model(f"{at}/model.safetensors") as m:
            matrix = m.matrix(name)
        assert matrix.nbytes < proxy.received < 1.02 * matrix.nbytes
        before = proxy.received
        with open_model(at) as m:
            m.matrices([n for n in m.layers if ".layer.3." in n])
        assert proxy.received - before < 1.02 * 3 * matrix.nbytes
    same(matrix, layers[name])


def test_a_cache_knows_a_file_by_its_etag(server, at, tmp_path):
    weights_file(tmp_path / "model" / "model.safetensors", FAR)
    s3.put(tmp_path / "model", at)
    for counts in (FAR["d"].nbytes, None), (0, 0):
        moved = []
        with open_model(at, remote=Remote(tmp_path / "cache", moved.append)) as m:
            same(m.matrix("d"), FAR["d"])
        assert counts[0] <= sum(moved)
        assert counts[1] is None or not moved
    weights_file(tmp_path / "model" / "model.safetensors", FAR | {"d": FAR["a"]})
    s3.put(tmp_path / "model", at)
    with open_model(at, remote=Remote(tmp_path / "cache")) as m:
        same(m.matrix("d"), FAR["a"])
        s3.put(tmp_path / "model", at)  # the same
        same(m.matrix("c"), FAR["c"])
        weights_file(tmp_path / "model" / "model.safetensors", FAR)
        s3.put(tmp_path / "model", at)
        with pytest.raises(ProbexError, match=f"^{at}/model.safetensors: changed on the server"):
            m.matrix("b")


def test_what_is_not_there(at, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "readme.txt").write_bytes(b"x")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "model.safetensors").write_bytes(b"")
    s3.put(tmp_path, at)
    for url, message in {
        f"{at}/x": "no such file or folder",
        f"{at}/x.safetensors": "nothing there",
        "s3://there-is-none/x": "nothing there .*NoSuchBucket",
        "s3://there-is-none/x.safetensors": "nothing there .*NoSuchBucket",
    }.items():
        with pytest.raises(NotThere, match=f"^{url}: {message}"):
            open_model(url)
    for url, message in {
        at: "pickle",
        f"{at}/a.bin": "pickle",
        f"{at}/readme.txt": r"expected a .safetensors file",
        f"{at}/none/model.safetensors": "is it empty",
        f"{at}/none": "0 bytes",
    }.items():
        with pytest.raises(ProbexError, match=message) as caught:
            open_model(url)
        assert str(caught.value).startswith(at)


def test_names_that_lead_out(at):
    index = {"weight_map": {"a": "../model.safetensors"}}
    write(f"{at}/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(ProbexError, match=r"plain|name"):
        open_model(at)
    write(f"{at}/cache/snapshots/x/model.safetensors", b"")
    write(f"{at}/cache/refs/main", b"../../other")
    with pytest.raises(ProbexError, match=r"refs.main"):
        open_model(f"{at}/cache")
    write(f"{at}/cache/refs/main", b"x" * 2000)
    with pytest.raises(ProbexError, match="2000 bytes, the limit"):
        open_model(f"{at}/cache")


def test_the_fingerprint_is_that_of_the_disk(at, tmp_path):
    one_file(tmp_path)
    with open_model(s3.put(tmp_path, at)) as there, open_model(tmp_path) as local:
        assert px.model_files.fingerprint(there) == px.model_files.fingerprint(local)


def test_of_stacked_matrices_one_alone_is_moved(at, tmp_path):
    experts = {"layers.0.mlp.experts.up_proj": random((8, 256, 128))}
    weights_file(tmp_path / "moe" / "model.safetensors", experts)
    moved = []
    with open_model(s3.put(tmp_path / "moe", at), remote=Remote(on_bytes=moved.append)) as m:
        moved.clear()
        [matrix] = m.matrices(["layers.0.mlp.experts.5.up_proj"]).values()
    np.testing.assert_array_equal(matrix, experts["layers.0.mlp.experts.up_proj"][5])
    assert sum(moved) < 1.02 * matrix.nbytes
