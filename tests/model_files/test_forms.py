"""Forms of files that people reported as read wrongly by some tool, and what is right of each.

The names, dtypes and ranks are those of the reports, the widths are smaller. The reports are issues
of ComfyUI, ComfyUI-Lora-Manager, InvokeAI, sd-scripts, musubi-tuner, OneTrainer, ai-toolkit,
mlx-lm, safetensors and transformers.
"""

import json

import ml_dtypes
import numpy as np
import pytest

from probex_jax.matrices import LowRank
from probex_jax.model_files import fingerprint, open_model

DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "U8": np.uint8,
}


def drawn(name, dtype, shape):
    rng = np.random.default_rng([*name.encode()])
    if DTYPES[dtype] in (np.int32, np.uint8):
        return rng.integers(0, 200, shape).astype(DTYPES[dtype])
    return np.asarray(rng.normal(size=shape)).astype(DTYPES[dtype])


def written(path, tensors, metadata=0):
    """A safetensors file, written here: the library writes no null metadata."""
    header = {} if metadata == 0 else {"__metadata__": metadata}
    data = b""
    for name, value in tensors.items():
        dtype = next(d for d, kind in DTYPES.items() if value.dtype == kind)
        offsets = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": offsets}
        data += value.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def read(folder, spec, metadata=0, **configs):
    """The open model, and its tensors in float64; `spec` is a line a tensor."""
    tensors = {}
    for line in spec.strip().splitlines():
        name, dtype, *shape = line.split()
        tensors[name] = drawn(name, dtype, [int(size) for size in shape])
    path = written(folder / "model.safetensors", tensors, metadata)
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return open_model(path), {n: np.float64(t.astype("f4")) for n, t in tensors.items()}


def dense(matrix):
    return np.asarray(matrix.dense() if isinstance(matrix, LowRank) else matrix)


def check(model, expected, unread=()):
    """All layers and their values, and what is reported as not read."""
    assert set(model.layers) == set(expected)
    for name, value in expected.items():
        assert model.layers[name].shape == value.shape
        found = dense(model.matrix(name))
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert set(model.left_out) == set(unread)


def thirds(prefix, names, up, down, scale=1.0):
    parts = np.split(up, len(names))
    return {f"{prefix}.{n}": scale * part @ down for n, part in zip(names, parts, strict=True)}


QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def test_a_single_file_checkpoint_holds_three_models(tmp_path):
    unet = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    text = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    vae = "first_stage_model.decoder.conv_in.weight"
    m, t = read(
        tmp_path,
        f"""{unet} BF16 32 16 1 1
            {text} F16 16 16
            {vae} F16 8 4 3 3
            alphas_cumprod F32 1000""",
    )
    check(m, {unet: t[unet][..., 0, 0], text: t[text], vae: t[vae].reshape(8, -1)})
    assert [*m.vectors] == ["alphas_cumprod"]


def kohya(*modules):
    return "\n".join(
        f"{m}.lora_down.weight BF16 4 {i}\n{m}.lora_up.weight BF16 {o} 4\n{m}.alpha BF16"
        for m, o, i in modules
    )


def of_kohya(t, module):
    """The factors of a module, `up` scaled."""
    scale = t[f"{module}.alpha"] / 4
    return scale * t[f"{module}.lora_up.weight"], t[f"{module}.lora_down.weight"]


def test_flux_of_kohya_has_fused_layers_that_are_split(tmp_path):
    double, single = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1"
    m, t = read(tmp_path, kohya((double, 96, 32), (single, 224, 32)))
    (up, down), path = of_kohya(t, single), "transformer.single_transformer_blocks.0"
    expected = thirds(f"{path}.attn", QKV, up[:96], down) | {f"{path}.proj_mlp": up[96:] @ down}
    expected |= thirds("transformer.transformer_blocks.0.attn", QKV, *of_kohya(t, double))
    check(m, expected)
    assert m.unscaled == ()


