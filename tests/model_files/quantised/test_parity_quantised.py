"""Every method against its own library's dequantisation, on files as that library writes them."""

import json

import numpy as np
import pytest

from probex_jax.model_files import open_model

pytestmark = pytest.mark.parity
LAYER = "model.layers.0.mlp.down_proj"


def weight(*shape, seed=0):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype("f4"))


def check(folder, tensors, expected, config=None, name=f"{LAYER}.weight", metadata=None):
    """Saves tensors named after the layer, and compares what is read with the expected values."""
    from safetensors.torch import save_file

    tensors = {f"{LAYER}.{end}": value.contiguous() for end, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    with open_model(folder) as m:
        assert [*m.layers] == [name]
        assert not m.left_out
        values = m.matrix(name)
    expected = expected.float().numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert values.dtype == np.float32
    assert values.flags.c_contiguous


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    ("shape", "block", "storage"),
    [((96, 64), 64, "uint8"), ((512, 256), 128, "bfloat16"), ((37, 23), 64, "uint8")],
)
def test_bitsandbytes_4_bits(tmp_path, kind, nested, shape, block, storage):
    torch, functional = (pytest.importorskip(n) for n in ("torch", "bitsandbytes.functional"))
    packed, state = functional.quantize_4bit(
        weight(*shape),
        blocksize=block,
        quant_type=kind,
        compress_statistics=nested,
        quant_storage=getattr(torch, storage),
    )
    ends = {f"weight.{end}": value for end, value in state.as_dict(packed=True).items()}
    expected = functional.dequantize_4bit(packed, state)
    assert expected.dtype == torch.float32
    check(tmp_path, {"weight": packed, **ends}, expected)


