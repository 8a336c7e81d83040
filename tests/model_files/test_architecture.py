"""Fingerprints of architectures, the ancestors that files name, and rows of layers."""

import json
import os
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import fingerprint, open_model, stated_base
from probex_jax.model_files.architecture import is_head, same_base
from probex_jax.model_files.byte_ranges import ByteRanges

BODY = {"body.0.weight": (8, 6), "body.0.bias": (8,), "body.1.weight": (4, 3, 3, 3)}

FP8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)


def write(path, shapes, dtype="f4", metadata=None, **others):
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors | others, path / "model.safetensors", metadata)
    return path


def lora(rank, layer="unet.attn.to_q", rows=6, columns=5):
    return {f"{layer}.lora.up.weight": (rows, rank), f"{layer}.lora.down.weight": (rank, columns)}


def found(path):
    with open_model(path) as model:
        return fingerprint(model)


@pytest.mark.parametrize(
    "other",
    [
        BODY | {"classifier.weight": (3, 8), "classifier.bias": (3,)},
        BODY | {"fc.weight": (10, 8)},
        BODY | {"model.head.weight": (10, 8), "vit.pooler.dense.weight": (8, 8)},
        BODY,
    ],
)
def test_a_replaced_head_does_not_change_the_fingerprint(tmp_path, other):
    first = write(tmp_path / "a", BODY | {"classifier.weight": (10, 8), "classifier.bias": (10,)})
    assert found(first) == found(write(tmp_path / "b", other))


@pytest.mark.parametrize("dtype", ["f2", "f8", ml_dtypes.bfloat16, *FP8])
def test_the_dtype_does_not_change_the_fingerprint(tmp_path, dtype):
    first, second = write(tmp_path / "a", BODY), write(tmp_path / "b", BODY, dtype)
    assert found(first) == found(second)


def test_integers_and_scalars_do_not_count(tmp_path):
    buffers = {"ids": np.arange(7), "body.n_batches": np.asarray(3.0, np.float32)}
    first, second = write(tmp_path / "a", BODY), write(tmp_path / "b", BODY, **buffers)
    assert found(first) == found(second)


@pytest.mark.parametrize(
    "changed",
    [
        {"body.0.weight": (8, 7)},
        {"body.0.weight": (6, 8)},
        {"body.0.bias": (8, 1)},
        {"body.1.weight": (4, 27)},
        {"body.2.weight": (4, 4)},
    ],
)
def test_other_shapes_and_other_layers_are_another_architecture(tmp_path, changed):
    assert found(write(tmp_path / "a", BODY)) != found(write(tmp_path / "b", BODY | changed))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BODY, {f"x{name}": shape for name, shape in BODY.items()}),
        # All head: told by it.
        ({"fc.weight": (3, 8)}, {"fc.weight": (9, 8)}),
    ],
)
def test_other_names_are_another_architecture(tmp_path, one, other):
    assert found(write(tmp_path / "a", one)) != found(write(tmp_path / "b", other))


def test_loras_of_all_ranks_share_a_fingerprint(tmp_path):
    first = found(write(tmp_path / "a", lora(1)))
    assert found(write(tmp_path / "b", lora(4), "f2")) == first
    assert found(write(tmp_path / "c", lora(4, layer="unet.attn.to_k"))) != first
    assert found(write(tmp_path / "d", lora(4, columns=7))) != first
    whole = {"unet.attn.to_q": (6, 5)}
    assert found(write(tmp_path / "e", whole)) != first


def test_heads_are_whole_parts_of_names():
    assert all(map(is_head, ["head.weight", "module.fc.bias", "lm_head.weight", "bert.pooler.x"]))
    assert not any(map(is_head, ["vit.head.weight", "headless.weight", "x.fc.weight", "fc1.bias"]))


README = "---\ntags:\n- a\n{}\n---\n# Card\nbase_model: of/text\n"


