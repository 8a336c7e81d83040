import re

import numpy as np
import pytest
from safetensors.numpy import save

from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, open_model
from probex_jax.model_files.safetensors_header import TensorInfo, header_size, parse_header


def tensor(begin=0, end=16, dtype="F32", shape=(2, 2)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def text(entry: str) -> str:
    return '{"w": ' + entry + "}"


HUGE = "9" * 5000
FIELDS = '"dtype": "F32", "shape": [2, 2]'

# Header, data, what the error must say.
BROKEN = {
    "no object": ("[]", b"", "header does not begin with '{'"),
    "leading space": (" {}", b"", "header does not begin with '{'"),
    "unfinished": ('{"w": ', b"", "header is not valid JSON"),
    "two objects": ("{}{}", b"", "header is not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "header is not UTF-8 text (byte 2)"),
    "UTF-16": ("{}".encode("utf-16"), b"", "header does not begin with"),
    "empty": ("", b"", "header does not begin with"),
    "no tensors": ("{}", b"", "no tensors in the header"),
    "only metadata": ({"__metadata__": {"a": "b"}}, b"", "no tensors in the header"),
    "deep": ('{"w": ' + "[" * 200_000, b"", "header is nested too deeply"),
    "deep, closed": (text("[" * 900 + "]" * 900), b"", "header"),
    "huge integer": (text(HUGE), b"", "header is not valid JSON"),
    "NaN": (text("NaN"), b"", "tensor 'w' is nan, expected an object"),
    "null": (text("null"), b"", "tensor 'w' is None, expected an object"),
    "tensor twice": ('{"w": {}, "w": {}}', b"", "header has the key 'w' twice"),
    "field twice": (text('{"dtype": "F32", "dtype": "F16"}'), b"", "has the key 'dtype' twice"),
    "surrogate name": (r'{"\ud800": {}}', b"", "the name is not valid Unicode"),
    "name above": ({"a/../../b": tensor()}, b"", "'a/../../b': the name leads out of a folder"),
    "name at the root": ({"/etc/x": tensor()}, b"", "'/etc/x': the name leads out of a folder"),
    "name with backslashes": ({"..\\x": tensor()}, b"", "x': the name leads out of a folder"),
    "name with NUL": ({"a\0b": tensor()}, b"", "'a\\x00b': the name leads out of a folder"),
    "metadata no object": ({"__metadata__": [], "w": tensor()}, b"", "__metadata__ is []"),
    "metadata number": ({"__metadata__": {"a": 1}}, b"", "__metadata__ 'a' is 1, expected"),
    "metadata nested": ({"__metadata__": {"a": {}}}, b"", "__metadata__ 'a' is {}, expected"),
    "metadata surrogate": (r'{"__metadata__": {"a": "\udfff"}}', b"", "expected Unicode text"),
    "no dtype": (text('{"shape": [], "data_offsets": [0, 4]}'), b"", "'w': dtype is missing"),
    "no shape": (text('{"dtype": "F32", "data_offsets": [0, 4]}'), b"", "shape is missing"),
    "no offsets": (text("{" + FIELDS + "}"), b"", "'w': data_offsets is missing"),
    "extra field": ({"w": {**tensor(), "code": "x"}}, b"", "unknown field 'code'"),
    "unknown dtype": ({"w": tensor(dtype="F99")}, b"", "unknown dtype 'F99', expected"),
    "dtype a list": ({"w": tensor(dtype=[])}, b"", "unknown dtype []"),
    "shape a number": (
        text('{"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}'), b"", "shape is 4"),
    "negative size": ({"w": tensor(shape=(-2, -2))}, b"", "shape is [-2, -2], expected"),
    "boolean size": ({"w": tensor(shape=(True, 4))}, b"", "shape is [True, 4], expected"),
    "float size": ({"w": tensor(shape=(2.0, 2))}, b"", "shape is [2.0, 2], expected"),
    "NaN size": ({"w": tensor(shape=(float("nan"),))}, b"", "shape is [nan], expected"),
    "long size": ({"w": tensor(shape=(2**64, 2))}, b"", "shape is [18446744073709551616, 2]"),
    "many axes": ({"w": tensor(shape=[1] * 33)}, b"", "at most 32 integers"),
    "very many axes": ({"w": tensor(shape=[1] * 100_000)}, b"", "at most 32 integers"),
    "one offset": (
        text("{" + FIELDS + ', "data_offsets": [0]}'), b"", "data_offsets are [0], expected"),
    "three offsets": (
        text("{" + FIELDS + ', "data_offsets": [0, 1, 2]}'), b"", "data_offsets are [0, 1, 2]"),
    "offsets an object": (
        text("{" + FIELDS + ', "data_offsets": {}}'), b"", "data_offsets are {}, expected"),
    "boolean offset": ({"w": tensor(False, 16)}, b"", "data_offsets are [False, 16]"),
    "negative offset": ({"w": tensor(-16, 0)}, b"", "data_offsets are [-16, 0]"),
    "swapped offsets": ({"w": tensor(16, 0)}, b"", "data_offsets are [16, 0]"),
    "wrong size": (
        {"w": tensor(0, 12)}, b"\0" * 12, "takes 128 bits, data_offsets give 96"),
    "half a byte": ({"w": tensor(0, 2, "F4", (3,))}, b"\0" * 2, "takes 12 bits"),
    "sizes that wrap": (
        {"w": tensor(0, 0, shape=(2**62, 2**62))}, b"", "data_offsets give 0"),
    "empty and too large": (
        {"w": tensor(0, 0, shape=(2**62, 0, 2**62))}, b"", "4611686018427387904], which is too"),
    "overlap": ({"v": tensor(), "w": tensor(8, 24)}, b"\0" * 24, "'w' overlaps the one before"),
    "same bytes": ({"v": tensor(), "w": tensor()}, b"\0" * 16, "'w' overlaps the one before"),
    "hole": ({"v": tensor(), "w": tensor(20, 36)}, b"\0" * 36, "'w' leaves a hole: it begins"),
    "hole first": ({"w": tensor(4, 20)}, b"\0" * 20, "begins at byte 4, expected 0"),
    "truncated": ({"w": tensor()}, b"\0" * 9, "truncated: 7 bytes are missing of 16 of data"),
    "more data": ({"w": tensor()}, b"\0" * 19, "3 bytes at the end belong to no tensor"),
    "terabytes": (
        {"w": tensor(0, 2**42, shape=(2**20, 2**20))}, b"", "4398046511104 bytes are missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers(write_raw, case):
    header, data, fragment = BROKEN[case]
    path = write_raw(header, data)
    with pytest.raises(ProbexError, match=re.escape(fragment)) as caught:
        open_model(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 700


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "0 bytes are too few"),
        (b"1234567", "7 bytes are too few"),
        (b"\x10" + b"\0" * 7 + b"{}", "truncated in the header: 14 bytes are missing of 16"),
        (b"\x03" + b"\0" * 7 + b"{}", "truncated in the header: 1 bytes are missing of 3"),
        (
            b"\xff" * 8,
            "the header would be 18446744073709551615 bytes long, the limit is 25000000",
        ),
        ((10**8 + 1).to_bytes(8, "little"), "the header would be 100000001 bytes long"),
        ((10**8).to_bytes(8, "little"), "header is 100000000 bytes long, the limit is 25000000"),
        ((10**7).to_bytes(8, "little"), "truncated in the header: 10000000 bytes are missing"),
        (b"GGUF" + b"\x03" * 20, "GGUF"),
        (b"PK\x03\x04" + b"\x08" * 20, "zip archive, perhaps a PyTorch pickle"),
        (b"\x80\x02}q\x00(X\x06", "may be a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "looks like a web page"),
    ],
)
def test_files_that_do_not_begin_as_safetensors(tmp_path, content, fragment):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ProbexError, match=re.escape(fragment)):
        open_model(path)


def test_parses_what_the_format_s_own_writer_writes():
    weights = {"b": np.zeros((2, 3), "f4"), "a": np.zeros((4,), "i8"), "e": np.zeros((0, 5), "f2")}
    content = save(weights, {"k": "é"})
    size = header_size(content[:8], len(content), "x", Limits())
    header = parse_header(content[8 : 8 + size], len(content) - 8 - size, "x", Limits())
    assert header.metadata == {"k": "é"}
    assert {(name, t.dtype, t.shape) for name, t in header.tensors.items()} == {
        ("a", "I64", (4,)),
        ("b", "F32", (2, 3)),
        ("e", "F16", (0, 5)),
    }
    with pytest.raises(TypeError):
        header.tensors["x"] = TensorInfo("F32", (), 0, 4)  # type: ignore[index]
