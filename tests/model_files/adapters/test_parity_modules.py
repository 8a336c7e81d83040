"""Names of modules against the models of diffusers and transformers and the loaders of diffusers."""

import pytest

from probex_jax.model_files.adapters.modules import Slice, family, slices

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SMALL = {"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 2}
MODELS = {
    "UNet2DConditionModel": {
        "block_out_channels": (8, 8, 8),
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 8,
        "transformer_layers_per_block": 2,
    },
    "FluxTransformer2DModel": SMALL
    | {
        "num_single_layers": 2,
        "in_channels": 4,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    },
    "ChromaTransformer2DModel": SMALL
    | {
        "num_single_layers": 2,
        "in_channels": 4,
        "joint_attention_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 8,
        "approximator_layers": 2,
    },
    "SD3Transformer2DModel": SMALL
    | {
        "sample_size": 8,
        "in_channels": 4,
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    "WanTransformer3DModel": SMALL
    | {"in_channels": 4, "text_dim": 8, "freq_dim": 8, "ffn_dim": 8, "image_dim": 8}
    | {"added_kv_proj_dim": 8},
    "QwenImageTransformer2DModel": SMALL
    | {"in_channels": 4, "joint_attention_dim": 8, "axes_dims_rope": (2, 2, 4)},
    "ZImageTransformer2DModel": {
        "in_channels": 4,
        "dim": 16,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 8,
        "axes_dims": [2, 2, 4],
        "axes_lens": [8, 8, 8],
    },
    "HunyuanVideoTransformer3DModel": SMALL
    | {
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "in_channels": 4,
        "text_embed_dim": 8,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (2, 2, 4),
    },
    "Flux2Transformer2DModel": SMALL
    | {
        "num_single_layers": 2,
        "in_channels": 4,
        "joint_attention_dim": 8,
        "timestep_guidance_channels": 8,
        "axes_dims_rope": (2, 2, 2, 2),
    },
    "Lumina2Transformer2DModel": {
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "axes_dim_rope": (2, 2, 4),
        "axes_lens": (8, 8, 8),
        "cap_feat_dim": 8,
    },
    "LTXVideoTransformer3DModel": SMALL
    | {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "caption_channels": 8},
    "AuraFlowTransformer2DModel": {
        "sample_size": 8,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 16,
    },
    "PixArtTransformer2DModel": SMALL
    | {"cross_attention_dim": 16, "sample_size": 8, "caption_channels": 8},
    "MochiTransformer3DModel": SMALL
    | {"pooled_projection_dim": 8, "in_channels": 4, "text_embed_dim": 8, "time_embed_dim": 8},
    "CogVideoXTransformer3DModel": SMALL | {"in_channels": 4, "text_embed_dim": 8},
    "SanaTransformer2DModel": SMALL
    | {
        "in_channels": 4,
        "out_channels": 4,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 8,
        "sample_size": 8,
    },
    "CosmosTransformer3DModel": SMALL
    | {"attention_head_dim": 16, "text_embed_dim": 8, "adaln_lora_dim": 8},
    "HiDreamImageTransformer2DModel": SMALL
    | {
        "patch_size": 2,
        "in_channels": 4,
        "num_single_layers": 1,
        "caption_channels": [8, 8],
        "text_emb_dim": 8,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (8, 8),
    },
}


def modules(model):
    """The modules that adapters are of."""
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    kinds = (torch.nn.Linear, *convolutions, transformers.pytorch_utils.Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def flat(name):
    return name.replace(".", "_")


@pytest.fixture(scope="module")
def of_diffusers():
    """Tiny models of diffusers by class, without memory."""

    def made(kind):
        with torch.device("meta"):
            return getattr(diffusers, kind)(**MODELS[kind])

    return made


@pytest.mark.parametrize("kind", MODELS)
def test_modules_of_diffusers_models_have_their_own_names(of_diffusers, kind):
    names = modules(of_diffusers(kind))
    part = "unet" if kind.startswith("UNet") else "transformer"
    one = family({f"lora_{part}_{flat(name)}": (1, 1) for name in names})
    for name in names:
        expected = (Slice(f"{part}.{name}"),)
        for path in (f"{part}.{name}", f"lora_{part}_{flat(name)}"):
            assert slices(path) == slices(path, one) == expected
        for path in (f"lora_unet_{flat(name)}", f"lycoris_{flat(name)}"):
            assert slices(path, one) == expected
        for path in (name, f"base_model.model.{name}", f"diffusion_model.{name}"):
            assert slices(path, one) == expected


def blocks(count, name, inside):
    return [f"{name}.{i}.{each}" for i in range(count) for each in inside.split()]


def embedders(names, inside="in_layer out_layer"):
    return [f"{name}.{each}" for name in names.split() for each in inside.split()]


STREAMS = (
    "img_attn.qkv txt_attn.qkv img_attn.proj txt_attn.proj img_mlp.0 img_mlp.2 txt_mlp.0 txt_mlp.2"
)
WAN_ATTENTIONS = " ".join(
    f"{kind}.{each}" for kind in ("self_attn", "cross_attn") for each in "qkvo"
)
NEXT = "attention.qkv attention.out feed_forward.w1 feed_forward.w2 feed_forward.w3"
FINAL = ["final_layer.linear", "final_layer.adaLN_modulation.1"]

FLUX = [
    *blocks(2, "double_blocks", f"{STREAMS} img_mod.lin txt_mod.lin"),
    *blocks(2, "single_blocks", "linear1 linear2 modulation.lin"),
    *embedders("time_in vector_in guidance_in"),
    *["img_in", "txt_in", *FINAL],
]
FLUX2 = [
    *blocks(2, "double_blocks", STREAMS),
    *blocks(2, "single_blocks", "linear1 linear2"),
    *embedders("time_in guidance_in"),
    *embedders("single_stream_modulation double_stream_modulation_img", "lin"),
    *["img_in", "txt_in", "final_layer.linear"],
]
FLUX2_KOHYA = [each for each in FLUX2 if "guidance" not in each and "modulation" not in each]
HUNYUAN = [
    *blocks(2, "double_blocks", "img_attn_qkv txt_attn_qkv img_attn_proj txt_attn_proj"),
    *blocks(2, "double_blocks", "img_mlp.fc1 img_mlp.fc2 txt_mlp.fc1 txt_mlp.fc2 img_mod.linear"),
    *blocks(2, "single_blocks", "linear1 linear2 modulation.linear"),
    *blocks(
        1,
        "txt_in.individual_token_refiner.blocks",
        "self_attn_proj mlp.fc1 mlp.fc2 adaLN_modulation.1",
    ),
    *embedders("time_in guidance_in txt_in.t_embedder", "mlp.0 mlp.2"),
    *embedders("txt_in.c_embedder", "linear_1 linear_2"),
    *embedders("vector_in"),
    # Not adaLN_modulation.1, of which the loader also swaps the rows of the factor "down".
    *["txt_in.input_embedder", "img_in.proj", "final_layer.linear"],
]
WAN = [
    *blocks(2, "blocks", f"{WAN_ATTENTIONS} cross_attn.k_img cross_attn.v_img ffn.0 ffn.2"),
]
WAN_OTHERS = [
    *embedders("text_embedding time_embedding", "0 2"),
    *["time_projection.1", "head.head", "img_emb.proj.1", "img_emb.proj.3"],
]
QWEN = [
    *blocks(
        2,
        "transformer_blocks",
        "attn.to_q attn.to_k attn.to_v attn.to_out.0 attn.add_q_proj attn.add_k_proj attn.add_v_proj"
        " attn.to_add_out img_mlp.net.0.proj img_mlp.net.2 txt_mlp.net.2 img_mod.1 txt_mod.1",
    ),
    *["img_in", "txt_in", "proj_out", "norm_out.linear"],
]
Z_IMAGE = [
    name
    for each in ("layers", "noise_refiner", "context_refiner")
    for name in blocks(
        2,
        each,
        "attention.to_q attention.to_k attention.to_v attention.out feed_forward.w1 feed_forward.w2",
    )
]
LUMINA = [
    *blocks(2, "layers", f"{NEXT} adaLN_modulation.1"),
    *blocks(1, "noise_refiner", f"{NEXT} adaLN_modulation.1"),
    *blocks(1, "context_refiner", NEXT),
]
XLABS = [
    *blocks(2, "double_blocks.{i}.processor".replace(".{i}", ""), ""),
    *(
        f"double_blocks.{i}.processor.{e}_lora{k}"
        for i in (0, 1)
        for e in ("qkv", "proj")
        for k in (1, 2)
    ),
    *(f"single_blocks.{i}.processor.{e}_lora" for i in (0, 1) for e in ("qkv", "proj")),
]
ANIMA = blocks(
    2,
    "blocks",
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.output_proj cross_attn.q_proj"
    " cross_attn.output_proj mlp.layer1 mlp.layer2 adaln_modulation_self_attn.1"
    " adaln_modulation_self_attn.2 adaln_modulation_cross_attn.1 adaln_modulation_mlp.2",
)
KREA = [
    *blocks(2, "blocks", "attn.wq attn.wk attn.wv attn.wo attn.gate mlp.gate mlp.up mlp.down"),
    *blocks(1, "txtfusion.layerwise_blocks", "attn.wq mlp.down"),
    *["first", "last.linear", "tmlp.0", "tmlp.2", "tproj.1", "txtmlp.1", "txtmlp.3"],
]
LTX = [
    *blocks(2, "transformer_blocks", "attn1.to_q attn1.to_out.0 attn2.to_v ff.net.0.proj ff.net.2"),
]
# Rows and columns, as loaders know them by heart; Flux 2 has more in its single blocks.
SHAPES = {"linear1": (21504, 3072), "attention.qkv": (3840, 2304), "qkv": (12, 4)}


def factors(paths, known=SHAPES):
    """Path to up and down factors of rank 2."""
    draw = torch.Generator().manual_seed(0)
    made = {}
    for path in paths:
        fits = [known[end] for end in known if flat(path).endswith(flat(end))]
        rows, columns = (fits or [(12, 3)])[0]
        up = torch.randn(rows, 2, generator=draw)
        made[path] = up, torch.randn(2, columns, generator=draw)
    return made


def stored(factors, spelling):
    """The tensors of an adapter, as kohya or PEFT name the factors, or XLabs."""
    down, up = {
        "kohya": ("lora_down", "lora_up"),
        "peft": ("lora_A", "lora_B"),
        "xlabs": ("down", "up"),
    }[spelling]
    tensors = {}
    for path, (b, a) in factors.items():
        tensors |= {f"{path}.{up}.weight": b.clone(), f"{path}.{down}.weight": a.clone()}
        if spelling == "kohya":
            tensors[f"{path}.alpha"] = torch.tensor(2.0)
    return tensors


def ours(factors):
    """Layer to its factors, as the slices of modules say."""
    layers = {}
    one = family({path: (len(up), down.shape[1]) for path, (up, down) in factors.items()})
    for path, (up, down) in factors.items():
        for each in slices(path, one):
            share, left = divmod(len(up), each.of)
            assert left == 0
            rows = up[each.begin * share : each.end * share]
            layers[each.layer] = rows.roll(len(rows) // 2, 0) if each.swapped else rows, down
    return layers


# What diffusers called modules before PEFT did, and what it leaves out.
EARLY = {
    ".processor.to_out_lora": ".to_out.0",
    ".processor.to_q_lora": ".to_q",
    ".processor.to_k_lora": ".to_k",
    ".processor.to_v_lora": ".to_v",
    ".to_q_lora": ".q_proj",
    ".to_k_lora": ".k_proj",
    ".to_v_lora": ".v_proj",
    ".to_out_lora": ".out_proj",
}


def theirs(tensors):
    """Layer to its factors, in a state dict that diffusers has converted."""
    layers = {}
    for name, value in tensors.items():
        if name.endswith(".alpha"):
            continue
        for end, at in ((".lora_B.weight", 0), (".lora_A.weight", 1)) + (
            ("up.weight", 0),
            ("down.weight", 1),
        ):
            if name.endswith(end):
                layer = name.removesuffix(end).removesuffix(".").removesuffix(".lora_linear_layer")
                layer = layer.removesuffix(".lora")
                break
        else:
            raise AssertionError(name)
        for early, now in EARLY.items():
            layer = layer.replace(early, now)
        if layer.partition(".")[0] not in ("unet", "transformer", "text_encoder", "text_encoder_2"):
            layer = f"transformer.{layer}"
        layers.setdefault(layer, [None, None])[at] = value
    return layers


def flattened(prefix, paths):
    return [prefix + flat(path) for path in paths]


def dotted(prefix, paths):
    return [prefix + path for path in paths]


KOHYA, COMFY = "lora_unet_", "diffusion_model."
CLIP_KOHYA = [
    f"lora_te{part}_text_model_encoder_layers_{i}_{each}"
    for part in (1, 2)
    for i in (0, 1)
    for each in ("self_attn_q_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")
]


@pytest.mark.parametrize(
    ("pipeline", "spelling", "paths"),
    [
        ("FluxPipeline", "kohya", flattened(KOHYA, FLUX) + CLIP_KOHYA[:8]),
        ("FluxPipeline", "kohya", dotted(COMFY, FLUX)),
        ("FluxPipeline", "xlabs", XLABS),
        ("Flux2Pipeline", "kohya", flattened(KOHYA, FLUX2_KOHYA)),
        ("Flux2Pipeline", "peft", dotted(COMFY, FLUX2)),
        ("HunyuanVideoPipeline", "peft", HUNYUAN),
        ("HunyuanVideoPipeline", "peft", dotted("transformer.", HUNYUAN)),
        ("HunyuanVideoPipeline", "peft", dotted(COMFY, HUNYUAN)),
        ("WanPipeline", "kohya", flattened(KOHYA, WAN)),
        ("WanPipeline", "peft", dotted(COMFY, WAN + WAN_OTHERS)),
        ("QwenImagePipeline", "kohya", flattened(KOHYA, QWEN)),
        ("QwenImagePipeline", "peft", dotted(COMFY, QWEN)),
        ("ZImagePipeline", "kohya", flattened(KOHYA, Z_IMAGE)),
        ("ZImagePipeline", "kohya", dotted(COMFY, Z_IMAGE)),
        ("ZImagePipeline", "peft", dotted(COMFY, [e for e in Z_IMAGE if not e.endswith("out")])),
        ("Lumina2Pipeline", "peft", dotted(COMFY, LUMINA)),
        ("AnimaLoraLoaderMixin", "peft", dotted(COMFY, ANIMA)),
        ("Krea2LoraLoaderMixin", "peft", dotted(COMFY, KREA)),
        ("LTXPipeline", "peft", dotted(COMFY, LTX)),
    ],
)
def test_rows_of_layers_are_those_that_diffusers_loads(pipeline, spelling, paths):
    loader = getattr(diffusers, pipeline, None) or getattr(
        diffusers.loaders.lora_pipeline, pipeline
    )
    made = factors(paths, {"linear1": (36, 4)} if pipeline == "Flux2Pipeline" else SHAPES)
    converted = loader.lora_state_dict(stored(made, spelling))
    check(ours(made), theirs(converted[0] if isinstance(converted, tuple) else converted))


def check(mine, other):
    assert mine.keys() == other.keys()
    for layer, (up, down) in mine.items():
        torch.testing.assert_close(up, other[layer][0], rtol=1e-6, atol=1e-6, msg=layer)
        torch.testing.assert_close(down, other[layer][1], rtol=1e-6, atol=1e-6, msg=layer)


SD3 = [
    *blocks(
        2,
        "joint_blocks",
        "x_block.attn.qkv x_block.attn2.qkv x_block.attn.proj x_block.attn2.proj x_block.mlp.fc1"
        " x_block.mlp.fc2 x_block.adaLN_modulation.1 context_block.attn.qkv",
    ),
    *blocks(
        1,
        "joint_blocks",
        "context_block.attn.proj context_block.mlp.fc1 context_block.mlp.fc2"
        " context_block.adaLN_modulation.1",
    ),
    *embedders("t_embedder y_embedder", "mlp.0 mlp.2"),
    *["x_embedder.proj", "context_embedder", *FINAL],
]
CHROMA = [
    *blocks(2, "double_blocks", STREAMS),
    *blocks(2, "single_blocks", "linear1 linear2"),
    *blocks(2, "distilled_guidance_layer.layers", "in_layer out_layer"),
    *embedders("distilled_guidance_layer", "in_proj out_proj"),
    *["img_in", "txt_in", "final_layer.linear"],
]
PIXART = "attn.qkv attn.proj cross_attn.q_linear cross_attn.kv_linear cross_attn.proj"
SANA = [
    *blocks(
        2, "blocks", f"{PIXART} mlp.inverted_conv.conv mlp.depth_conv.conv mlp.point_conv.conv"
    ),
    *embedders("t_embedder", "mlp.0 mlp.2"),
    *["x_embedder.proj", "t_block.1", "y_embedder.y_proj.fc1", "final_layer.linear"],
]
AURA = [
    *blocks(
        2, "double_layers", "attn.w1q attn.w1o attn.w2k attn.w2o mlpX.c_fc1 mlpC.c_proj modC.1"
    ),
    *blocks(2, "single_layers", "attn.w1v attn.w1o mlp.c_fc2 modCX.1"),
    *["cond_seq_linear", "init_x_linear", "final_linear", "modF.1", "t_embedder.mlp.2"],
]
MOCHI = [
    *blocks(
        2, "blocks", "attn.qkv_x attn.qkv_y attn.proj_x attn.proj_y mlp_x.w1 mlp_y.w2 mod_x mod_y"
    ),
    *embedders("t5_y_embedder", "to_kv to_q to_out"),
    *["x_embedder.proj", "t_embedder.mlp.0", "t5_yproj", "final_layer.mod", "final_layer.linear"],
]
RESNET = "in_layers.2 emb_layers.1 out_layers.3 skip_connection"
TRANSFORMER = (
    "proj_in proj_out transformer_blocks.0.attn1.to_q transformer_blocks.1.attn2.to_out.0"
    " transformer_blocks.0.ff.net.0.proj transformer_blocks.1.ff.net.2"
)


def unet(levels, attended):
    """The modules of CompVis's UNet, in which levels have attention: 1 to 12 each way."""
    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"]
    for i in range(1, 3 * levels):
        if i % 3 == 0:
            names.append(f"input_blocks.{i}.0.op")
        else:
            names += embedders(f"input_blocks.{i}.0", RESNET)
            names += embedders(f"input_blocks.{i}.1", TRANSFORMER) if i // 3 in attended else []
    names += embedders("middle_block.0 middle_block.2", RESNET)
    names += embedders("middle_block.1", TRANSFORMER)
    for i in range(3 * levels):
        names += embedders(f"output_blocks.{i}.0", RESNET)
        has_attention = levels - 1 - i // 3 in attended
        names += embedders(f"output_blocks.{i}.1", TRANSFORMER) if has_attention else []
        if i % 3 == 2 and i < 3 * levels - 1:
            names.append(f"output_blocks.{i}.{1 + has_attention}.conv")
    return names


SD1, SDXL = unet(4, (0, 1, 2)), [*unet(3, (1, 2)), "label_emb.0.0", "label_emb.0.2"]


class Checkpoint(dict):
    """The weights of modules; others that a converter asks for are zero."""

    def pop(self, key, *_):
        return super().pop(key, torch.zeros(12, 1))


@pytest.mark.parametrize(
    ("model", "paths", "known"),
    [
        ("sd3_transformer_checkpoint", SD3, {}),
        ("chroma_transformer_checkpoint", CHROMA, SHAPES),
        ("flux_transformer_checkpoint", FLUX, SHAPES),
        ("hunyuan_video_transformer", [*HUNYUAN, FINAL[1]], SHAPES),
        (
            "hunyuan_video_transformer",
            ["txt_in.individual_token_refiner.blocks.0.self_attn_qkv"],
            {},
        ),
        ("wan_transformer", [*WAN, *WAN_OTHERS, "patch_embedding"], {}),
        ("lumina2", [*LUMINA, *FINAL, "t_embedder.mlp.0", "cap_embedder.1"], SHAPES),
        ("z_image_transformer_checkpoint", Z_IMAGE, {}),
        (
            "z_image_transformer_checkpoint",
            ["layers.0.attention.qkv", "layers.0.adaLN_modulation.0", "x_embedder", *FINAL],
            {"qkv": (12, 4)},
        ),
        ("ltx_transformer_checkpoint", [*LTX, "patchify_proj", "adaln_single.linear"], {}),
        ("sana_transformer", SANA, {}),
        ("auraflow_transformer_checkpoint", AURA, {}),
        ("mochi_transformer_checkpoint", MOCHI, {}),
        ("ldm_unet_checkpoint", SD1, {}),
        ("ldm_unet_checkpoint", SDXL, {}),
    ],
)
def test_rows_of_layers_are_those_of_converted_checkpoints(model, paths, known):
    bare = ("auraflow_transformer_checkpoint", "hunyuan_video_transformer", "lumina2")
    made = factors(dotted("" if model in bare else "model.diffusion_model.", paths), known)
    weights = Checkpoint({f"{path}.weight": up.clone() for path, (up, _) in made.items()})
    weights |= {f"{path}.bias": torch.zeros(len(up)) for path, (up, _) in made.items()}
    library = diffusers.loaders.single_file_utils
    if model == "ldm_unet_checkpoint":
        config = {"layers_per_block": 2}
        config |= {"addition_embed_type": "text_time"} if paths is SDXL else {}
        converted = library.convert_ldm_unet_checkpoint(weights, config)
    else:
        converted = getattr(library, f"convert_{model}_to_diffusers")(weights)
    layers = ours(made)
    part = "unet" if "unet" in model else "transformer"
    assert {f"{part}.{name}" for name, value in converted.items() if value is not None} >= {
        f"{layer}.weight" for layer in layers
    }
    for layer, (rows, _) in layers.items():
        other = converted[layer.removeprefix(f"{part}.") + ".weight"]
        torch.testing.assert_close(other, rows, rtol=0, atol=0, msg=layer)


@pytest.mark.parametrize("text_encoder", [1, 2])
def test_loras_of_stable_diffusion_xl_are_those_that_diffusers_loads(text_encoder):
    config = type("Config", (), {"layers_per_block": 2})
    te = [each for each in CLIP_KOHYA if f"te{text_encoder}" in each]
    blocks_only = [e for e in SDXL if e.partition(".")[0] in ("input_blocks", "output_blocks")]
    made = factors(flattened(KOHYA, blocks_only) + te)
    converted, alphas = diffusers.StableDiffusionXLPipeline.lora_state_dict(
        stored(made, "kohya"), unet_config=config
    )
    assert set(alphas.values()) == {2.0}
    check(ours(made), theirs(converted))


def test_rows_of_open_clip_are_those_of_the_converted_text_encoder():
    library = diffusers.loaders.single_file_utils
    prefix = "conditioner.embedders.1.model."
    inside = "attn.out_proj mlp.c_fc mlp.c_proj"
    made = factors(dotted(prefix, blocks(2, "transformer.resblocks", inside)))
    fused = factors(dotted(prefix, blocks(2, "transformer.resblocks", "attn.in_proj")))
    weights = {f"{path}.weight": up for path, (up, _) in made.items()}
    weights |= {f"{path}_weight": up for path, (up, _) in fused.items()}
    model = type("Model", (), {"config": type("Config", (), {"hidden_size": 4})})
    converted = library.convert_open_clip_checkpoint(model, weights, prefix)
    layers = ours(made | fused)
    assert {f"{layer}.weight" for layer in layers} == {f"text_encoder_2.{e}" for e in converted}
    for layer, (rows, _) in layers.items():
        other = converted[layer.removeprefix("text_encoder_2.") + ".weight"]
        torch.testing.assert_close(other, rows, rtol=0, atol=0, msg=layer)


TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
    **{f"{each}_token_id": 0 for each in ("pad", "bos", "eos", "decoder_start")},
}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
TWO_SIDES = {
    f"{side}_{each}": size
    for side in ("encoder", "decoder")
    for each, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()
} | {"d_model": 16, "vocab_size": 32, "pad_token_id": 0, "decoder_start_token_id": 0}
LANGUAGE_MODELS = {
    "LlamaForCausalLM": TINY,
    "MistralForCausalLM": TINY,
    "MixtralForCausalLM": TINY,
    "Qwen2ForCausalLM": TINY,
    "Qwen3ForCausalLM": TINY,
    "Qwen3MoeForCausalLM": TINY | {"num_experts": 2, "moe_intermediate_size": 8},
    "Gemma2ForCausalLM": TINY,
    "Gemma3ForCausalLM": TINY,
    "PhiForCausalLM": TINY,
    "Phi3ForCausalLM": TINY,
    "GPT2LMHeadModel": {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "GPTNeoXForCausalLM": TINY,
    "FalconForCausalLM": {each: TINY[each] for each in TINY if each != "head_dim"},
    "BloomForCausalLM": {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    "OPTForCausalLM": TINY | {"ffn_dim": 16, "word_embed_proj_dim": 8},
    "MambaForCausalLM": TINY,
    "DeepseekV3ForCausalLM": TINY
    | {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
    | {"n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1},
    "BertForSequenceClassification": TINY,
    "RobertaForMaskedLM": TINY,
    "ElectraForPreTraining": TINY,
    "DebertaV2Model": TINY,
    "ModernBertForMaskedLM": TINY,
    "DistilBertForSequenceClassification": {
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 8,
    },
    "T5ForConditionalGeneration": T5,
    "BartForConditionalGeneration": TWO_SIDES,
    "WhisperForConditionalGeneration": TWO_SIDES,
    "ViTForImageClassification": TINY | {"image_size": 16, "patch_size": 8},
    "Dinov2ForImageClassification": TINY | {"image_size": 16, "patch_size": 8},
    "CLIPVisionModel": TINY | {"image_size": 16, "patch_size": 8},
    "SwinForImageClassification": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
}


def of_transformers(kind, settings):
    model = getattr(transformers, kind)
    with torch.device("meta"):
        return model(model.config_class(**settings))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_modules_of_transformers_models_have_their_own_names(kind):
    names = modules(of_transformers(kind, LANGUAGE_MODELS[kind]))
    assert names
    one = family({f"base_model.model.{name}": (1, 1) for name in names})
    for name in names:
        for path in (name, f"base_model.model.{name}", f"lycoris_{flat(name)}"):
            assert slices(path) == slices(path, one) == (Slice(name),)


@pytest.mark.parametrize(
    ("kind", "settings", "begin"),
    [
        ("CLIPTextModel", TINY, "text_model."),
        ("CLIPTextModelWithProjection", TINY | {"projection_dim": 8}, ""),
        ("T5EncoderModel", T5 | {"feed_forward_proj": "gated-gelu"}, ""),
        ("UMT5EncoderModel", T5 | {"feed_forward_proj": "gated-gelu"}, ""),
        ("Qwen3ForCausalLM", TINY, ""),
    ],
)
def test_text_encoders_are_parts_of_pipelines(kind, settings, begin):
    for name in modules(of_transformers(kind, settings)):
        expected = (Slice(f"text_encoder_2.{begin}{name}"),)
        assert slices(f"text_encoder_2.{name}") == expected
        assert slices(f"lora_te2_{flat(name)}") == expected
        assert slices(f"text_encoder_2.{begin}{name}") == expected
        assert slices(f"lora_te2_{flat(begin + name)}") == expected
