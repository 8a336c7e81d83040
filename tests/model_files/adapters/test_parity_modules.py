"""The rows of fused and renamed modules are those that diffusers' loaders give its layers."""

import re

import pytest

from probex_jax.model_files.adapters.modules import family, slices

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
mixins = pytest.importorskip("diffusers.loaders.lora_pipeline")
single_file = pytest.importorskip("diffusers.loaders.single_file_utils")


def flat(name):
    return name.replace(".", "_")


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
    # Not adaLN_modulation.1: the loader also swaps the rows of the factor "down".
    *["txt_in.input_embedder", "img_in.proj", "final_layer.linear"],
]
WAN = [
    *blocks(2, "blocks", f"{WAN_ATTENTIONS} cross_attn.k_img cross_attn.v_img ffn.0 ffn.2"),
]
WAN_OTHERS = [
    *embedders("text_embedding time_embedding", "0 2"),
    *["time_projection.1", "head.head", "img_emb.proj.1", "img_emb.proj.3"],
]
WAN_NORMS = [
    *blocks(2, "blocks", "self_attn.norm_q cross_attn.norm_k cross_attn.norm_k_img norm3"),
    *embedders("img_emb.proj", "0 4"),
]
QWEN = [
    *blocks(
        2,
        "transformer_blocks",
        "attn.to_q attn.to_k attn.to_out.0 attn.add_q_proj attn.add_k_proj attn.add_v_proj"
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
        "attention.to_q attention.to_k attention.to_v attention.out feed_forward.w2",
    )
]
LUMINA = [
    *blocks(2, "layers", f"{NEXT} adaLN_modulation.1"),
    *blocks(1, "noise_refiner", f"{NEXT} adaLN_modulation.1"),
    *blocks(1, "context_refiner", NEXT),
]
XLABS = [
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
LTX2 = [
    *blocks(
        1, "transformer_blocks", "audio_attn1.to_q video_to_audio_attn.to_out.0 audio_ff.net.2"
    ),
    *embedders("adaln_single audio_adaln_single av_ca_audio_scale_shift_adaln_single", "linear"),
    *["av_ca_v2a_gate_adaln_single.emb.timestep_embedder.linear_1", "audio_patchify_proj"],
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
        for each in slices(path, one, (len(up), down.shape[1])):
            share, left = divmod(len(up), each.of)
            assert left == 0
            rows = up[each.begin * share : each.end * share]
            layers[each.layer] = rows.roll(len(rows) // 2, 0) if each.swapped else rows, down
    return layers


# What diffusers called modules before PEFT did.
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
ENDING = re.compile(r"(.*?)(?:\.lora|\.lora_linear_layer)?\.(lora_A|lora_B|down|up)\.weight")
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def theirs(tensors):
    """Layer to its factors, in a state dict that diffusers has converted."""
    layers = {}
    for name, value in tensors.items():
        layer, half = ENDING.fullmatch(name).groups()
        for early, now in EARLY.items():
            layer = layer.replace(early, now)
        if layer.partition(".")[0] not in PARTS:  # as the loader of kohya's Flux forgets
            layer = f"transformer.{layer}"
        layers.setdefault(layer, [None, None])[half in ("lora_A", "down")] = value
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
        ("LTX2LoraLoaderMixin", "peft", dotted(COMFY, [*LTX, *LTX2])),
    ],
)
def test_rows_of_layers_are_those_that_diffusers_loads(pipeline, spelling, paths):
    loader = getattr(diffusers, pipeline, None) or getattr(mixins, pipeline)
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
LAST = "joint_blocks.1.context_block.adaLN_modulation.1"  # scale and shift alone
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
RESNET = "in_layers.0 in_layers.2 out_layers.0 emb_layers.1 out_layers.3 skip_connection"
TRANSFORMER = (
    "norm proj_in proj_out transformer_blocks.0.attn1.to_q transformer_blocks.1.attn2.to_out.0"
    " transformer_blocks.0.ff.net.0.proj transformer_blocks.1.ff.net.2"
)


def unet(levels, attended):
    """The modules of CompVis's UNet, in which levels have attention: 1 to 12 each way."""
    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"]
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
        ("sd3_transformer_checkpoint", [*SD3, LAST], {LAST: (8, 4)}),
        ("chroma_transformer_checkpoint", CHROMA, SHAPES),
        ("flux_transformer_checkpoint", FLUX, SHAPES),
        ("hunyuan_video_transformer", [*HUNYUAN, FINAL[1]], SHAPES),
        (
            "hunyuan_video_transformer",
            ["txt_in.individual_token_refiner.blocks.0.self_attn_qkv"],
            {},
        ),
        ("wan_transformer", [*WAN, *WAN_NORMS, *WAN_OTHERS, "patch_embedding"], {}),
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
    if model == "ldm_unet_checkpoint":
        config = {"layers_per_block": 2}
        config |= {"addition_embed_type": "text_time"} if paths is SDXL else {}
        converted = single_file.convert_ldm_unet_checkpoint(weights, config)
    else:
        converted = getattr(single_file, f"convert_{model}_to_diffusers")(weights)
    layers = ours(made)
    part = "unet" if "unet" in model else "transformer"
    assert {f"{part}.{name}" for name, value in converted.items() if value is not None} >= {
        f"{layer}.weight" for layer in layers
    }
    for layer, (rows, _) in layers.items():
        other = converted[layer.removeprefix(f"{part}.") + ".weight"]
        torch.testing.assert_close(other, rows, rtol=0, atol=0, msg=layer)


WHOLE_FLUX = [  # not adaLN_modulation.1, as above
    *blocks(19, "double_blocks", f"{STREAMS} img_mod.lin txt_mod.lin"),
    *blocks(38, "single_blocks", "linear1 linear2 modulation.lin"),
    "final_layer.linear",
]


@pytest.mark.parametrize(
    ("kind", "prefix", "others"),
    [
        ("bfl_flux_control", "", ["img_in", "txt_in", *embedders("time_in vector_in guidance_in")]),
        ("fal_kontext", "base_model.model.", []),
    ],
)
def test_loras_of_whole_fluxes_are_those_that_diffusers_converts(kind, prefix, others):
    made = factors(dotted(prefix, dict.fromkeys([*WHOLE_FLUX, *others])))
    tensors = Checkpoint(stored(made, "peft"))
    converted = getattr(conversion, f"_convert_{kind}_lora_to_diffusers")(tensors)
    named = [name for name in converted if "lora" in name and "norm_out" not in name]
    check(ours(made), theirs({name: converted[name] for name in named}))


@pytest.mark.parametrize("text_encoder", [1, 2])
def test_loras_of_stable_diffusion_xl_are_those_that_diffusers_loads(text_encoder):
    config = type("Config", (), {"layers_per_block": 2})
    te = [each for each in CLIP_KOHYA if f"te{text_encoder}" in each]
    inside = [each for each in SDXL if "blocks." in each and not each.endswith((".0", "norm"))]
    inside += ["input_blocks.0.0", "out.2", "time_embed.2", "label_emb.0.0"]
    made = factors(flattened(KOHYA, inside) + te)
    converted, alphas = diffusers.StableDiffusionXLPipeline.lora_state_dict(
        stored(made, "kohya"), unet_config=config
    )
    assert set(alphas.values()) == {2.0}
    check(ours(made), theirs(converted))


def test_rows_of_open_clip_are_those_of_the_converted_text_encoder():
    prefix = "conditioner.embedders.1.model."
    inside = "attn.out_proj mlp.c_fc mlp.c_proj ln_1"
    made = factors(dotted(prefix, blocks(2, "transformer.resblocks", inside)))
    fused = factors(dotted(prefix, blocks(2, "transformer.resblocks", "attn.in_proj")))
    weights = {f"{path}.weight": up for path, (up, _) in made.items()}
    weights |= {f"{path}_weight": up for path, (up, _) in fused.items()}
    model = type("Model", (), {"config": type("Config", (), {"hidden_size": 4})})
    converted = single_file.convert_open_clip_checkpoint(model, weights, prefix)
    layers = ours(made | fused)
    assert {f"{layer}.weight" for layer in layers} == {f"text_encoder_2.{e}" for e in converted}
    for layer, (rows, _) in layers.items():
        other = converted[layer.removeprefix("text_encoder_2.") + ".weight"]
        torch.testing.assert_close(other, rows, rtol=0, atol=0, msg=layer)
