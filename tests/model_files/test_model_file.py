import os
import threading

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import LayerInfo, open_model
from probex_jax.model_files.finite import count_unfit


def random(shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


DTYPES = {
    "F64": np.dtype("f8"),
    "F32": np.dtype("f4"),
    "F16": np.dtype("f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


@pytest.mark.parametrize(("stored", "dtype"), DTYPES.items())
def test_float_dtypes_are_read_as_float32(tmp_path, dtype, stored):
    # A tensor of one byte first: with it, the others do not begin at a multiple of their size.
    weights = {"a": np.ones(1, "u1"), "w": random((5, 7), dtype), "x": random((3, 2), dtype)}
    save_file(weights, tmp_path / "model.safetensors")
    with open_model(tmp_path / "model.safetensors") as m:
        assert m.layers == {"w": LayerInfo((5, 7), stored, "linear"), "x": m.layers["x"]}
        for name in m.layers:
            matrix = m.matrix(name)
            assert matrix.dtype == np.float32
            assert matrix.flags.c_contiguous
            assert matrix.flags.writeable
            np.testing.assert_array_equal(matrix, weights[name].astype("f4"))


@pytest.mark.parametrize(
    ("shape", "canonical", "kind"),
    [
        ((4, 3), (4, 3), "linear"),
        ((1, 4, 3), (4, 3), "embedding"),
        ((4, 3, 5), (4, 15), "conv"),
        ((4, 3, 2, 5), (4, 30), "conv"),
        ((4, 1, 3, 3), (4, 9), "conv"),
        ((1, 4, 3, 3), (1, 36), "conv"),
        ((4, 3, 1, 1), (4, 3), "conv"),
        ((4, 3, 2, 2, 2), (4, 24), "conv"),
        ((), (1, 1), "vector"),
        ((1,), (1, 1), "vector"),
        ((5,), (5, 1), "vector"),
        ((5, 1), (5, 1), "vector"),
        ((1, 5), (1, 5), "vector"),
        ((16, 1, 1), (16, 1), "vector"),
        ((1, 8, 1), (1, 8), "vector"),
        ((1, 1, 9), (1, 9), "vector"),
        ((1, 1, 1, 1, 1, 7), (1, 7), "vector"),
    ],
)
def test_canonical_form_keeps_the_order_in_memory(tmp_path, shape, canonical, kind):
    value = np.asarray(random(shape))
    save_file({"w": value}, tmp_path / "model.safetensors")
    with open_model(tmp_path) as m:
        found, others = (m.vectors, m.layers) if kind == "vector" else (m.layers, m.vectors)
        assert (found["w"], dict(others)) == (LayerInfo(canonical, "F32", kind), {})
        assert (m.tensors_of("w"), m.left_out) == (("w",), {})
        expected = value.reshape(canonical)
        np.testing.assert_array_equal(m.matrix("w"), expected)
        np.testing.assert_array_equal(m.matrices(["w"])["w"], expected)
        last = len(expected) - 1
        np.testing.assert_array_equal(m.rows("w", [last, 0]), expected[[last, 0]])


def test_every_tensor_is_a_layer_a_vector_or_left_out_with_a_reason(tmp_path):
    weights = {
        "z": random((2, 2)),
        "bias": random((3,)),
        "token": random((1, 1, 3)),
        "scalar": np.array(1.0, "f4"),
        "column": random((3, 1)),
        "ids": np.zeros((2, 2), "i8"),
        "bytes": np.zeros((2, 2), "u1"),
        "mask": np.zeros((2, 2), "?"),
        "none": np.zeros((0, 4), "f4"),
        "many": np.zeros((2,) * 6, "f4"),
        "a": random((2, 2)),
    }
    save_file(weights, tmp_path / "model.safetensors")
    with open_model(tmp_path) as m:
        assert list(m.layers) == ["a", "z"]
        assert list(m.vectors) == ["bias", "column", "scalar", "token"]
        assert list(m.all_layers) == sorted([*m.layers, *m.vectors])
        assert m.left_out == {
            **dict.fromkeys(["ids", "bytes"], "integer"),
            "mask": "boolean",
            "none": "empty",
            "many": "6-dimensional",
        }


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3"])
def test_dtypes_that_are_not_read_are_reported(write_raw, dtype):
    size = {"F4": 2, "F6_E2M3": 3}.get(dtype, 4)
    header = {"w": {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, size]}}
    with open_model(write_raw(header, b"\0" * size)) as m:
        assert m.left_out == {"w": f"{dtype}, which is not read"}
        with pytest.raises(ProbexError, match=f"tensor 'w' is {dtype}, which is not read"):
            m.matrix("w")
        with pytest.raises(ProbexError, match=f"'w' is of {dtype}, expected one of F64.*F8_E5M2"):
            m.tensor("w")


# Codes of the 256 that are no number, as the OCP's specification of 8-bit floats has them.
NO_NUMBERS = {"F8_E4M3": [0x7F, 0xFF], "F8_E5M2": [*range(0x7C, 0x80), *range(0xFC, 0x100)]}


def value_of(code, exponent_bits, mantissa_bits):
    """An 8-bit float by its definition, in double precision."""
    bias = 2 ** (exponent_bits - 1) - 1
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    fraction = code % 2**mantissa_bits / 2**mantissa_bits
    size = (exponent > 0) + fraction
    return (-1.0) ** (code >> 7) * size * 2.0 ** (max(exponent, 1) - bias)


@pytest.mark.parametrize(("dtype", "bits"), [("F8_E4M3", (4, 3)), ("F8_E5M2", (5, 2))])
def test_every_code_of_8_bits_is_its_number_or_refused(write_raw, dtype, bits):
    numbers = [code for code in range(256) if code not in NO_NUMBERS[dtype]]
    header = {"w": {"dtype": dtype, "shape": [2, 128], "data_offsets": [0, 256]}}
    data = bytes(numbers).ljust(256, b"\0")
    with open_model(write_raw(header, data)) as m:
        expected = np.array([value_of(code, *bits) for code in data], "f4").reshape(2, 128)
        np.testing.assert_array_equal(m.matrix("w"), expected)
        np.testing.assert_array_equal(np.signbit(m.matrix("w")), np.signbit(expected))
        np.testing.assert_array_equal(
            m.matrix("w"), np.frombuffer(data, DTYPES[dtype]).astype("f4").reshape(2, 128)
        )
        np.testing.assert_array_equal(m.rows("w", [1, 0]), expected[[1, 0]])
    for code in NO_NUMBERS[dtype]:
        with (
            open_model(write_raw(header, data[:-1] + bytes([code]))) as m,
            pytest.raises(ProbexError, match="layer 'w': 1 of 256 values are NaN or infinite"),
        ):
            m.matrix("w")


def test_reads_only_the_header_and_the_bytes_asked_for(tmp_path, monkeypatch):
    weights = {name: random((64, 64), seed=i) for i, name in enumerate("abcdefgh")}
    save_file(weights, tmp_path / "model.safetensors")
    read = []
    preadv = os.preadv

    def counting(descriptor, buffers, offset):
        count = preadv(descriptor, buffers, offset)
        read.append(count)
        return count

    monkeypatch.setattr(os, "preadv", counting)
    with open_model(tmp_path) as m:
        assert sum(read) == os.path.getsize(tmp_path / "model.safetensors") - 8 * 64 * 64 * 4
        read.clear()
        np.testing.assert_array_equal(m.matrix("c"), weights["c"])
        assert sum(read) == 64 * 64 * 4


def test_short_reads_are_continued(tmp_path, monkeypatch):
    value = random((64, 64))
    save_file({"w": value}, tmp_path / "model.safetensors")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:1000]], at))
    with open_model(tmp_path) as m:
        np.testing.assert_array_equal(m.matrix("w"), value)


