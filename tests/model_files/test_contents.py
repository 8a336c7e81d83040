"""What tensors are: layers in canonical form, or left out with the reason; never something else."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import fingerprint, open_model

FLOAT8 = ml_dtypes.float8_e4m3fn
LAYER = "model.layers.0.self_attn.q_proj"


def drawn(*shape, dtype="f4", seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def integers(*shape, dtype="i4"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def opened(folder, tensors, name="model.safetensors"):
    save_file(tensors, folder / name)
    return open_model(folder / name)


def test_a_single_file_checkpoint_keeps_its_diffusion_model(tmp_path):
    unet = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    tensors = {unet: drawn(8, 4, 1, 1), "model.diffusion_model.out.bias": drawn(8)}
    tensors |= {"cond_stage_model.a.weight": drawn(4, 4), "x.diff": drawn(4, 4)}
    tensors |= {"x.diff_b": drawn(4)}
    with opened(tmp_path, tensors) as m:
        assert set(m.layers) == {unet, "cond_stage_model.a.weight", "x"}
        assert "x.bias" in m.vectors
        assert (m.layers["x"].is_update, m.layers[unet].is_update) == (True, False)
        np.testing.assert_array_equal(m.matrix(unet), tensors[unet][..., 0, 0])


# Two factors each, of the shapes that their writers give them; rank 1 below as well.
SPELLINGS = {
    "VeRA": ("base_model.vera_B.weight", "base_model.vera_A.weight"),
    "VeRA, shared": ("{}.vera_B", "{}.vera_A"),
    "LoHa": ("lycoris_blocks_0_to_q.hada_w1_a", "lycoris_blocks_0_to_q.hada_w1_b"),
    "OFT": ("{}.oft_blocks", "{}.oft_diag"),
    "(IA)3": ("{}.ia3_l", "lora_unet_mid_block.weight"),
    "prompt tuning": ("prompt_embeddings", "text_encoder.prompt_embeddings"),
    "several": ("{}.loras.0.up", "{}.loras.0.down"),
    "with slashes": ("text/lora_up", "text/lora_down"),
}


@pytest.mark.parametrize("rank", [4, 1])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_factors_in_a_spelling_that_is_not_read_are_no_layers(tmp_path, spelling, rank):
    up, down = (name.format(LAYER) for name in SPELLINGS[spelling])
    with opened(tmp_path, {up: drawn(16, rank), down: drawn(rank, 8)}) as m:
        assert dict(m.layers) == {}
        assert set(m.unread) == set(m.left_out) == {up, down}
        for name in (up, down):
            end = name.replace("/", ".").replace(":", ".").split(".")[-1]
            assert end in m.unread[name]
        with pytest.raises(ProbexError, match="adapter"):
            m.matrix(f"{LAYER}.weight")


PREFIXED = ["lora_unet_mid_block_to_q", "lycoris_mid_block_to_q", "transformer.blocks.0.to_q"]


@pytest.mark.parametrize("path", PREFIXED)
def test_glora_is_told_by_its_four_factors(tmp_path, path):
    names = [f"{path}.{end}" for end in ("a1.weight", "a2.weight", "b1.weight", "b2.weight")]
    tensors = {name: drawn(4, 4) for name in names} | {f"{path}.alpha": drawn()}
    with opened(tmp_path, tensors) as m:
        assert set(m.unread) == set(tensors)
        assert all("GLoRA" in m.unread[name] for name in names)


@pytest.mark.parametrize("path", PREFIXED)
def test_ia3_is_told_by_what_stands_beside_its_weight(tmp_path, path):
    tensors = {f"{path}.weight": drawn(4, 1), f"{path}.on_input": np.array([True])}
    with opened(tmp_path, tensors) as m:
        assert set(m.unread) == set(tensors)
        assert all("(IA)³" in reason for reason in m.unread.values())


def test_what_bundles_and_replacements_bring_is_no_layer(tmp_path):
    lora = {f"{LAYER}.lora_A.weight": drawn(2, 8), f"{LAYER}.lora_B.weight": drawn(8, 2)}
    others = {
        "bundle_emb.my-token.clip_l": drawn(2, 8),
        "diffusion_model.a.set_weight": drawn(4, 4),
    }
    with opened(tmp_path, lora | others) as m:
        assert [*m.layers] == [LAYER]
        assert set(m.unread) == set(others)


def test_words_that_look_like_those_of_adapters_are_layers(tmp_path):
    names = ["flora.weight", "a1.weight", "a2.weight", "backbone_block.weight", "difference.weight"]
    names += ["prompt_encoder.mask_downscaling.0.weight", "experts.0.fc.weight"]
    names += ["blocks.0.attention.w_lora.lora.0.weight", "blocks.0.attention.w_lora.lora.2.weight"]
    names += ["soft_max.weight", "loraine.weight", "diffuser.up.weight", "diffuser.down.weight"]
    with opened(tmp_path, {name: drawn(4, 4) for name in names}) as m:
        assert set(m.layers) == set(names)
        assert m.left_out == {}


def test_parts_beside_a_lora_that_is_read_are_reported(tmp_path):
    path = "double_blocks.0.img_attn.qkv"
    tensors = {
        f"{path}.lora_A.weight": drawn(4, 8),
        f"{path}.lora_B.weight": drawn(24, 4),
        f"{path}.lora_B.bias": drawn(24),
    }
    with opened(tmp_path, tensors) as m:
        attention = "transformer.transformer_blocks.0.attn"
        assert [*m.layers] == [f"{attention}.{name}" for name in ("to_k", "to_q", "to_v")]
        assert [*m.unread] == [f"{path}.lora_B.bias"]


@pytest.mark.parametrize("end", ["lora_magnitude_vector.weight", "dora_scale", "magnitude"])
def test_of_a_dora_the_factors_are_read_and_the_magnitude_is_reported(tmp_path, end):
    path = "base_model.model.conv_in"
    up, down = drawn(6, 2), drawn(2, 5)
    tensors = {f"{path}.lora_B.weight": up, f"{path}.lora_A.weight": down}
    tensors[f"{path}.{end}"] = drawn(6, 1)
    with opened(tmp_path, tensors) as m:
        np.testing.assert_array_equal(m.matrix("unet.conv_in").dense(), up @ down)
        assert [*m.unread] == [f"{path}.{end}"]
        assert "DoRA" in m.unread[f"{path}.{end}"]


def test_an_adalora_is_no_lora_of_two_factors(tmp_path):
    path = "base_model.model.conv_in"
    tensors = {f"{path}.lora_B.weight": drawn(6, 2), f"{path}.lora_A.weight": drawn(2, 5)}
    tensors |= {f"{path}.lora_E": drawn(2, 1), "conv_in.ranknum": drawn(1)}
    with opened(tmp_path, tensors) as m:
        assert dict(m.layers) == {}
        assert set(m.unread) == set(tensors)


# Of a weight [H, W], stored as 8-bit floats: the scale, and what it is spread over.
SCALES = {
    "one, ComfyUI": ("scale_weight", (256, 200), ()),
    "one of one axis": ("weight_scale", (256, 200), (1,)),
    "a row each": ("weight_scale", (256, 200), (256,)),
    "a row each, two axes": ("weight_scale", (256, 200), (256, 1)),
    "blocks of 128x128": ("weight_scale_inv", (256, 200), (2, 2)),
    "as many blocks as rows": ("weight_scale_inv", (130, 8300), (2, 65)),
    "blocks above each other": ("weight_scale_inv", (300, 100), (3, 1)),
    "called scale": ("scale", (256, 200), ()),
}


@pytest.mark.parametrize("case", SCALES)
def test_8_bit_floats_are_read_times_their_scale(tmp_path, case):
    end, (height, width), shape = SCALES[case]
    stored = drawn(height, width, dtype=FLOAT8)
    scale = np.asarray(np.abs(drawn(*shape, seed=1)) + 0.5, "f4")
    if scale.size == 1:
        spread = scale.ravel()
    elif shape in ((height,), (height, 1)):
        spread = scale.reshape(height, 1)
    else:
        spread = np.kron(scale, np.ones((128, 128)))[:height, :width]
    expected = np.float64(stored.astype("f4")) * spread
    tensors = {"q.weight": stored, f"q.{end}": scale, "q.input_scale": drawn(1)}
    with opened(tmp_path, tensors) as m:
        assert [*m.layers] == ["q.weight"]
        assert [*m.left_out] == ["q.input_scale"]
        np.testing.assert_allclose(m.matrix("q.weight"), expected, rtol=1e-6)
        np.testing.assert_allclose(m.rows("q.weight", [3, 129]), expected[[3, 129]], rtol=1e-6)
        assert set(m.tensors_of("q.weight")) == {"q.weight", f"q.{end}"}
        quantised = fingerprint(m)
    with opened(tmp_path, {"q.weight": expected.astype("f2")}) as m:
        assert fingerprint(m) == quantised


def test_a_scale_that_makes_values_infinite_is_one_line(tmp_path):
    scale = np.array(3e38, "f4")
    with (
        opened(
            tmp_path, {"q.weight": drawn(8, 8, dtype=FLOAT8) * 100, "q.weight_scale": scale}
        ) as m,
        pytest.raises(ProbexError, match=r"q\.weight"),
    ):
        m.matrix("q.weight")


# Tensors of one quantised layer, of a method that is not read or of shapes that the method does not
# give them, and a part of its name.
QUANTISED = {
    "GPTQ": {
        "qweight": integers(64, 64), "qzeros": integers(4, 8), "scales": drawn(4, 60, dtype="f2"),
        "g_idx": integers(512)},
    "AWQ": {"qweight": integers(64, 8), "qzeros": integers(4, 7), "scales": drawn(4, 64)},
    "EXL2": {"q_weight": integers(8, 8), "q_scale": integers(4, 4), "q_groups": drawn(4, 2)},
    "HQQ": {"W_q": integers(8, 8, dtype="u1"), "scale": drawn(8, 8), "zero": drawn(8, 8)},
    "AQLM": {"codes": integers(8, 8, 1, dtype="i2"), "codebooks": drawn(1, 4, 1, 8)},
    "compressed-tensors": {
        "weight_packed": integers(8, 8), "weight_scale": drawn(8, 4),
        "weight_zero_point": integers(2, 4)},
    "bitsandbytes": {
        "weight": integers(256, 1, dtype="u1"), "weight.absmax": drawn(8, 2),
        "weight.quant_map": drawn(16),
        "weight.quant_state.bitsandbytes__nf4": integers(80, dtype="u1")},
    "bitsandbytes, 8 bits": {"weight": integers(8, 8, dtype="i1"), "SCB": drawn(8, 2)},
    "MLX": {
        "weight": integers(32, 8, dtype="u4"), "scales": drawn(32, 5, dtype="f2"),
        "biases": drawn(32, 5, dtype="f2")},
    "NVFP4": {
        "weight": integers(32, 8, dtype="u1"), "weight_scale": drawn(32, 4, dtype=FLOAT8),
        "weight_scale_2": drawn()},
    "quanto": {"weight._data": integers(8, 8, dtype="i1"), "weight._scale": drawn(7, 1)},
    "quanto, 8-bit floats": {
        "weight._data": drawn(8, 8, dtype=FLOAT8), "weight._scale": drawn(8, 2)},
    "SVDQuant": {
        "qweight": integers(8, 8, dtype="i1"), "wscales": drawn(2, 8), "proj_down": drawn(8, 4),
        "lora_up": drawn(8, 4)},
    "integer": {"weight": integers(8, 8, dtype="i1"), "weight_scale": drawn(8, 2)},
    "integer, of others": {"w": integers(8, 8, dtype="u1"), "scales": drawn(8, 2)},
    "integer, beside a zero": {
        "weight": integers(8, 8, dtype="i1"), "weight.scale": drawn(8, 2),
        "weight.zero_point": drawn(8, 2)},
    "FP8": {"weight": drawn(8, 8, dtype=FLOAT8), "weight_scale": drawn(8, 4)},
    "an unknown quantiser, by name": {"weight": drawn(8, 8, dtype=FLOAT8), "qscale": drawn(1)},
    "an unknown quantiser, without scale": {
        "weight": drawn(8, 8, dtype=FLOAT8), "weight.absmax": drawn(8, 2)},
    "FP8, of two scales": {
        "weight": drawn(8, 8, dtype=FLOAT8), "weight_scale": drawn(1), "weight_scale_2": drawn(1)},
    "an unknown quantiser, of two scales": {
        "weight": drawn(8, 8, dtype=FLOAT8), "weight_scale": drawn(1),
        "weight_scale_inv": drawn(1)},
    "Marlin": {"B": integers(8, 8), "s": drawn(2, 8, dtype="f2")},
    "HIGGS": {
        "weight": integers(8, 8, dtype="i2"), "scales": drawn(8, 2), "tables2": drawn(8, 2)},
    "an unknown quantiser, of halves": {
        "weight": drawn(8, 8, dtype="f2"), "weight_scale": drawn(8, 4)},
}  # fmt: skip


@pytest.mark.parametrize("method", QUANTISED)
@pytest.mark.parametrize("path", [f"{LAYER}.", ""])
def test_what_a_quantiser_left_is_no_layer(tmp_path, method, path):
    parts = {f"{path}{name}": value for name, value in QUANTISED[method].items()}
    others = {"other.weight": drawn(4, 4), "other.bias": drawn(4)}
    with opened(tmp_path, parts | others) as m:
        assert [*m.layers] == ["other.weight"]
        assert m.left_out.keys() >= parts.keys()
        assert any(method.split(",")[0] in m.left_out[name] for name in parts)


def test_scales_of_a_model_s_own_are_layers(tmp_path):
    """Parameters may be called so beside floats; integers may stand beside parameters."""
    with opened(tmp_path, {"attn.q_scale": drawn(4, 4), "attn.absmax": drawn(4, 4)}) as m:
        assert len(m.layers) == 2
    tensors = {
        "norm.weight": drawn(4, 4),
        "norm.scale": drawn(4, 4),
        "splats.scales": drawn(9, 3),
        "attn.relative_position_index": integers(9, 9),
        "attn.relative_position_bias_table": drawn(9, 4),
        "ssm.B": drawn(4, 4),
        "ssm.s": drawn(4, 4),
        "attn.W_q": drawn(4, 4),
        "embeddings.position_ids": integers(1, 9),
        "embeddings.position_embeddings": drawn(1, 9, 4),
    }
    with opened(tmp_path, tensors) as m:
        assert m.layers.keys() == {n for n in tensors if tensors[n].dtype == np.float32}


def test_flax_kernels_become_outputs_by_inputs(tmp_path):
    dense, conv, heads = drawn(16, 8), drawn(3, 2, 5, 8), drawn(16, 4, 3)
    tensors = {
        "params.Dense_0.kernel": dense,
        "params/Conv_0/kernel": conv,
        "params.Embed_0.embedding": drawn(7, 3),
        "params.attn.query.kernel": heads,
        "params.Conv_1.kernel": drawn(3, 5, 8),
        "params.Dense_1.kernel": drawn(3, 5, 8),
        "params.ConvTranspose_0.kernel": drawn(3, 3, 5, 8),
    }
    with opened(tmp_path, tensors) as m:
        np.testing.assert_array_equal(m.matrix("Dense_0.weight"), dense.T)
        np.testing.assert_array_equal(m.rows("Dense_0.weight", [7, 1]), dense.T[[7, 1]])
        expected = np.einsum("hwio->oihw", conv).reshape(8, -1)
        np.testing.assert_array_equal(m.matrix("Conv_0.weight"), expected)
        assert m.matrix("Conv_0.weight").flags.c_contiguous
        assert m.layers["Conv_0.weight"].kind == "conv"
        np.testing.assert_array_equal(m.matrix("attn.query.weight"), heads.reshape(16, 12).T)
        assert m.layers["Conv_1.weight"].shape == (8, 15)
        assert m.layers["Embed_0.weight"].shape == (7, 3)
        assert set(m.left_out) == {"params.Dense_1.kernel", "params.ConvTranspose_0.kernel"}


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("['params']['Dense_0']['kernel']", "Dense_0.weight"),
        ("lin.kernel.value", "lin.weight"),
        ("Dense_0|kernel", "Dense_0.weight"),
        ("params_Dense_0_kernel", "params_Dense_0.weight"),
        ("bert/pooler/dense/kernel:0", "bert.pooler.dense.weight"),
    ],
)
def test_flax_kernels_are_told_however_their_path_is_written(tmp_path, stored, name):
    with opened(tmp_path, {stored: drawn(16, 8)}) as m:
        np.testing.assert_array_equal(m.matrix(name), drawn(16, 8).T)


def test_in_a_file_of_pytorch_a_kernel_is_an_ordinary_tensor(tmp_path):
    tensors = {"blur.kernel": drawn(4, 3), "norm.scale": drawn(4), "fc.weight": drawn(2, 4)}
    with opened(tmp_path, tensors) as m:
        assert {*m.all_layers} == {*tensors}
        np.testing.assert_array_equal(m.matrix("blur.kernel"), tensors["blur.kernel"])


def test_kernels_of_other_layers_are_left_out(tmp_path):
    names = ["rnn/recurrent_kernel", "x/depthwise_kernel"]
    with opened(tmp_path, {name: drawn(3, 3, 4, 8) for name in names} | {"w": drawn(2, 2)}) as m:
        assert [*m.layers] == ["w"]
        assert set(m.left_out) == set(names)


def test_of_a_vector_the_order_of_axes_does_not_matter(tmp_path):
    """Unless it tells the row from the column."""
    experts = "block.experts.gate_up_proj"
    shapes = {"a.kernel": (8, 1), "b.kernel": (1, 8), "c.kernel": (3, 1, 1), "kernel": (5,)}
    tensors = {name: drawn(*shape) for name, shape in shapes.items()} | {experts: drawn(4, 1, 1)}
    with opened(tmp_path, tensors) as m:
        assert (dict(m.layers), dict(m.left_out)) == ({}, {})
        found = {name: info.shape for name, info in m.vectors.items()}
        assert found == {
            "a.weight": (1, 8),
            "b.weight": (8, 1),
            "c.weight": (3, 1),
            "weight": (5, 1),
            experts: (4, 1),
        }
        for name, value in tensors.items():
            values = m.matrix(name.replace("kernel", "weight")).ravel()
            np.testing.assert_array_equal(values, value.ravel())


def test_what_is_empty_tells_nothing_of_the_others(tmp_path):
    with opened(tmp_path, {"h.0.mlp.c_fc.weight": drawn(0, 5), "scale.kernel": drawn()}) as m:
        assert dict(m.left_out) == {"h.0.mlp.c_fc.weight": "empty"}
        assert [*m.vectors] == ["scale.kernel"]


def test_vectors_beside_adapters_and_quantised_layers(tmp_path):
    """Biases are read; factors, alphas, magnitudes and scales are no vectors."""
    lora = f"base_model.model.{LAYER}"
    tensors = {
        f"{lora}.lora_A.weight": drawn(2, 8),
        f"{lora}.lora_B.weight": drawn(8, 2),
        f"{lora}.lora_magnitude_vector": drawn(8),
        f"{lora}.bias": drawn(8),
        "lora_unet_mid_block_attentions_0.alpha": np.array(4.0, "f4"),
        "fc.qweight": np.ones((2, 2), "i4"),
        "fc.scales": drawn(2),
        "fc.bias": drawn(2),
        "norm.running_mean": drawn(4),
        "norm.num_batches_tracked": np.array(7),
    }
    with opened(tmp_path, tensors) as m:
        assert {info.kind for info in m.layers.values()} == {"lora"}
        assert {*m.vectors} == {f"{LAYER}.bias", "fc.bias", "norm.running_mean"}
        assert {"fc.scales", f"{lora}.lora_magnitude_vector"} <= {*m.left_out}
        assert not m.vectors.keys() & m.left_out.keys()


def test_a_model_of_vectors_has_no_layers_and_says_so(tmp_path):
    with opened(tmp_path, {"b": drawn(3)}) as m:
        assert [*m.vectors] == ["b"]
        assert "vectors" in m.without_layers
        with pytest.raises(ProbexError, match="vectors"):
            m.check_has_layers()


def test_of_what_is_turned_only_one_scale_is_multiplied_in(tmp_path):
    stored, scale = drawn(4, 4, dtype=FLOAT8), np.full([1], 2, "f4")
    tensors = {"a.kernel": stored, "a.kernel_scale": scale}
    tensors |= {"b.kernel": stored, "b.kernel_scale": drawn(4, 1)}
    with opened(tmp_path, tensors) as m:
        np.testing.assert_array_equal(m.matrix("a.weight"), 2 * stored.astype("f4").T)
        assert "b.kernel" in m.left_out


def gpt(turned, square="transformer.h.0.attn.c_proj.weight"):
    weights = {
        "transformer.h.0.attn.c_attn.weight": drawn(72, 24),
        "transformer.h.0.mlp.c_fc.weight": drawn(96, 24, seed=1),
        "transformer.h.0.mlp.c_proj.weight": drawn(24, 96, seed=2),
        square: drawn(24, 24, seed=3),
    }
    return weights, {n: np.ascontiguousarray(w.T) if turned else w for n, w in weights.items()}


def test_shapes_that_do_not_tell_take_the_word_of_others_in_the_file(tmp_path):
    _, stored = gpt(turned=False)
    others = {"visual.attnpool.c_proj.weight": drawn(8, 4)}
    with opened(tmp_path, stored | others) as m:
        assert m.left_out == {}
        assert m.matrix("visual.attnpool.c_proj.weight").shape == (8, 4)
    narrow = {"c_fc.weight": drawn(10, 64), "h.0.attn.c_attn.weight": drawn(48, 36)}
    with opened(tmp_path, narrow) as m:
        assert set(m.left_out) == set(narrow)


@pytest.mark.parametrize("turned", [True, False])
def test_conv1d_is_told_from_a_linear_layer_by_its_shapes(tmp_path, turned):
    canonical, stored = gpt(turned)
    with opened(tmp_path, stored) as m:
        assert m.left_out == {}
        for name, matrix in canonical.items():
            np.testing.assert_array_equal(m.matrix(name), matrix)


def test_where_nothing_tells_a_conv1d_is_left_out(tmp_path):
    name = "transformer.h.0.attn.c_proj.weight"
    with opened(tmp_path, {name: drawn(8, 8), "transformer.wte.weight": drawn(8, 4)}) as m:
        assert [*m.layers] == ["transformer.wte.weight"]
        assert name in m.left_out


def test_stacked_experts_are_a_matrix_each(tmp_path):
    up, down = drawn(8, 64, 16), drawn(8, 16, 32)
    mlp = "model.layers.0.mlp.experts"
    moe = "block_sparse_moe.input_linear"
    others = {f"{moe}.weight": drawn(2, 6, 4), "conv1.weight": drawn(8, 16, 3)}
    others["experts.0.fc.weight"] = drawn(8, 4)
    for turned in (False, True):
        axes = (0, 2, 1) if turned else (0, 1, 2)
        experts = {f"{mlp}.gate_up_proj": up, f"{mlp}.down_proj": down}
        experts = {n: np.ascontiguousarray(t.transpose(axes)) for n, t in experts.items()}
        with opened(tmp_path, experts | others) as m:
            names = {f"{mlp}.{n}.{end}" for n in range(8) for end in ("gate_up_proj", "down_proj")}
            assert m.left_out == {}
            named = {
                "block_sparse_moe.0.input_linear.weight",
                "block_sparse_moe.1.input_linear.weight",
            }
            assert set(m.layers) == names | named | {"conv1.weight", "experts.0.fc.weight"}
            assert m.layers[f"{mlp}.3.gate_up_proj"].kind == "linear"
            np.testing.assert_array_equal(m.matrix(f"{mlp}.3.gate_up_proj"), up[3])
            np.testing.assert_array_equal(m.matrix(f"{mlp}.7.down_proj"), down[7])
            np.testing.assert_array_equal(m.rows(f"{mlp}.3.gate_up_proj", [9]), up[3][[9]])


@pytest.mark.parametrize("shape", [(), (1,), (8,), (8, 1, 1), (8, 2, 1)])
def test_quantised_experts_are_read_one_by_one(tmp_path, shape):
    name = "model.layers.0.mlp.experts.down_proj"
    stored = drawn(8, 256, 128, dtype=FLOAT8)
    scale = np.asarray(np.abs(drawn(*shape, seed=1)) + 0.5, "f4")
    spread = scale.repeat(128, axis=1) if shape == (8, 2, 1) else scale.reshape(-1, 1, 1)
    with opened(tmp_path, {name: stored, f"{name}_scale_inv": scale}) as m:
        expected = stored.astype("f4") * spread
        found = m.matrix("model.layers.0.mlp.experts.5.down_proj")
        np.testing.assert_allclose(found, expected[5], rtol=1e-6)


def test_stacks_of_too_many_matrices_are_left_out(tmp_path):
    names = [f"layers.{n}.experts.up_proj" for n in range(30)]
    stacks = {name: np.ones([4000, 2, 2], FLOAT8) for name in names}
    with opened(tmp_path, stacks | {"w": drawn(2, 2)}) as m:
        assert [*m.layers] == ["w"]
        assert {*m.left_out} == {*names}