def test_bitsandbytes_8_bits(tmp_path):
    torch, functional = (pytest.importorskip(n) for n in ("torch", "bitsandbytes.functional"))
    codes, absmax, _ = functional.int8_vectorwise_quant(weight(48, 32).half())
    expected = functional.int8_vectorwise_dequant(codes, absmax)
    ends = {"weight": codes, "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    check(tmp_path, ends, expected)


FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("grid", [(2, 3), (256, 1), (1, 1), (1, 384), (4, 6), (256, 12)])
def test_blocks_of_8_bit_floats(tmp_path, dtype, grid):
    torch = pytest.importorskip("torch")
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    stored, scale = weight(256, 384).to(getattr(torch, dtype)), weight(*grid, seed=1).abs()
    expected = Fp8Dequantize(None)._dequantize_one(stored, scale)
    check(tmp_path, {"weight": stored, "weight_scale_inv": scale}, expected)


def test_mxfp8_and_packed_mxfp4_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    dequantise = Fp8Dequantize(None)._dequantize_one
    scale = torch.randint(110, 140, (64, 4), dtype=torch.uint8)
    stored = weight(64, 128).to(torch.float8_e4m3fn)
    expected = dequantise(stored, scale, torch.float32)
    check(tmp_path, {"weight": stored, "weight_scale_inv": scale}, expected)
    stored = torch.randint(-128, 128, (64, 64), dtype=torch.int8)
    expected = dequantise(stored, scale, torch.float32)
    for dtype in (torch.uint8, torch.float8_e8m0fnu):
        check(tmp_path, {"weight": stored, "scale": scale.view(dtype)}, expected)


def test_experts_of_gpt_oss(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from probex_jax.model_files.quantised import find_quantised
    from probex_jax.model_files.safetensors_header import TensorInfo

    blocks = torch.randint(0, 256, (3, 24, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 24, 2), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    arrays = {"e.gate_up_proj_blocks": blocks.numpy(), "e.gate_up_proj_scales": scales.numpy()}
    infos = {name: TensorInfo("U8", value.shape, 0, value.size) for name, value in arrays.items()}
    found = find_quantised(infos, arrays.__getitem__, {}).packed["e.gate_up_proj"]
    assert found.shape == expected.shape == (3, 64, 24)
    np.testing.assert_array_equal(found.values(arrays.__getitem__, dict), expected)


INTEGERS = [
    {"num_bits": bits, "strategy": strategy, "symmetric": symmetric, "group_size": group}
    for bits in (2, 3, 4, 8)
    for strategy, group in (("channel", None), ("group", 32))
    for symmetric in (True, False)
]


def compressed(compressor, arguments, stored, **scales):
    """A weight as compressed-tensors writes it, and as it reads that."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    written = compressor.compress({"weight": stored, **scales}, scheme)
    return written, compressor.decompress(written, scheme)["weight"]


@pytest.mark.parametrize("arguments", INTEGERS)
def test_packed_integers_of_compressed_tensors(tmp_path, arguments):
    torch, packed = (
        pytest.importorskip(n)
        for n in ("torch", "compressed_tensors.compressors.pack_quantized.base")
    )
    groups, most = 1 if arguments["strategy"] == "channel" else 4, 2 ** (arguments["num_bits"] - 1)
    scales = {"weight_scale": weight(40, groups, seed=1).abs() * 2 / most + 0.1 / most}
    if not arguments["symmetric"]:
        zeros = torch.randint(-most, most, (40, groups), dtype=torch.int8)
        scales["weight_zero_point"] = zeros
    written, expected = compressed(
        packed.PackedQuantizationCompressor, arguments, weight(40, 128), **scales
    )
    check(tmp_path, written, expected)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
def test_8_bits_of_compressed_tensors(tmp_path, kind, strategy):
    base = pytest.importorskip("compressed_tensors.compressors.naive_quantized.base")
    arguments = {"num_bits": 8, "type": kind, "strategy": strategy}
    arguments |= {"group_size": 32} if strategy == "group" else {}
    arguments |= {"block_structure": [16, 32]} if strategy == "block" else {}
    shape = {"tensor": (1,), "channel": (64, 1), "group": (64, 4), "block": (4, 4)}[strategy]
    scale = weight(*shape, seed=1).abs() / 50 + 0.01
    written, expected = compressed(
        base.NaiveQuantizationCompressor, arguments, weight(64, 128), weight_scale=scale
    )
    check(tmp_path, written, expected)


def test_4_bit_floats_of_compressed_tensors(tmp_path):
    torch, nvfp4, mxfp4 = (
        pytest.importorskip(n)
        for n in (
            "torch",
            "compressed_tensors.compressors.nvfp4.base",
            "compressed_tensors.compressors.mxfp4.base",
        )
    )
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    arguments = {"num_bits": 4, "type": "float", "symmetric": True}
    grouped = {"strategy": "tensor_group", "group_size": 16}
    scale = (weight(48, 4, seed=1).abs() * 100 + 50).to(torch.float8_e4m3fn).float()
    # 2 to the power of 9, so that its library's bfloat16 rounds nothing.
    scales = {"weight_scale": scale, "weight_global_scale": torch.tensor([512.0])}
    written, expected = compressed(
        nvfp4.NVFP4PackedCompressor, arguments | grouped, weight(48, 64), **scales
    )
    del dequantize
    check(tmp_path, written, expected)
    grouped = {"strategy": "group", "group_size": 32}
    scales = {"weight_scale": 2.0 ** torch.randint(-4, 2, (48, 2)).float()}
    written, expected = compressed(
        mxfp4.MXFP4PackedCompressor, arguments | grouped, weight(48, 64), **scales
    )
    check(tmp_path, written, expected)


@pytest.mark.filterwarnings("ignore")
def test_torchao(tmp_path):
    torch, torchao = (pytest.importorskip(n) for n in ("torch", "torchao.quantization"))
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    for config in (torchao.Int8WeightOnlyConfig, torchao.Float8WeightOnlyConfig):
        model = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
        torchao.quantize_(model, config())
        state = model.state_dict()
        tensors, metadata = flatten_tensor_state_dict(state)
        ends = {name.removeprefix("0."): value for name, value in tensors.items()}
        check(tmp_path, ends, state["0.weight"].dequantize(torch.float32), metadata=metadata)


MLX = [("affine", g, b) for g in (32, 64, 128) for b in (2, 3, 4, 5, 6, 8)]
MLX += [("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)]


@pytest.mark.parametrize(("mode", "group", "bits"), MLX)
def test_mlx(tmp_path, mode, group, bits):
    mx = pytest.importorskip("mlx.core")
    stored = mx.array(np.random.default_rng(0).normal(size=(24, 256)).astype("f4"))
    options = {"group_size": group, "bits": bits, "mode": mode}
    tensors = mx.quantize(stored, **options)
    expected = np.array(mx.dequantize(*tensors, **options, dtype=mx.float32))
    ends = zip(("weight", "scales", "biases"), tensors, strict=False)
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {f"{LAYER}.{end}": value for end, value in ends})
    (tmp_path / "config.json").write_text(json.dumps({"quantization": options}))
    with open_model(tmp_path) as m:
        np.testing.assert_allclose(m.matrix(f"{LAYER}.weight"), expected, rtol=1e-6, atol=1e-6)