def test_a_file_cut_short_while_open_is_an_error(tmp_path):
    save_file({"w": random((64, 64))}, tmp_path / "model.safetensors")
    with open_model(tmp_path) as m:
        os.truncate(tmp_path / "model.safetensors", 1000)
        with pytest.raises(ProbexError, match=r"became shorter while it was open: \d+ bytes"):
            m.matrix("w")


def test_several_threads_read_at_once(tmp_path):
    weights = {str(i): random((200, 50), seed=i) for i in range(8)}
    save_file(weights, tmp_path / "model.safetensors")
    wrong = []
    with open_model(tmp_path) as m:

        def read(name):
            wrong.extend(name for _ in range(50) if (m.matrix(name) != weights[name]).any())

        threads = [threading.Thread(target=read, args=(name,)) for name in weights]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        ("f4", [np.nan, 2.0]),
        ("f4", [np.inf, 1.0]),
        ("f4", [-np.inf, 1.0]),
        ("f4", [np.inf, -np.inf]),
        ("f2", [np.nan, -np.inf]),
        ("f8", [1e300, np.nan]),
        ("f8", [-1e39, 0.0]),
        (ml_dtypes.bfloat16, [np.inf, np.nan]),
    ],
)
def test_values_that_are_not_finite_are_counted(tmp_path, dtype, bad):
    value = np.zeros((3, 3))
    value[0, :2] = bad
    save_file({"good": random((3, 3)), "w": value.astype(dtype)}, tmp_path / "model.safetensors")
    with np.errstate(over="ignore"):
        count = np.count_nonzero(~np.isfinite(value.astype("f4")))
    with open_model(tmp_path) as m:
        m.matrix("good")
        with pytest.raises(ProbexError, match=rf"safetensors: layer 'w': {count} of 9 values"):
            m.matrix("w")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 20000])
