"""LoRA files in diffusers' dialect: factors as layers, and what may be wrong with them."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.matrices import LowRank
from probex_jax.model_files import LayerInfo, open_model, select_layers

NAME = "unet.attn1.to_q"


def factors(rows, columns, rank, name=NAME, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{name}.lora.up.weight": rng.standard_normal((rows, rank)).astype(dtype),
        f"{name}.lora.down.weight": rng.standard_normal((rank, columns)).astype(dtype),
    }


def write(folder, tensors):
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("rank", "dtype", "stored"),
    [
        (4, "f4", "F32"),
        (1, "f2", "F16"),
        (3, ml_dtypes.float8_e4m3fn, "F8_E4M3"),
        (2, ml_dtypes.float8_e5m2, "F8_E5M2"),
    ],
)
def test_factors_are_one_layer_and_stay_factors(tmp_path, rank, dtype, stored):
    tensors = factors(6, 5, rank, dtype=dtype)
    with open_model(write(tmp_path, tensors)) as m:
        assert m.layers == {NAME: LayerInfo((6, 5), stored, "lora", rank)}
        assert m.left_out == {}
        matrix = m.matrix(NAME)
    assert isinstance(matrix, LowRank)
    for half, suffix in ((matrix.up, "up"), (matrix.down, "down")):
        assert half.dtype == np.float32
        stated = tensors[f"{NAME}.lora.{suffix}.weight"]
        np.testing.assert_array_equal(half, stated.astype(np.float32))


def test_layers_of_both_kinds_live_in_one_file(tmp_path):
    tensors = {"z.weight": np.ones((3, 2), "f4"), **factors(6, 5, 2)}
    with open_model(write(tmp_path, tensors)) as m:
        assert list(m.layers) == [NAME, "z.weight"]
        assert m.matrix("z.weight").shape == (3, 2)


def test_the_reference_s_number_of_a_stable_diffusion_layer():
    blocks = [
        f"unet.{side}_blocks.{block}.attentions.{number}"
        for side, blocks, count in (("down", (0, 1, 2), 2), ("up", (1, 2, 3), 3))
        for block in blocks
        for number in range(count)
    ]
    names = [
        f"{block}.transformer_blocks.0.attn{which}.{part}"
        for block in [*blocks, "unet.mid_block.attentions.0"]
        for which in (1, 2)
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    expected = "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q"
    assert select_layers(names, 46) == [expected]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("up", r"LoRA 'unet\.attn1\.to_q' has '.*\.down\.weight', the down factor, without the up"),
        ("down", r"LoRA 'unet\.attn1\.to_q' has '.*\.up\.weight', the up factor, without the down"),
    ],
)
def test_a_factor_without_its_pair_is_refused(tmp_path, missing, message):
    tensors = factors(6, 5, 4) | factors(6, 5, 4, "other")
    del tensors[f"{NAME}.lora.{missing}.weight"]
    with pytest.raises(ProbexError, match=message):
        open_model(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("up", "reason"),
    [
        (np.ones((6, 4, 3, 3), "f4"), "a LoRA whose up factor is a convolution, which is not read"),
        (np.ones(6, "f4"), "a 1-dimensional LoRA, which is not read"),
        (np.ones((6, 4), "i4"), "a LoRA of I32, which is not read"),
        (np.ones((0, 4), "f4"), "empty"),
    ],
)
def test_factors_that_are_not_read_are_reported(tmp_path, up, reason):
    tensors = factors(6, 5, 4) | {f"{NAME}.lora.up.weight": up}
    with open_model(write(tmp_path, tensors)) as m:
        assert m.layers == {}
        assert m.left_out == dict.fromkeys(tensors, reason)


def test_values_that_are_not_finite_are_found_in_either_factor(tmp_path):
    tensors = factors(6, 5, 4)
    tensors[f"{NAME}.lora.down.weight"][0, 0] = np.nan
    with (
        open_model(write(tmp_path, tensors)) as m,
        pytest.raises(ProbexError, match=r"down\.weight': 1 of 20 values"),
    ):
        m.matrix(NAME)


def test_any_tensor_can_be_read(tmp_path):
    tensors = {
        "bias": np.arange(3, dtype="f2"),
        "conv": np.arange(24, dtype="f4").reshape(2, 3, 2, 2),
        "ids": np.arange(4),
        "none": np.zeros((0, 2), "f4"),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with open_model(tmp_path) as m:
        assert {name: m.tensors[name].shape for name in tensors} == {
            name: value.shape for name, value in tensors.items()
        }
        for name in ("bias", "conv", "none"):
            value = m.tensor(name)
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, tensors[name])
        with pytest.raises(ProbexError, match=r"tensor 'ids' is of I64, expected one of F64"):
            m.tensor("ids")
        with pytest.raises(ProbexError, match="no tensor 'weights'"):
            m.tensor("weights")