# The names of up and down of one layer.
IMG = "double_blocks.0.img_attn.qkv"
FLUX = {
    "ai-toolkit": (f"diffusion_model.{IMG}.lora_B.weight", f"diffusion_model.{IMG}.lora_A.weight"),
    "BFL": (f"{IMG}.lora_B.weight", f"{IMG}.lora_A.weight"),
    "XLabs": (
        "double_blocks.0.processor.qkv_lora1.up.weight",
        "double_blocks.0.processor.qkv_lora1.down.weight",
    ),
    "ComfyUI": (
        f"model.diffusion_model.{IMG}.lora_up.weight",
        f"model.diffusion_model.{IMG}.lora_down.weight",
    ),
}


@pytest.mark.parametrize("tool", FLUX)
def test_flux_in_other_spellings_has_the_same_layers(tmp_path, tool):
    up, down = FLUX[tool]
    m, t = read(tmp_path, f"{up} BF16 96 4\n{down} BF16 4 32")
    expected = thirds("transformer.transformer_blocks.0.attn", QKV, t[up], t[down])
    check(m, expected)
    (tmp_path / "diffusers").mkdir()
    spec = "\n".join(f"{n}.lora_A.weight BF16 4 32\n{n}.lora_B.weight BF16 32 4" for n in expected)
    other, _ = read(tmp_path / "diffusers", spec)
    assert set(other.layers) == set(expected)
    assert fingerprint(other) == fingerprint(m)


def test_biases_and_norms_beside_a_lora_are_no_layers(tmp_path):
    """BFL's LoRAs for control bring both."""
    up, down = FLUX["BFL"]
    bias, norm = f"{IMG}.lora_B.bias", "double_blocks.0.img_attn.norm.key_norm.scale"
    m, t = read(tmp_path, f"{up} BF16 96 4\n{down} BF16 4 32\n{bias} BF16 96\n{norm} BF16 16")
    expected = thirds("transformer.transformer_blocks.0.attn", QKV, t[up], t[down])
    check(m, expected, [bias, norm])
    assert dict(m.vectors) == {}


def test_the_text_stream_of_xlabs_is_another_layer(tmp_path):
    path = "double_blocks.0.processor.qkv_lora2"
    m, t = read(tmp_path, f"{path}.down.weight BF16 4 32\n{path}.up.weight BF16 96 4")
    up, down = t[f"{path}.up.weight"], t[f"{path}.down.weight"]
    check(m, thirds("transformer.transformer_blocks.0.attn", ADDED, up, down))


