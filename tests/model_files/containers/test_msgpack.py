"""Flax's msgpack files; hostile ones are refused."""

import time

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization

from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, open_model


def drawn(*shape, seed=0, dtype="f4"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def written(folder, tree):
    (folder / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return folder / "a.msgpack"


def test_dtypes_and_other_values(tmp_path):
    tree = {
        "a": {"weight": drawn(4, 3), "bias": drawn(4, dtype="f2")},
        "b": {"weight": drawn(2, 3, dtype=ml_dtypes.bfloat16), "ids": np.arange(40)},
        "list": {str(number): drawn(2, 2, seed=number) for number in range(3)},
        "number": np.float32(2.5),
        "text": "x" * 300,
        "none": None,
        "flags": [True, False, -5, 1000, 2**40, 1.5, 2 + 3j, b"x" * 70_000],
        "7": {"weight": drawn(3, 2)},
    }
    with open_model(written(tmp_path, tree)) as m:
        for name in ("a.weight", "b.weight"):
            group, leaf = name.split(".")
            np.testing.assert_array_equal(m.tensor(name), tree[group][leaf].astype("f4"))
        np.testing.assert_array_equal(m.tensor("list.2"), tree["list"]["2"])
        assert m.tensor("number") == 2.5
        assert m.layers["7.weight"].shape == (3, 2)
        assert m.left_out == {"b.ids": "integer"}
        np.testing.assert_array_equal(m.rows("a.weight", [3, 1]), tree["a"]["weight"][[3, 1]])


def test_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    tree = {
        "params": {"fc": {"kernel": drawn(5, 7), "bias": drawn(3)}, "q": {"kernel": drawn(6, 2)}}
    }
    with open_model(written(tmp_path, tree)) as m:
        np.testing.assert_array_equal(m.matrix("fc.weight"), tree["params"]["fc"]["kernel"].T)
        np.testing.assert_array_equal(m.matrix("q.weight"), tree["params"]["q"]["kernel"].T)
        assert [*m.vectors] == ["fc.bias"]


def test_shards_with_an_index(tmp_path):
    shards = {"flax_model-00001-of-00002.msgpack": "a", "flax_model-00002-of-00002.msgpack": "b"}
    for file, name in shards.items():
        (tmp_path / file).write_bytes(
            serialization.msgpack_serialize({name: {"kernel": drawn(2, 3)}})
        )
    with open_model(tmp_path) as m:
        assert [*m.layers] == ["a.weight", "b.weight"]
    index = {f"{name}/kernel": file for file, name in shards.items()}
    text = str({"metadata": {}, "weight_map": index}).replace("'", '"')
    (tmp_path / "flax_model.msgpack.index.json").write_text(text)
    with open_model(tmp_path) as m:
        assert ([*m.layers], m.warnings) == (["a.weight", "b.weight"], ())


def test_hub_names_of_transformers(tmp_path):
    attention = {"query": {"kernel": drawn(4, 4), "bias": drawn(4)}}
    layer = {"attention": {"self": attention, "output": {"LayerNorm": {"scale": drawn(4)}}}}
    tree = {"bert": {"encoder": {"layer": {"0": layer}}}}
    tree["bert"]["embeddings"] = {"word_embeddings": {"embedding": drawn(9, 4)}}
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    written(tmp_path, tree).rename(tmp_path / "flax_model.msgpack")
    with open_model(tmp_path) as m:
        block = "bert.encoder.layer.0.attention"
        assert {*m.all_layers} == {
            f"{block}.self.query.weight",
            f"{block}.self.query.bias",
            f"{block}.output.LayerNorm.weight",
            "bert.embeddings.word_embeddings.weight",
        }


def packed(value):
    return msgpack.packb(value, strict_types=True)


def array(shape=(2, 2), dtype="float32", data=bytes(16)):
    return msgpack.ExtType(1, msgpack.packb([shape, dtype, data]))


def nested(depth):
    return b"\x81\xa1a" * depth + b"\xc0"


CHUNKED = "__msgpack_chunked_array__"
HOSTILE = {
    "empty": (b"", "truncated"),
    "no map": (packed([1]), "begins with a map"),
    "a byte of no value": (b"\x81\xa1a\xc1", "begins no value"),
    "bytes at the end": (packed({"a": array()}) + b"\xc0", "1 bytes after the end"),
    "a pickle": (b"\x80\x04\x95" + bytes(30), "after the end"),
    "deep": (nested(1000), "nested too deeply"),
    "many values": (
        b"\x81\xa1a\xdd" + (2**31).to_bytes(4, "big") + b"\xc0" * 100_000,
        "not arrays",
    ),
    "many more than there are": (b"\xdf\xff\xff\xff\xff", "truncated"),
    "an array cut": (packed({"a": array()})[:-3], "truncated"),
    "a huge array": (
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93\x90\xa7float32\xc6\xff\xff\xff\xf0", "bytes"),
    "a shape too large": (packed({"a": array((2**40, 2**40))}), "shape"),
    "a negative shape": (packed({"a": array((-2, -2))}), "no array"),
    "many axes": (packed({"a": array((1,) * 40)}), "no array"),
    "no array": (packed({"a": msgpack.ExtType(1, b"\x91\x01")}), "no array"),
    "a key twice": (b"\x82" + 2 * (b"\xa1a" + packed(array())), "twice"),
    "a key that is no text": (b"\x81\xa1\xff" + packed(array()), "not a string"),
    "a key that is a map": (b"\x81\x80" + packed(array()), "not a string"),
    "a name that leads out": (packed({"..": {"a": array()}}), "leads out"),
    "chunks out of order": (
        packed({"a": {CHUNKED: True, "shape": {"0": 4}, "chunks": {"1": array((4,))}}}), "chunks"),
    "chunks of another shape": (
        packed({"a": {CHUNKED: True, "shape": {"0": 5}, "chunks": {"0": array((4,))}}}), "chunks"),
    "numbers alone": (packed({"a": 1}), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, case):
    data, fragment = HOSTILE[case]
    path = tmp_path / "a.msgpack"
    path.write_bytes(data)
    with pytest.raises(ProbexError, match=fragment) as caught:
        open_model(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


def test_dtypes_that_are_unknown_are_left_out(tmp_path):
    path = tmp_path / "a.msgpack"
    path.write_bytes(packed({"a": {"weight": array(dtype="int3")}, "b": array()}))
    with open_model(path) as m:
        assert ([*m.layers], [*m.left_out]) == (["b"], ["a.weight"])


def test_the_limits_hold(tmp_path):
    path = written(tmp_path, {str(number): np.ones((2, 2)) for number in range(20)})
    open_model(path, limits=Limits(tensors=20)).close()
    with pytest.raises(ProbexError, match="20 tensors, the limit is 19"):
        open_model(path, limits=Limits(tensors=19))
    with pytest.raises(ProbexError, match="limit"):
        open_model(path, limits=Limits(header_bytes=100))


def test_many_arrays_in_chunks_take_linear_time(tmp_path):
    one = {CHUNKED: True, "shape": {"0": 1}, "chunks": {"0": array((1,), data=bytes(4))}}
    path = tmp_path / "a.msgpack"
    path.write_bytes(packed({str(number): one for number in range(3000)}))
    began = time.process_time()
    with open_model(path) as m:
        assert len(m.vectors) == 3000
    assert time.process_time() - began < 3