def test_counting_of_values_that_are_not_finite_is_exact(size):
    values = random(size)
    assert count_unfit(values) == 0
    assert count_unfit(values * np.float32(1e37)) == 0  # whose squares overflow
    for bad in (np.nan, np.inf, -np.inf):
        for place in {0, size // 2, size - 1} if size else ():
            spoilt = values.copy()
            spoilt[place] = bad
            assert count_unfit(spoilt) == 1


def test_signalling_nan_does_not_warn(write_raw):
    header = {"w": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}
    with (
        open_model(write_raw(header, b"\x01\x7d" * 4)) as m,
        pytest.raises(ProbexError, match="4 of 4 values"),
    ):
        m.matrix("w")


def test_unknown_layer_gets_a_suggestion(tmp_path):
    weights = {"head.weight": random((2, 2)), "head.bias": random(2), "head.ids": np.ones(2, "i8")}
    save_file(weights, tmp_path / "a.safetensors")
    with open_model(tmp_path) as m:
        with pytest.raises(ProbexError, match=r"did you mean 'head\.weight'"):
            m.matrix("haed.weight")
        with pytest.raises(ProbexError, match=r"did you mean 'head\.bias'"):
            m.matrix("haed.bias")
        with pytest.raises(ProbexError, match=r"tensor 'head\.ids' is integer"):
            m.matrix("head.ids")


def test_a_closed_model_reads_nothing(tmp_path):
    save_file({"w": random((2, 2))}, tmp_path / "model.safetensors")
    with open_model(tmp_path) as m:
        pass
    m.close()
    with pytest.raises(ValueError, match="closed"):
        m.matrix("w")


def test_a_model_that_cannot_be_opened_leaves_no_file_open(tmp_path):
    save_file({"v": random((2, 2))}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"rubbish and more rubbish")
    index = '{"weight_map": {"v": "a.safetensors", "w": "b.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ProbexError, match=r"b\.safetensors"):
        open_model(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_metadata_and_config(tmp_path):
    metadata = {"format": "pt", "dataset_chosen_targets": "['a', 'b']"}
    save_file({"w": random((2, 2))}, tmp_path / "model.safetensors", metadata)
    with open_model(tmp_path) as m:
        assert m.metadata == metadata
        assert m.config == {}
    (tmp_path / "config.json").write_text('{"model_type": "vit", "limits": [0.0, Infinity]}')
    with open_model(tmp_path / "model.safetensors") as m:
        assert m.config == {"model_type": "vit", "limits": [0.0, float("inf")]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "config.json has the key 'a' twice"),
        ("{" * 5, "config.json is not valid JSON"),
        (" " * (16 * 1024 * 1024 + 1), "the limit is 16777216"),
    ],
    ids=["a key twice", "no JSON", "large"],
)
def test_a_bad_config_is_an_error_when_asked_for(tmp_path, text, message):
    save_file({"w": random((2, 2))}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with open_model(tmp_path) as m:
        m.matrix("w")
        with pytest.raises(ProbexError, match=message):
            _ = m.config