# Modules of kohya's and OneTrainer's files, what diffusers calls them, and their sizes.
KOHYA = {
    "OneTrainer, Flux": {
        "lora_transformer_single_transformer_blocks_0_attn_to_k": (
            "transformer.single_transformer_blocks.0.attn.to_k", 32, 32),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (
            "text_encoder.text_model.encoder.layers.0.mlp.fc1", 64, 16),
        "lora_te2_encoder_block_15_layer_1_DenseReluDense_wo": (
            "text_encoder_2.encoder.block.15.layer.1.DenseReluDense.wo", 16, 40),
        "lora_transformer_time_text_embed_guidance_embedder_linear_1": (
            "transformer.time_text_embed.guidance_embedder.linear_1", 32, 16),
        "lora_transformer_context_embedder": ("transformer.context_embedder", 32, 16),
    },
    "SDXL of SGM": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 32, 32),
        "lora_te1_text_model_encoder_layers_0_self_attn_k_proj": (
            "text_encoder.text_model.encoder.layers.0.self_attn.k_proj", 16, 16),
    },
    "SDXL of diffusers": {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 32, 32),
    },
    "Wan, musubi": {
        "lora_unet_blocks_0_self_attn_q": ("transformer.blocks.0.attn1.to_q", 32, 32),
        "lora_unet_blocks_0_ffn_0": ("transformer.blocks.0.ffn.net.0.proj", 64, 32),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", KOHYA)
def test_modules_of_kohya_are_those_of_diffusers(tmp_path, case):
    modules = KOHYA[case]
    m, t = read(tmp_path, kohya(*((m, o, i) for m, (_, o, i) in modules.items())))
    updates = {layer: of_kohya(t, module) for module, (layer, *_) in modules.items()}
    check(m, {layer: up @ down for layer, (up, down) in updates.items()})


def test_the_spelling_of_early_diffusers_is_a_lora(tmp_path):
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    up, down = (f"{layer}.lora_linear_layer.{half}.weight" for half in ("up", "down"))
    m, t = read(tmp_path, f"{down} F32 4 16\n{up} F32 16 4")
    check(m, {layer: t[up] @ t[down]})


Q_PROJ, FC1 = "model.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.mlp.fc1"
# The module, the endings of up, down and the magnitude, and the layer.
DORA = {
    "PEFT": (
        f"base_model.model.{Q_PROJ}", "lora_B.weight", "lora_A.weight",
        "lora_magnitude_vector.weight", Q_PROJ),
    "OneTrainer": (
        f"lora_te1_{FC1.replace('.', '_')}", "lora_up.weight", "lora_down.weight", "dora_scale",
        f"text_encoder.{FC1}"),
    "ai-toolkit": (
        "diffusion_model.blocks.0.attn.to_q", "lora_B.weight", "lora_A.weight", "magnitude",
        "transformer.blocks.0.attn.to_q"),
    "MLX": (Q_PROJ, "lora_b", "lora_a", "m", Q_PROJ),
}  # fmt: skip


@pytest.mark.parametrize("tool", DORA)
def test_of_a_dora_the_low_rank_part_is_read_and_the_magnitude_noted(tmp_path, tool):
    path, up, down, magnitude, layer = DORA[tool]
    up, down, magnitude = (f"{path}.{end}" for end in (up, down, magnitude))
    sizes = ("4 32", "16 4") if tool == "MLX" else ("32 4", "4 16")
    m, t = read(tmp_path, f"{up} BF16 {sizes[0]}\n{down} BF16 {sizes[1]}\n{magnitude} F32 32")
    update = t[up].T @ t[down].T if tool == "MLX" else t[up] @ t[down]
    check(m, {layer: update}, [magnitude])
    assert "DoRA" in m.unread[magnitude]


def test_a_lokr_is_kronecker_s_product_unscaled(tmp_path):
    path = "lycoris_single_transformer_blocks_0_attn_to_k"
    m, t = read(tmp_path, f"{path}.alpha BF16\n{path}.lokr_w1 BF16 4 4\n{path}.lokr_w2 BF16 8 8")
    layer = "transformer.single_transformer_blocks.0.attn.to_k"
    check(m, {layer: np.kron(t[f"{path}.lokr_w1"], t[f"{path}.lokr_w2"])})


def test_a_loha_is_the_product_of_entries(tmp_path):
    path = "lycoris_noise_refiner_0_attention_to_q"
    roles = {"w1_a": "32 4", "w1_b": "4 32", "w2_a": "32 4", "w2_b": "4 32"}
    spec = "\n".join(f"{path}.hada_{role} BF16 {shape}" for role, shape in roles.items())
    m, t = read(tmp_path, f"{spec}\n{path}.alpha BF16")
    one, other = (t[f"{path}.hada_{w}_a"] @ t[f"{path}.hada_{w}_b"] for w in ("w1", "w2"))
    layer = "transformer.noise_refiner.0.attention.to_q"
    check(m, {layer: one * other * t[f"{path}.alpha"] / 4})


def test_mlx_stores_inputs_first_and_states_the_scale_itself(tmp_path):
    config = {"lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0}}
    up, down = f"{Q_PROJ}.lora_b", f"{Q_PROJ}.lora_a"
    m, t = read(tmp_path, f"{down} F32 32 4\n{up} F32 4 48", adapter_config=config)
    check(m, {Q_PROJ: 20 * (t[down] @ t[up]).T})
    assert m.unscaled == ()


def test_layers_of_cloneofsimo_are_numbered(tmp_path):
    shapes = {"up": "32 4", "down": "4 32"}
    spec = "\n".join(f"unet:{n}:{half} F32 {shapes[half]}" for n in (0, 1) for half in shapes)
    m, t = read(tmp_path, spec, {"unet": '["CrossAttention"]', "unet:0:rank": "4"})
    check(m, {f"unet.{n}": t[f"unet:{n}:up"] @ t[f"unet:{n}:down"] for n in (0, 1)})


def test_8_bit_floats_of_comfyui_are_scaled(tmp_path):
    q = "blocks.0.q"
    m, t = read(
        tmp_path,
        f"""scaled_fp8 F8_E4M3 2
            {q}.weight F8_E4M3 32 16
            {q}.scale_weight F32 1
            {q}.scale_input F32 1""",
    )
    expected = {f"{q}.weight": t[f"{q}.weight"] * t[f"{q}.scale_weight"]}
    check(m, expected, ["scaled_fp8", f"{q}.scale_input"])
    assert dict(m.vectors) == {}


def test_8_bit_floats_have_a_scale_for_each_block(tmp_path):
    name = "model.layers.0.mlp.gate_proj.weight"
    m, t = read(tmp_path, f"{name} F8_E4M3 256 256\n{name}_scale_inv F32 2 2")
    check(m, {name: t[name] * np.kron(t[f"{name}_scale_inv"], np.ones((128, 128)))})
    assert dict(m.vectors) == {}


def test_of_gptq_scales_and_zeros_are_no_layers(tmp_path):
    parts = {"qweight": "I32 64 64", "qzeros": "I32 4 8", "scales": "F16 4 64", "g_idx": "I32 512"}
    m, _ = read(tmp_path, "\n".join(f"m.q.{name} {shape}" for name, shape in parts.items()))
    assert dict(m.vectors) == {}
    assert {n: info.shape for n, info in m.layers.items()} == {"m.q.weight": (64, 512)}


def test_of_bitsandbytes_parts_are_no_layers(tmp_path):
    """The state of this one is no JSON."""
    q = "m.q.weight"
    m, _ = read(
        tmp_path,
        f"""{q} U8 256 1
            {q}.absmax U8 8
            {q}.quant_map F32 16
            {q}.nested_absmax F32 1
            {q}.quant_state.bitsandbytes__nf4 U8 80""",
    )
    assert (dict(m.layers), dict(m.vectors)) == ({}, {})
    assert any("bitsandbytes" in reason for reason in m.left_out.values())


def test_null_metadata_is_none(tmp_path):
    m, t = read(tmp_path, "a.weight F32 4 4", None)
    check(m, {"a.weight": t["a.weight"]})
    assert m.metadata == {}


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model."]
)
def test_what_wrappers_put_before_names_is_dropped(tmp_path, wrapper):
    layers = [f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)]
    (tmp_path / "plain").mkdir()
    m, t = read(tmp_path, "\n".join(f"{wrapper}{name} BF16 32 16" for name in layers))
    plain, _ = read(tmp_path / "plain", "\n".join(f"{name} BF16 32 16" for name in layers))
    check(m, {name: t[wrapper + name] for name in layers})
    assert fingerprint(m) == fingerprint(plain)


def test_stacked_experts_are_a_matrix_each(tmp_path):
    path, ends = "model.layers.0.mlp.experts", ("gate_up_proj", "down_proj")
    m, t = read(tmp_path, f"{path}.gate_up_proj BF16 8 64 16\n{path}.down_proj BF16 8 16 32")
    check(m, {f"{path}.{n}.{end}": t[f"{path}.{end}"][n] for n in range(8) for end in ends})


def test_gpt_2_stores_inputs_by_outputs(tmp_path):
    h = "transformer.h.0"
    m, t = read(tmp_path, f"{h}.attn.c_attn.weight F32 24 72\n{h}.mlp.c_fc.weight F32 24 96")
    check(m, {name: value.T for name, value in t.items()})


def test_flax_stores_outputs_last(tmp_path):
    m, t = read(tmp_path, "params.Dense_0.kernel F32 16 8\nparams.Conv_0.kernel F32 3 3 3 8")
    conv = np.einsum("hwio->oihw", t["params.Conv_0.kernel"]).reshape(8, -1)
    check(m, {"Dense_0.weight": t["params.Dense_0.kernel"].T, "Conv_0.weight": conv})