def test_each_place_that_names_the_ancestor_is_read_and_goes_before_the_next(tmp_path):
    kohya = {"ss_sd_model_name": "by/kohya", "ss_base_model_version": "sd_v1"}
    write(tmp_path, BODY, metadata={"base_model": "by/metadata", **kohya})
    files = {
        "adapter_config.json": '{"base_model_name_or_path": "by/adapter"}',
        "config.json": '{"_name_or_path": "by/config"}',
        "README.md": README.format("base_model: by/readme"),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def stated():
        with open_model(tmp_path) as model:
            return stated_base(model)

    order = [stated()]
    write(tmp_path, BODY, metadata=kohya)
    for name in files:
        order.append(stated())
        (tmp_path / name).unlink()
    order.append(stated())
    write(tmp_path, BODY, metadata={"ss_base_model_version": "sd_v1"})
    order.append(stated())
    write(tmp_path, BODY)
    order.append(stated())
    assert order == [
        "by/metadata", "by/adapter", "by/config", "by/readme", "by/kohya", "sd_v1", ""
    ]  # fmt: skip


def base_beside(folder, name, content):
    write(folder, BODY)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with open_model(folder) as model:
        return stated_base(model)


@pytest.mark.parametrize(
    "field",
    [
        "base_model: a/b",
        "base_model:   'a/b'   ",
        'base_model: "a/b"\r',
        "base_model:\n- a/b\n- c/d",
        "base_model:\n  - a/b",
        "base_model: [a/b, c/d]",
        "base_model: a/b  # the large one",
    ],
)
def test_front_matter_names_the_ancestor_in_any_form(tmp_path, field):
    assert base_beside(tmp_path, "README.md", README.format(field)) == "a/b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---",
        "no front matter\n---\nbase_model: a/b\n---\n",
        "---\nbase_model: a/b\n",
        "---\nbase_model:\n---\nbase_model: a/b",
        "---\nother:\n  base_model: a/b\n---\n",
        "---\nbase_model: " + "a" * 201 + "\n---\n",
        "---\nbase_model: a\x1b[31mb\n---\n",
        b"---\nbase_model: \xff\x00\xfe\n---\n",
        b"\xff\xfe-\0-\0-\0",
        "---\nbase_model: a\n---\n" + " " * 2**20,  # over 1 MiB
        # What takes a pattern with two unbounded ends hours.
        "---" + "\n" * (2**20 - 3),
        "---\nbase_model: a" + " " * (2**20 - 50) + "b\n---\n",
        "---\n" + "base_model:\n" * 80_000 + "---\n",
        "---\n" + "\n--- x" * 170_000,
    ],
    ids=range(15),
)
def test_a_hostile_readme_says_nothing_and_takes_no_time(tmp_path, text):
    began = time.process_time()
    assert base_beside(tmp_path, "README.md", text) == ""
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        b"\xff\xfe{}",
        "[" * 100_000,
        '{"_name_or_path": ' + "[" * 100_000,
        '{"_name_or_path": 3, "base_model_name_or_path": ["a"]}',
        '{"_name_or_path": {"a": "b"}, "base_model_name_or_path": null}',
        '{"_name_or_path": "a\\nb", "base_model_name_or_path": "\\u202ea"}',
        '{"_name_or_path": "\\ud800", "base_model_name_or_path": "\\ud800"}',
        json.dumps(dict.fromkeys(["_name_or_path", "base_model_name_or_path"], "a" * 10**5)),
    ],
    ids=range(12),
)
def test_a_hostile_config_says_nothing(tmp_path, name, content):
    assert base_beside(tmp_path, name, content) == ""


def test_what_lies_there_instead_of_a_file_says_nothing(tmp_path):
    write(tmp_path, BODY)
    (tmp_path / "config.json").symlink_to("nowhere")
    (tmp_path / "README.md").mkdir()
    os.mkfifo(tmp_path / "adapter_config.json")
    with open_model(tmp_path) as model:
        assert stated_base(model) == ""


def test_an_owner_and_a_path_do_not_count():
    assert same_base("a/SD-1", "/disk/b/sd-1/")
    assert same_base("", "a/b")
    assert not same_base("a/b", "b/a")


