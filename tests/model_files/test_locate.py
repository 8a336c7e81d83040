import os
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import open_model

W = np.arange(6, dtype="f4").reshape(2, 3)


def refused(path, fragment):
    with pytest.raises(ProbexError, match=re.escape(fragment)) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


def write_index(folder, weight_map):
    entries = ", ".join(f'"{name}": "{file}"' for name, file in weight_map.items())
    index = f'{{"metadata": {{"total_size": 48}}, "weight_map": {{{entries}}}}}'
    (folder / "model.safetensors.index.json").write_text(index)


@pytest.fixture
def shards(tmp_path):
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({"a": W, "b": W[0].copy()}, tmp_path / files[0], {"format": "pt", "x": "1"})
    save_file({"c": W + 1}, tmp_path / files[1], {"format": "pt", "y": "2"})
    write_index(tmp_path, {"a": files[0], "b": files[0], "c": files[1]})
    return tmp_path, files


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path])
def test_file_folder_and_text_paths(tmp_path, kind):
    save_file({"w": W}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with open_model(kind(path)) as m:
            np.testing.assert_array_equal(m.matrix("w"), W)


def test_the_only_safetensors_file_of_a_folder(tmp_path):
    save_file({"w": W}, tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x02")
    with open_model(tmp_path) as m:
        np.testing.assert_array_equal(m.matrix("w"), W)
    save_file({"x": W}, tmp_path / "other.safetensors")
    with open_model(tmp_path) as m:
        assert [*m.layers] == ["w"]
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "mine.safetensors")
    refused(tmp_path, "which of its 2 other files is the model? 'mine.safetensors', 'other")


@pytest.mark.parametrize(
    ("name", "strays"),
    [
        ("model", ["consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin"]),
        ("diffusion_pytorch_model", ["other.safetensors", "diffusion_flax_model.msgpack"]),
        ("model.fp16", ["consolidated.safetensors", "optimizer.bin"]),
        ("adapters", ["0000100_adapters.safetensors", "0000200_adapters.safetensors"]),
        ("adapter_model", ["training_args.bin", "checkpoint.safetensors"]),
    ],
)
def test_a_usual_name_is_the_model_among_strays(tmp_path, name, strays):
    save_file({"w": W}, tmp_path / f"{name}.safetensors")
    for stray in strays:
        (tmp_path / stray).write_bytes(b"damaged")
    with open_model(tmp_path) as m:
        np.testing.assert_array_equal(m.matrix("w"), W)


@pytest.mark.parametrize("named", [True, False])
def test_the_short_suffix_of_safetensors(tmp_path, named):
    save_file({"w": W}, tmp_path / "a.sft")
    with open_model(tmp_path / "a.sft" if named else tmp_path) as m:
        np.testing.assert_array_equal(m.matrix("w"), W)


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "model.safetensors.index.fp16.json",
        "model.fp16.safetensors.index.json",
    ],
)
def test_indexes_of_other_names(shards, index):
    folder, _ = shards
    (folder / "model.safetensors.index.json").rename(folder / index)
    save_file({"z": W}, folder / "consolidated.safetensors")
    with open_model(folder) as m:
        assert list(m.layers) == ["a", "c"]


def test_shards(shards):
    folder, _ = shards
    with open_model(folder) as m:
        assert list(m.layers) == ["a", "c"]
        assert list(m.vectors) == ["b"]
        assert m.metadata == {"format": "pt", "x": "1", "y": "2"}
        np.testing.assert_array_equal(m.matrix("a"), W)
        np.testing.assert_array_equal(m.matrix("c"), W + 1)


def test_what_shards_hold_counts_not_what_their_index_says(shards):
    folder, files = shards
    write_index(folder, {"a": files[0], "c": files[1]})  # b is not named
    with open_model(folder) as m:
        assert ([*m.all_layers], m.warnings) == (["a", "b", "c"], ())
    write_index(folder, {"a": files[1], "b": files[0], "c": files[1]})
    with open_model(folder) as m:
        np.testing.assert_array_equal(m.matrix("a"), W)
    write_index(folder, {"a": files[0], "b": files[0], "c": files[1], "d": files[1]})
    with open_model(folder) as m:
        assert [*m.all_layers] == ["a", "b", "c"]
        assert "'d'" in m.warnings[0]


