"""Quantised weights are read as their methods mean them, against references in float64."""

import contextlib
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import fingerprint, open_model
from probex_jax.model_files.quantised import find_quantised
from probex_jax.model_files.safetensors_header import TensorInfo

FLOAT8 = ml_dtypes.float8_e4m3fn
LAYER = "model.layers.0.mlp.down_proj"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
DTYPES = {"f": "F", "i": "I", "u": "U"}


def random(seed=0):
    return np.random.default_rng(seed)


def drawn(*shape, dtype="f4", seed=1):
    """Positive numbers of which float16 loses nothing."""
    return np.asarray(random(seed).integers(1, 1000, shape) / 512, dtype)


def opened(folder, tensors, config=None, metadata=None):
    save_file({f"{LAYER}.{end}": value for end, value in tensors.items()}, folder / "m.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if metadata:
        named = {f"{LAYER}.{end}": value for end, value in tensors.items()}
        save_file(named, folder / "m.safetensors", metadata)
    return open_model(folder)


def found(arrays, config=dict):
    """What is found among arrays in memory."""

    def dtype(array):
        kind = "F8_E4M3" if array.dtype == FLOAT8 else DTYPES.get(array.dtype.kind, "?")
        return kind if len(kind) > 1 else f"{kind}{8 * array.itemsize}"

    infos = {n: TensorInfo(dtype(v), v.shape, 0, v.nbytes) for n, v in arrays.items()}
    return find_quantised(infos, arrays.__getitem__, {}, config)


def check(folder, tensors, expected, config=None, metadata=None):
    with opened(folder, tensors, config, metadata) as m:
        assert dict(m.left_out) == {}
        assert [*m.layers] == [f"{LAYER}.weight"]
        assert m.layers[f"{LAYER}.weight"].shape == expected.shape
        np.testing.assert_allclose(m.matrix(f"{LAYER}.weight"), expected, rtol=1e-6)
        assert set(m.tensors_of(f"{LAYER}.weight")) == {f"{LAYER}.{end}" for end in tensors}
        np.testing.assert_allclose(m.rows(f"{LAYER}.weight", [1]), expected[[1]], rtol=1e-6)


def packed(codes, bits):
    """[n, words] of [n, m] integers, one after the other in one long number, the lowest first."""
    rows = [sum(int(code) << bits * i for i, code in enumerate(row)) for row in codes]
    size = -(-codes.shape[1] * bits // 32) * 4
    return np.stack([np.frombuffer(row.to_bytes(size, "little"), "i4") for row in rows])


def quantised(outputs, inputs, groups, bits, order=None):
    """Codes [out, in], zeros and scales [out, groups], and what they stand for."""
    codes = random().integers(0, 2**bits, (outputs, inputs))
    zeros = random(1).integers(1, 2**bits, (outputs, groups))
    scales = drawn(outputs, groups, dtype="f2")
    order = np.arange(inputs) // (inputs // groups) if order is None else order
    values = (codes - zeros[:, order]) * np.float64(scales)[:, order]
    return codes, zeros, scales, values


def gptq(codes, zeros, scales, bits):
    return {
        "qweight": packed(codes, bits).T.copy(),
        "qzeros": packed(zeros.T, bits),
        "scales": scales.T.copy(),
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["", "ordered", "version 2", "of few outputs"])
def test_gptq(tmp_path, bits, form):
    order = random(2).permutation(np.arange(128) // 32).astype("i4") if form else None
    outputs, config = 8 if form == "of few outputs" else 64, None
    codes, zeros, scales, expected = quantised(outputs, 128, 4, bits, order)
    if form == "version 2":
        config = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}}
    tensors = gptq(codes, zeros - (form != "version 2"), scales, bits)
    check(tmp_path, tensors | ({"g_idx": order} if form else {}), expected, config)


def test_of_gptq_zeros_of_version_1_wrap_around(tmp_path):
    codes, zeros, scales, _ = quantised(64, 128, 4, 4)
    tensors = gptq(codes, np.full_like(zeros, 15), scales, 4)
    check(tmp_path, tensors, codes * np.float64(scales).repeat(32, axis=1))


@pytest.mark.parametrize("groups", [1, 4])
def test_awq(tmp_path, groups):
    codes, zeros, scales, expected = quantised(64, 128, groups, 4)

    def in_order(codes):
        columns = codes.T.reshape(codes.shape[1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return packed(columns.reshape(codes.shape[1], -1), 4)

    tensors = {"qweight": in_order(codes), "qzeros": in_order(zeros), "scales": scales.T.copy()}
    check(tmp_path, tensors, expected)


@pytest.mark.parametrize(("inputs", "group"), [(512, 128), (512, 64), (128, 32), (128, 128)])
def test_awq_for_vectors(tmp_path, inputs, group):
    groups = inputs // group
    codes, zeros, scales, expected = quantised(40, inputs, groups, 4)
    padding = [(0, 0), (0, -groups % (8 * 128 // group))]
    tensors = {"qweight": packed(codes, 4), "qzeros": packed(np.pad(zeros, padding), 4)}
    check(tmp_path, tensors | {"scales": np.pad(scales, padding)}, expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_hqq(tmp_path, bits, axis):
    shape, rows, columns = (24, 64), *((32, 48) if axis == 0 else (48, 32))
    codes, word = random().integers(0, 2**bits, (rows, columns)), 30 if bits == 3 else 8
    lots = word // bits
    blocks = np.pad(codes, [(0, -rows % lots), (0, 0)]).reshape(lots, -1, columns)
    shifts = word - bits * np.arange(1, lots + 1)
    stored = (blocks << shifts[:, None, None]).sum(0).astype("i4" if bits == 3 else "u1")
    ends = (1, columns) if axis == 0 else (rows, 1)
    scale, zero = drawn(*ends, dtype="f2"), drawn(*ends, dtype="f2", seed=2)
    tensors = {"W_q": stored, "scale": scale, "zero": zero, "shape": np.array(shape)}
    expected = ((codes - np.float64(zero)) * scale).reshape(shape)
    check(tmp_path, tensors, expected)


def nested(shape):
    """bitsandbytes: a table of 16, blocks of 64, whose greatest are quantised in blocks of 8."""
    count = shape[0] * shape[1]
    blocks = -(-count // 64)
    codes, absmax = random().integers(0, 16, count), random().integers(0, 256, blocks)
    table, second, third = drawn(16), drawn(256, seed=2), drawn(-(-blocks // 8), seed=3)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": shape}
    state |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.25}
    greatest = np.float64(second)[absmax] * third.repeat(8)[:blocks] + 0.25
    tensors = {
        "weight": (codes[::2] << 4 | codes[1::2]).astype("u1")[:, None],
        "weight.absmax": absmax.astype("u1"),
        "weight.quant_map": table,
        "weight.nested_absmax": third,
        "weight.nested_quant_map": second,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), "u1"),
    }
    return tensors, (np.float64(table)[codes] * greatest.repeat(64)[:count]).reshape(shape)


@pytest.mark.parametrize("shape", [(37, 30), (64, 16)])
def test_bitsandbytes_with_nested_scales(tmp_path, shape):
    check(tmp_path, *nested(shape))


@pytest.mark.parametrize("size", [0, 7, 1])
def test_bitsandbytes_whose_state_contradicts_the_file_is_left_out(tmp_path, size):
    states = [b"{}", b"[" * 4000, b"\xff", b'{"shape": [1e9], "blocksize": 64}', bytes(80)]
    states += [b'{"shape": [32, 16], "blocksize": 0}', b'{"shape": [99, 16], "blocksize": 64}']
    states += [b'{"shape": [32, 16], "blocksize": 64, "nested_blocksize": -1}', b"7"]
    for state in states:
        tensors = {
            "weight": np.zeros([256, 1], "u1"),
            "weight.absmax": np.zeros(8 + size, "f4"),
            "weight.quant_map": np.zeros(16, "f4"),
            "weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, "u1"),
        }
        with opened(tmp_path, tensors) as m:
            assert dict(m.layers) == {}
            assert "bitsandbytes NF4" in m.left_out[f"{LAYER}.weight"]


def test_int8_by_rows_and_in_another_order(tmp_path):
    codes, scale = random().integers(-127, 128, (8, 16)).astype("i1"), drawn(8)
    tensors = {"weight": codes, "SCB": scale, "weight_format": np.zeros((), "u1")}
    check(tmp_path, tensors, codes * np.float64(scale)[:, None] / 127)
    with (
        opened(tmp_path, tensors | {"weight_format": np.full((), 2, "u1")}) as m,
        pytest.raises(ProbexError, match=LAYER),
    ):
        m.matrix(f"{LAYER}.weight")


# Scales of a weight [96, 256] and what each is for.
GRIDS = {(): (96, 256), (1, 1): (96, 256), (96,): (1, 256), (96, 1): (1, 256), (1, 256): (96, 1)}
GRIDS |= {(1, 2): (96, 128), (3, 8): (32, 32), (2, 2): (64, 128), (96, 8): (1, 32)}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", ["i1", FLOAT8, ml_dtypes.float8_e5m2])
def test_8_bits_times_a_grid_of_scales(tmp_path, grid, dtype):
    stored, scale = random().integers(-9, 9, (96, 256)).astype(dtype), drawn(*grid)
    spread = np.kron(
        np.float64(scale.reshape(96, 1) if grid == (96,) else scale), np.ones(GRIDS[grid])
    )
    expected = np.float64(stored.astype("f4")) * spread[:96, :256]
    check(tmp_path, {"weight": stored, "weight_scale": scale}, expected)


def test_blocks_are_of_the_size_that_config_json_states(tmp_path):
    stored, scale = random().integers(-9, 9, (96, 96)).astype(FLOAT8), drawn(2, 2)
    config = {"quantization_config": {"weight_block_size": [48, 48]}}
    tensors = {"weight": stored, "weight_scale_inv": scale}
    expected = np.float64(stored.astype("f4")) * np.kron(scale, np.ones([48, 48]))
    check(tmp_path, tensors, expected, config)
    for other in ([1, 1], ["a", 48], 7, [0, -48]):  # those do not fit: 64 x 64
        config = {"quantization_config": {"weight_block_size": other}}
        expected = np.float64(stored.astype("f4")) * np.kron(scale, np.ones([64, 64]))[:96, :96]
        check(tmp_path, tensors, expected, config)


def test_integers_less_a_zero_point(tmp_path):
    codes, scale = random().integers(-127, 128, (8, 64)).astype("i1"), drawn(8, 4)
    zeros = random(1).integers(-9, 9, (8, 4)).astype("i1")
    tensors = {"weight": codes, "weight_scale": scale, "weight_zero_point": zeros}
    shifted = codes.astype(int) - zeros.repeat(16, 1)
    check(tmp_path, tensors, shifted * np.float64(scale).repeat(16, 1))


def floats4(shape):
    """Bytes of two 4-bit floats, the lower half first, and the values."""
    codes = random().integers(0, 16, shape)
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype("u1"), E2M1[codes]


def exponents(*shape):
    bytes_ = random(1).integers(120, 134, shape).astype("u1")
    return bytes_, 2.0 ** (bytes_.astype(int) - 127)


def test_4_bit_floats(tmp_path):
    stored, values = floats4((8, 64))
    scale, factor = exponents(8, 2)
    expected = values * factor.repeat(32, axis=1)
    check(tmp_path, {"weight_packed": stored, "weight_scale": scale}, expected)
    check(tmp_path, {"weight": stored.view("i1"), "scale": scale}, expected)
    scale, second = drawn(8, 4).astype(FLOAT8), drawn(1)
    expected = values * np.float64(scale.astype("f4")).repeat(16, axis=1)
    tensors = {"weight": stored, "weight_scale": scale, "weight_scale_2": second.reshape(())}
    check(tmp_path, tensors, expected * second)
    tensors = {"weight_packed": stored, "weight_scale": scale, "weight_global_scale": second}
    check(tmp_path, tensors, expected / second)


def tiles(scale):
    """Scales as tensor cores take them: (r, c) lies at r % 32, r // 32, c of a tile of 128x4."""
    rows, columns = (-(-n // k) for n, k in zip(scale.shape, (128, 4), strict=True))
    tiled = np.zeros([rows, columns, 32, 4, 4], scale.dtype)
    for (row, column), value in np.ndenumerate(scale):
        tiled[row // 128, column // 4, row % 32, row % 128 // 32, column % 4] = value
    return tiled.reshape(rows * 128, columns * 4)


@pytest.mark.parametrize("shape", [(144, 96), (128, 64)])
def test_comfyui_keeps_scales_in_tiles_and_the_higher_half_first(tmp_path, shape):
    said = np.frombuffer(b'{"format": "nvfp4"}', "u1")
    stored, values = floats4(shape)
    scale = drawn(shape[0], shape[1] // 16).astype(FLOAT8)
    tensors = {"weight": stored >> 4 | stored << 4, "weight_scale": tiles(scale)}
    tensors |= {"weight_scale_2": drawn(), "comfy_quant": said}
    expected = values * np.float64(scale.astype("f4")).repeat(16, axis=1) * drawn()
    with opened(tmp_path, tensors) as m:
        np.testing.assert_allclose(m.matrix(f"{LAYER}.weight"), expected, rtol=1e-6)
    del tensors["comfy_quant"]
    check(tmp_path, tensors, expected, metadata={"_quantization_metadata": "{}"})
    stored, (scale, factor) = drawn(*shape).astype(FLOAT8), exponents(shape[0], shape[1] // 32)
    tensors = {"weight": stored, "weight_scale": tiles(scale), "comfy_quant": said}
    with opened(tmp_path, tensors) as m:
        expected = np.float64(stored.astype("f4")) * factor.repeat(32, axis=1)
        np.testing.assert_allclose(m.matrix(f"{LAYER}.weight"), expected, rtol=1e-6)


def test_of_comfyui_s_integers_only_those_not_rotated_are_read(tmp_path):
    codes = random().integers(-127, 128, (8, 16)).astype("i1")
    said = {"format": "int8_tensorwise"}
    for state in (said, said | {"convrot": True}, {"format": "convrot_w4a4"}, {}):
        tensors = {"weight": codes, "weight_scale": drawn()}
        tensors["comfy_quant"] = np.frombuffer(json.dumps(state).encode(), "u1")
        with opened(tmp_path, tensors) as m:
            assert bool(m.layers) == (state == said)


def test_comfyui_s_floats_in_high_precision_are_layers(tmp_path):
    stored, scale = drawn(8, 16, dtype="f2"), drawn(1)
    check(tmp_path, {"weight": stored, "scale_weight": scale}, np.float64(stored) * scale)


@pytest.mark.parametrize("end", ["_blocks", ".blocks"])
def test_experts_of_gpt_oss(end):
    """transformers' parameter is turned, OpenAI's is not."""
    stored, values = floats4((3, 8, 2, 32))
    scale, factor = exponents(3, 8, 2)
    arrays = {f"mlp{end}": stored, f"mlp{end.replace('blocks', 'scales')}": scale}
    result = found(arrays)
    assert (dict(result.left_out), [*result.packed]) == ({}, ["mlp"])
    expected = (values * factor[..., None]).reshape(3, 8, 64)
    expected = expected.swapaxes(1, 2) if end == "_blocks" else expected
    assert result.packed["mlp"].shape == expected.shape
    np.testing.assert_array_equal(result.packed["mlp"].values(arrays.__getitem__, dict), expected)


def test_stacked_experts_with_a_scale_each(tmp_path):
    for grid, ones in (((3,), (1, 8, 32)), ((3, 1, 2), (1, 8, 16)), ((3, 8, 1), (1, 1, 32))):
        arrays = {"experts.down_proj": random().integers(-9, 9, (3, 8, 32)).astype(FLOAT8)}
        scale = arrays["experts.down_proj_scale"] = drawn(*grid)
        result = found(arrays).packed["experts.down_proj"]
        scale = scale.reshape(3, 1, 1) if grid == (3,) else scale
        expected = arrays["experts.down_proj"].astype("f8") * np.kron(scale, np.ones(ones))
        np.testing.assert_allclose(result.values(arrays.__getitem__, dict), expected, rtol=1e-6)


def stacks():
    """Experts that widen and narrow, by several methods: tensors, and what they stand for."""
    stored, scale = random().integers(-9, 9, (3, 96, 32)).astype(FLOAT8), drawn(3, seed=2)
    yield "_scale", stored, scale, np.float64(stored.astype("f4")) * scale.reshape(3, 1, 1)
    scale = drawn(3, 96, 2, seed=2)
    yield "_scale_inv", stored, scale, np.float64(stored.astype("f4")) * scale.repeat(16, -1)
    stored, values = floats4((3, 96, 32))
    scale, factor = exponents(3, 96, 1)
    yield "_scale", stored, scale, values * factor


@pytest.mark.parametrize("stack", [*stacks()])
def test_each_of_stacked_experts_is_read_alone(tmp_path, stack):
    end, stored, scale, expected = stack
    narrow = {"down_proj": drawn(3, 32, 48)}
    tensors = {"gate_up_proj": stored, f"gate_up_proj{end}": scale} | narrow
    save_file({f"mlp.experts.{n}": v for n, v in tensors.items()}, tmp_path / "m.safetensors")
    with open_model(tmp_path) as m:
        for expert in range(3):
            [name] = [n for n in m.layers if f".{expert}." in n and "gate_up" in n]
            np.testing.assert_allclose(m.matrix(name), expected[expert], rtol=1e-6)


def test_experts_of_gpt_oss_are_outputs_by_inputs(tmp_path):
    tensors, expected = {}, {}
    for name, shape in (("gate_up_proj", (3, 128, 1, 32)), ("down_proj", (3, 32, 2, 32))):
        (tensors[f"{name}_blocks"], values), (scale, factor) = floats4(shape), exponents(*shape[:3])
        tensors[f"{name}_scales"] = scale
        expected[name] = (values * factor[..., None]).reshape(*shape[:2], -1)
    save_file({f"mlp.experts.{n}": v for n, v in tensors.items()}, tmp_path / "m.safetensors")
    with open_model(tmp_path) as m:
        assert len(m.layers) == 6
        for layer in m.layers:
            name, expert = (
                next(n for n in expected if n in layer),
                int(layer.split("experts.")[1][0]),
            )
            np.testing.assert_array_equal(m.matrix(layer), expected[name][expert])


def mlx(codes, scales, biases, bits):
    return {"weight": packed(codes, bits).view("u4"), "scales": scales, "biases": biases}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_mlx(tmp_path, bits, group):
    codes, _, scales, _ = quantised(8, 256, 256 // group, bits)
    biases = -drawn(8, 256 // group, dtype="f2", seed=3)
    tensors = mlx(codes, scales, biases, bits)
    spread = [np.float64(each).repeat(group, axis=1) for each in (scales, biases)]
    for of_layer in ({"group_size": group, "bits": bits}, {"group_size": group}, {"bits": bits}):
        config = {"quantization": {"group_size": 64, "bits": 4, LAYER: of_layer}}
        check(tmp_path, tensors, codes * spread[0] + spread[1], config)
    is_clear = [g * b for g in (32, 64, 128) for b in (2, 3, 4, 5, 6, 8)].count(group * bits) == 1
    for config in ({}, {"quantization": 7}, {"quantization": {LAYER: 7}}):
        with opened(tmp_path, tensors, config) as m:
            assert bool(m.layers) == is_clear
            assert is_clear or "MLX" in m.left_out[f"{LAYER}.weight"]
    (tmp_path / "config.json").write_text("{")
    with open_model(tmp_path) as m:
        assert bool(m.layers) == is_clear


@pytest.mark.parametrize(("mode", "group"), [("mxfp4", 32), ("nvfp4", 16), ("mxfp8", 32)])
def test_floats_of_mlx(tmp_path, mode, group):
    stored, values = floats4((8, 64))
    if mode == "mxfp8":
        stored = drawn(8, 64).astype(FLOAT8)
        values = np.float64(stored.astype("f4"))
    scale, factor = exponents(8, 64 // group)
    if mode == "nvfp4":
        scale = drawn(8, 4).astype(FLOAT8)
        scale, factor = scale.view("u1"), np.float64(scale.astype("f4"))
    tensors = {"weight": stored.view("u4"), "scales": scale}
    check(tmp_path, tensors, values * factor.repeat(group, axis=1))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("form", ["signed", "with zeros", "ordered", "no order", "by rows"])
def test_packed_integers_of_compressed_tensors(tmp_path, bits, form):
    order = random(2).permutation(np.arange(128) // 32).astype("i4") if form == "ordered" else None
    codes, zeros, scales, expected = quantised(64, 128, 1 if form == "by rows" else 4, bits, order)
    tensors = {"weight_packed": packed(codes, bits), "weight_scale": scales}
    tensors["weight_shape"] = np.array([64, 128])
    if form == "signed":
        expected = (codes - 2 ** (bits - 1)) * np.float64(scales).repeat(32, axis=1)
    else:
        tensors["weight_zero_point"] = packed(zeros.T, bits).T.copy()
    if form == "ordered":
        tensors["weight_g_idx"] = order
    elif form == "no order":
        tensors["weight_g_idx"] = np.full(128, -1, "i4")
    check(tmp_path, tensors, expected)


def test_the_mark_of_a_scaled_file_scales_nothing(tmp_path):
    tensors = {"scaled_fp8": drawn(2).astype(FLOAT8), "positions": drawn(8, 16).astype(FLOAT8)}
    save_file(tensors, tmp_path / "m.safetensors")
    with open_model(tmp_path) as m:
        assert [*m.layers] == ["positions"]
        assert [*m.left_out] == ["scaled_fp8"]


def as_8_bits(weight):
    """A weight in 8 bits by four methods: tensors, config, and the greatest error."""
    absmax = np.abs(weight).max(1, keepdims=True)
    low, high = (f(weight.reshape(len(weight), -1, 64), axis=2) for f in (np.min, np.max))
    step = ((high - low) / 255).astype("f4")
    codes = np.rint((weight - low.repeat(64, 1)) / step.repeat(64, 1)).astype(int).clip(0, 255)
    zeros = np.rint(-low / step).astype(int).clip(1, 255)
    shifted = np.rint(weight / step.repeat(64, 1)).astype(int) + zeros.repeat(64, 1)
    config = {"quantization": {"group_size": 64, "bits": 8}}
    one = np.asarray(np.abs(weight).max() / 448, "f4")
    yield {"weight": (weight / one).astype(FLOAT8), "weight_scale": one}, None, 16 * one
    scb = np.rint(weight / absmax * 127).astype("i1")
    yield {"weight": scb, "SCB": absmax[:, 0].astype("f4")}, None, absmax.max() / 127
    yield gptq(shifted.clip(0, 255), zeros - 1, step, 8), None, step.max()
    yield mlx(codes, step, low.astype("f4"), 8), config, step.max()
    quanto = {"weight._data": (weight / one).astype(FLOAT8), "weight._scale": one.reshape(1, 1)}
    yield quanto, None, 16 * one


def test_a_model_and_its_copy_in_8_bits_are_the_same(tmp_path):
    weight = random().normal(size=(64, 128))
    with opened(tmp_path, {"weight": weight.astype("f2"), "bias": drawn(64)}) as m:
        layers, whole = m.all_layers, fingerprint(m)
    for tensors, config, step in as_8_bits(weight):
        with opened(tmp_path, tensors | {"bias": drawn(64)}, config) as m:
            assert [*m.all_layers] == [*layers]
            assert {n: i.shape for n, i in m.all_layers.items()} == {
                n: i.shape for n, i in layers.items()
            }
            assert fingerprint(m) == whole
            assert np.abs(m.matrix(f"{LAYER}.weight") - weight).max() <= step


def test_an_order_of_groups_that_are_not_there_is_one_line(tmp_path):
    codes, zeros, scales, _ = quantised(64, 128, 4, 4)
    for wrong in (-1, 4):
        order = {"g_idx": np.full(128, wrong, "i4")}
        with (
            opened(tmp_path, gptq(codes, zeros, scales, 4) | order) as m,
            pytest.raises(ProbexError, match=LAYER),
        ):
            m.matrix(f"{LAYER}.weight")


def test_what_is_folded_into_activations_leaves_a_weight_out(tmp_path):
    stored = {"weight": drawn(8, 16).astype(FLOAT8), "weight_scale": drawn()}
    with opened(tmp_path, stored | {"pre_quant_scale": drawn(16)}) as m:
        assert dict(m.layers) == {}
        assert "FP8" in m.left_out[f"{LAYER}.weight"]


def test_a_weight_stored_twice_is_no_two_layers(tmp_path):
    codes, zeros, scales, _ = quantised(64, 128, 4, 4)
    with opened(tmp_path, gptq(codes, zeros, scales, 4) | {"weight": drawn(64, 128)}) as m:
        assert "GPTQ" in m.left_out[f"{LAYER}.qweight"]


def test_codebooks_of_another_module_are_no_layers(tmp_path):
    tensors = {"indices": np.zeros([4, 4], "i4"), "weight_scale": drawn(4)}
    with opened(tmp_path, tensors | {"centroids.weight": drawn(8, 8)}) as m:
        assert dict(m.layers) == {}
        assert all("VPTQ" in reason for reason in m.left_out.values())


def test_memory_of_a_weight_is_bounded(tmp_path):
    order = random().permutation(np.arange(1024) // 128).astype("i4")
    codes, zeros, scales, _ = quantised(512, 1024, 8, 4, order)
    with opened(tmp_path, gptq(codes, zeros, scales, 4) | {"g_idx": order}) as m:
        m.matrix(f"{LAYER}.weight")
        tracemalloc.start()
        matrix = m.matrix(f"{LAYER}.weight")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3 * matrix.nbytes


def forms():
    """One weight of every format that has shapes of its own."""
    codes, zeros, scales, _ = quantised(64, 128, 4, 4)
    yield gptq(codes, zeros, scales, 4) | {"g_idx": np.zeros(128, "i4")}
    yield gptq(codes, zeros, scales, 4)
    yield {"qweight": packed(codes.T, 4), "qzeros": packed(zeros.T, 4), "scales": scales.T}
    yield {"qweight": packed(codes, 4), "qzeros": packed(np.pad(zeros, [(0, 0), (0, 28)]), 4),
           "scales": np.pad(scales, [(0, 0), (0, 28)])}  # fmt: skip
    yield nested((37, 30))[0]
    yield {"weight": codes.astype("i1"), "SCB": drawn(64)}
    yield {
        "weight": codes.astype("i1"),
        "weight_scale": scales,
        "weight_zero_point": zeros.astype("i1"),
    }
    yield mlx(codes, scales, scales, 4) | {"config": {"group_size": 32, "bits": 4}}
    stored, _ = floats4((64, 128))
    yield {"weight": stored.view("u4"), "scales": exponents(64, 4)[0]}
    yield {
        "weight": stored,
        "weight_scale": drawn(64, 8).astype(FLOAT8),
        "weight_scale_2": drawn(1),
    }
    yield {"w_blocks": stored.reshape(2, 32, 4, 16), "w_scales": exponents(2, 32, 4)[0]}
    yield {"weight_packed": packed(codes, 4), "weight_scale": scales,
           "weight_shape": np.array([64, 128]), "weight_zero_point": packed(zeros.T, 4).T,
           "weight_g_idx": np.zeros(128, "i4")}  # fmt: skip
    yield {
        "W_q": stored,
        "scale": drawn(128, 1),
        "zero": drawn(128, 1),
        "shape": np.array([64, 128]),
    }
    yield {"weight._data": codes.astype("i1"), "weight._scale": drawn(64, 1)}
    yield {"_weight_qdata": codes.astype("i1"), "_weight_scale": drawn(64, 1)}


def other_shapes(array):
    yield array.reshape(-1)
    yield array.reshape(-1)[:1].reshape(())
    yield array[None]
    for axis in range(array.ndim):
        yield array.repeat(2, axis)
        yield array.repeat(3, axis)
        yield array.take([0], axis)
        yield array.take([], axis)
        yield array.swapaxes(0, axis)


def test_tensors_that_do_not_fit_together_are_never_an_error_when_a_file_is_opened():
    for form in forms():
        stated = {"quantization": form.pop("config", None)}
        assert found(form, lambda stated=stated: stated).packed
        for name, array in form.items():
            others = [np.ones(array.shape, dtype) for dtype in ("f2", "i4", "i8", "u1")]
            for other in (*other_shapes(array), *others):
                arrays = form | {name: np.ascontiguousarray(other)}
                result = found(arrays, lambda stated=stated: stated)
                for weight in result.packed.values():
                    with contextlib.suppress(ProbexError):
                        values = weight.values(arrays.__getitem__, lambda stated=stated: stated)
                        assert values.shape == weight.shape