ROWS = [5, 0, 3, 3]


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ml_dtypes.bfloat16, *FP8])
@pytest.mark.parametrize("shape", [(6, 7), (6, 3, 2, 2), (1, 6, 5), (6, 2, 3)])
def test_rows_are_those_of_the_canonical_matrix(tmp_path, shape, dtype):
    with open_model(write(tmp_path, {"w": shape}, dtype)) as model:
        expected = model.matrix("w")[ROWS]
        np.testing.assert_array_equal(model.rows("w", ROWS), expected)
        assert model.rows("w", ROWS).dtype == np.float32


@pytest.mark.parametrize("dtype", ["f4", "f2", *FP8])
def test_rows_of_a_lora_are_those_of_the_update(tmp_path, dtype):
    with open_model(write(tmp_path, lora(3), dtype)) as model:
        [name] = model.layers
        factors = model.matrix(name)
        expected = factors.up.astype("f8") @ factors.down.astype("f8")
        np.testing.assert_allclose(model.rows(name, ROWS), expected[ROWS], rtol=1e-5, atol=1e-6)


def test_rows_read_no_other_bytes(tmp_path, monkeypatch):
    write(tmp_path, {"w": (1000, 64), **lora(2, rows=1000)})
    with open_model(tmp_path) as model:
        read = []
        real = ByteRanges.read
        monkeypatch.setattr(
            ByteRanges, "read", lambda self, a, b: read.append(b - a) or real(self, a, b)
        )
        model.rows("w", [7, 900])
        assert read == [256, 256]
        read.clear()
        model.rows("unet.attn.to_q", [7, 900])
        assert sorted(read) == [8, 8, 4 * 2 * 5]


def test_rows_that_cannot_be_read(tmp_path):
    bad = np.ones((4, 3), np.float32)
    bad[2, 1] = np.nan
    write(tmp_path, lora(2), bad=bad, number=np.ones((4, 3), np.int64))
    with open_model(tmp_path) as model:
        assert model.rows("bad", [0, 1, 3]).shape == (3, 3)
        with pytest.raises(ProbexError, match="layer 'bad': 1 of 6 values are NaN"):
            model.rows("bad", [1, 2])
        for missing in ("nope", "number"):
            with pytest.raises(ProbexError, match=missing):
                model.rows(missing, [0])
        for rows in ([4], [-1]):
            with pytest.raises(ValueError, match="rows"):
                model.rows("bad", rows)


@pytest.mark.parametrize("change", ["longer", "shorter", "rewritten"])
def test_a_file_that_changes_is_noticed(tmp_path, change):
    path = write(tmp_path, BODY) / "model.safetensors"
    with open_model(path) as model:
        model.check_unchanged()
        data, written = path.read_bytes(), path.stat().st_mtime_ns
        if change == "rewritten":
            path.write_bytes(data[:-1] + b"\0")
        else:
            path.write_bytes(data + b"\0" if change == "longer" else data[:-1])
            os.utime(path, ns=(written, written))
        with pytest.raises(ProbexError, match="changed while it was read; try again"):
            model.check_unchanged()


def test_a_write_within_one_tick_of_the_clock_is_noticed(tmp_path):
    """The kernel's clock may give two writes one time."""
    path = write(tmp_path, BODY) / "model.safetensors"
    with open_model(path) as model:
        name = next(iter(model.layers))
        model.matrix(name)
        written = path.stat().st_mtime_ns
        data = path.read_bytes()
        path.write_bytes(data[:-500] + bytes(500))
        os.utime(path, ns=(written, written))
        with pytest.raises(ProbexError, match="changed while it was read; try again"):
            model.check_unchanged()


def test_every_shard_is_watched(tmp_path):
    for number in (1, 2):
        save_file({f"w{number}": np.ones((2, 2), "f4")}, tmp_path / f"m-{number}.safetensors")
    index = {"weight_map": {f"w{number}": f"m-{number}.safetensors" for number in (1, 2)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_model(tmp_path) as model:
        (tmp_path / "m-2.safetensors").write_bytes(b"")
        with pytest.raises(ProbexError, match=r"m-2\.safetensors: changed"):
            model.check_unchanged()