def test_of_a_tensor_in_two_shards_the_index_says_which(shards):
    folder, files = shards
    save_file({"a": W + 5, "c": W}, folder / files[1], {"format": "np"})
    for file, expected in zip(files, (W, W + 5), strict=True):
        write_index(folder, {"a": file, "b": files[0], "c": files[1]})
        with open_model(folder) as m:
            np.testing.assert_array_equal(m.matrix("a"), expected)
            assert m.metadata["format"] == "pt"
    write_index(folder, {"b": files[0], "c": files[1]})
    refused(folder, f"{files[1]}: tensor 'a' is also in {files[0]}")


def test_a_missing_shard_is_named(shards):
    folder, files = shards
    (folder / files[1]).unlink()
    refused(folder, f"{files[1]}: no such file")


def test_shards_without_an_index_are_read_if_none_is_missing(shards):
    folder, files = shards
    (folder / "model.safetensors.index.json").unlink()
    with open_model(folder) as m:
        assert list(m.layers) == ["a", "c"]
    save_file({"z": W}, folder / "consolidated.safetensors")
    with open_model(folder) as m:
        assert list(m.layers) == ["a", "c"]
    (folder / files[1]).unlink()
    refused(folder, "shard 2 of 2 is missing")
    for count in (0, 501, 999_999):
        name = f"model-00001-of-{count:05}.safetensors"
        (folder / files[0]).rename(folder / name)
        files[0] = name
        refused(folder, f"{count} shards")


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".hidden", "a" * 300,
     "a\\\\b.safetensors", "c:x.safetensors", "a\\u0000.safetensors", "a\\n.safetensors"],
)  # fmt: skip
def test_shard_names_are_plain(tmp_path, name):
    outside = tmp_path / "model.safetensors"
    save_file({"w": W}, outside)
    (tmp_path / "inside").mkdir()
    write_index(tmp_path / "inside", {"w": name})
    refused(tmp_path / "inside", "is not a plain name")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ('{"weight_map": {"a": 1}}', "tensor 'a': expected the name of a shard"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y"}}', "has the key 'a' twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_indices(tmp_path, text, fragment):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, fragment)


@pytest.mark.parametrize(
    "revision",
    ["../..", "/etc", "a/b", "", "  ", "..", ".", "a\\b", "a\0b", "\x1b[31m", "a\nb", "x" * 300],
)
def test_revisions_are_plain_names(hub_cache, revision):
    (hub_cache / "refs" / "main").write_text(revision)
    refused(hub_cache, "refs/main: revision: ")


def test_broken_hub_caches(hub_cache):
    main = hub_cache / "refs" / "main"
    main.write_text("0123abcd\n")
    open_model(hub_cache).close()
    main.write_bytes(b"\xff\xfe")
    refused(hub_cache, "is not a plain name")
    main.write_text("x" * 2000)
    refused(hub_cache, "2000 bytes, the limit is 1024")
    main.write_text("ffff")
    refused(hub_cache, "snapshots/ffff: no such folder, though refs/main names this revision")
    main.unlink()
    refused(hub_cache, "refs/main: missing")


def test_a_link_without_its_blob_says_where_it_leads(hub_cache):
    (hub_cache / "blobs" / "ffee").unlink()
    refused(hub_cache, "model.safetensors: no such file or folder (a link to ../../blobs/ffee,")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".PT"])
def test_pickles_are_refused_with_the_way_out(tmp_path, suffix):
    path = tmp_path / f"pytorch_model{suffix}"
    path.write_bytes(b"\x80\x02.")
    refused(path, "save_pretrained(folder, safe_serialization=True)")
    refused(tmp_path, f"pytorch_model{suffix}: a pickle can run code")


def test_other_paths_that_are_no_model(tmp_path):
    refused(tmp_path / "absent", "absent: no such file or folder")
    refused(tmp_path, "no model here; expected model.safetensors or model.safetensors.index.json")
    refused("a\0b", "'a\\x00b': no such file or folder")
    refused("x" * 5000, "xxx: ")
    (tmp_path / "readme.txt").write_text("hello")
    refused(tmp_path / "readme.txt", "expected a .safetensors file")
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "model.safetensors: is a folder, expected a file")
    (tmp_path / "model.safetensors").rmdir()
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path, "not a regular file")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    refused(tmp_path, "model.safetensors")
