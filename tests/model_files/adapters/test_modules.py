"""Every spelling of a module's name leads to the same layers."""

import time

import pytest

from probex_jax.model_files.adapters.modules import Slice, family, slices

FLUX = "transformer.transformer_blocks.3."
SINGLE = "transformer.single_transformer_blocks.12."
SINGLES = "transformer.single_transformer_blocks.0."
WAN = "transformer.blocks.5."
CLIP = "text_model.encoder.layers.11."

# Canonical name of a layer to other names of its module.
SPELLINGS = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lycoris_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.base_layer",
    ],
    "unet.mid_block.attentions.0.transformer_blocks.7.attn2.to_out.0": [
        "lora_unet_middle_block_1_transformer_blocks_7_attn2_to_out_0",
        "mid_block.attentions.0.transformer_blocks.7.attn2.processor.to_out_lora",
    ],
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj": [
        "lora_unet_output_blocks_5_1_transformer_blocks_0_ff_net_0_proj"
    ],
    "unet.down_blocks.2.resnets.1.time_emb_proj": ["lora_unet_input_blocks_8_0_emb_layers_1"],
    "unet.mid_block.resnets.1.conv1": ["lora_unet_middle_block_2_in_layers_2"],
    "unet.up_blocks.0.resnets.1.conv2": ["diffusion_model.output_blocks.1.0.out_layers.3"],
    "unet.up_blocks.2.resnets.0.conv_shortcut": ["lora_unet_output_blocks_6_0_skip_connection"],
    "unet.down_blocks.0.downsamplers.0.conv": ["lora_unet_input_blocks_3_0_op"],
    "unet.up_blocks.0.upsamplers.0.conv": [
        "lora_unet_output_blocks_2_1_conv",  # Stable Diffusion 1: no attention before it
        "lora_unet_output_blocks_2_2_conv",
    ],
    "unet.up_blocks.0.resnets.1.norm2": ["lora_unet_output_blocks_1_0_out_layers_0"],
    "unet.conv_in": ["lora_unet_input_blocks_0_0", "lora_unet_conv_in"],
    "unet.conv_out": ["lora_unet_out_2", "model.diffusion_model.out.2"],
    "unet.time_embedding.linear_2": ["lora_unet_time_embed_2", "lora_unet_time_embedding_linear_2"],
    "unet.add_embedding.linear_1": ["lora_unet_label_emb_0_0"],
    f"text_encoder.{CLIP}self_attn.q_proj": [
        "lora_te_text_model_encoder_layers_11_self_attn_q_proj",
        "lora_te1_text_model_encoder_layers_11_self_attn_q_proj",
        "lora_te1_encoder_layers_11_self_attn_q_proj",
        f"text_encoders.clip_l.transformer.{CLIP}self_attn.q_proj",
        f"conditioner.embedders.0.transformer.{CLIP}self_attn.q_proj",
        f"clip_l.{CLIP}self_attn.q_proj",
        f"{CLIP}self_attn.q_proj",
        f"text_encoder.{CLIP}self_attn.to_q_lora",
        "text_encoder.encoder.layers.11.self_attn.q_proj",
    ],
    f"text_encoder_2.{CLIP}mlp.fc2": [
        "lora_te2_text_model_encoder_layers_11_mlp_fc2",
        "conditioner.embedders.1.model.transformer.resblocks.11.mlp.c_proj",
        "lora_te2_transformer_resblocks_11_mlp_c_proj",
        f"text_encoders.clip_g.transformer.{CLIP}mlp.fc2",
    ],
    "text_encoder_2.encoder.block.15.layer.1.DenseReluDense.wi_0": [
        "lora_te2_encoder_block_15_layer_1_DenseReluDense_wi_0",
        "text_encoders.t5xxl.transformer.encoder.block.15.layer.1.DenseReluDense.wi_0",
    ],
    "text_encoder_3.encoder.block.0.layer.0.SelfAttention.o": [
        "lora_te3_encoder_block_0_layer_0_SelfAttention_o"
    ],
    FLUX + "attn.to_out.0": [
        "lora_unet_double_blocks_3_img_attn_proj",
        "lora_transformer_transformer_blocks_3_attn_to_out_0",
        "lycoris_transformer_blocks_3_attn_to_out_0",
        "diffusion_model.double_blocks.3.img_attn.proj",
        "base_model.model.double_blocks.3.img_attn.proj",
        "base_model.model.transformer_blocks.3.attn.to_out.0",
        "transformer.double_blocks.3.img_attn_proj",
        "double_blocks.3.processor.proj_lora1",
        "lora_unet_joint_blocks_3_x_block_attn_proj",
    ],
    FLUX + "attn.to_add_out": [
        "lora_unet_double_blocks_3_txt_attn_proj",
        "double_blocks.3.processor.proj_lora2",
        "diffusion_model.joint_blocks.3.context_block.attn.proj",
    ],
    FLUX + "attn.to_q": [
        "transformer.base_model.model.transformer_blocks.3.attn.to_q",
        "lora_unet_double_blocks_3_img_attn_q",
    ],
    FLUX + "ff.net.0.proj": [
        "lora_unet_double_blocks_3_img_mlp_0",
        "diffusion_model.double_blocks.3.img_mlp.fc1",
        "lora_unet_joint_blocks_3_x_block_mlp_fc1",
    ],
    FLUX + "ff_context.net.2": ["lora_unet_double_blocks_3_txt_mlp_2"],
    FLUX + "norm1_context.linear": [
        "lora_unet_double_blocks_3_txt_mod_lin",
        "lora_unet_double_blocks_3_txt_mod_linear",
        "diffusion_model.joint_blocks.3.context_block.adaLN_modulation.1",
    ],
    SINGLE + "proj_out": [
        "lora_unet_single_blocks_12_linear2",
        "single_blocks.12.processor.proj_lora",
    ],
    SINGLE + "norm.linear": ["lora_unet_single_blocks_12_modulation_lin"],
    SINGLE + "attn.to_k": ["lycoris_single_transformer_blocks_12_attn_to_k"],
    "transformer.time_text_embed.guidance_embedder.linear_1": [
        "lora_unet_guidance_in_in_layer",
        "lora_transformer_time_text_embed_guidance_embedder_linear_1",
        "diffusion_model.guidance_in.mlp.0",
    ],
    "transformer.context_embedder": [
        "lora_unet_txt_in",
        "lora_transformer_context_embedder",
        "lora_unet_context_embedder_",
    ],
    "transformer.img_in": ["lora_transformer_img_in"],
    "transformer.x_embedder.proj": ["lora_transformer_x_embedder_proj", "lora_unet_img_in_proj"],
    "transformer.pos_embed.proj": ["diffusion_model.x_embedder.proj"],
    "transformer.distilled_guidance_layer.layers.4.linear_1": [
        "lora_unet_distilled_guidance_layer_layers_4_in_layer"
    ],
    WAN + "attn1.to_q": [
        "lora_unet_blocks_5_self_attn_q",
        "lora_unet__blocks_5_self_attn_q",
        "pipe.dit.blocks.5.self_attn.q",
        "diffusion_model.blocks.5.self_attn.q",
    ],
    WAN + "norm2": ["diffusion_model.blocks.5.norm3"],
    WAN + "attn2.to_out.0": ["diffusion_model.blocks.5.cross_attn.o"],
    WAN + "attn2.add_k_proj": ["lora_unet_blocks_5_cross_attn_k_img"],
    WAN + "ffn.net.0.proj": ["lora_unet_blocks_5_ffn_0", "blocks.5.ffn.0"],
    "transformer.condition_embedder.time_proj": ["diffusion_model.time_projection.1"],
    "transformer.proj_out": ["diffusion_model.head.head", "lora_unet_final_layer_linear"],
    "transformer.transformer_blocks.3.img_mlp.net.2": [
        "lora_unet_transformer_blocks_3_img_mlp_net_2"
    ],
    "transformer.noise_refiner.0.attention.to_out.0": [
        "lycoris_noise_refiner_0_attention_to_out_0",
        "lora_unet_noise_refiner_0_attention_out",
        "diffusion_model.noise_refiner.0.attention.out",
    ],
    "transformer.layers.9.attention.to_q": ["lora_unet_layers_9_attention_to_q"],
    "transformer.context_embedder.token_refiner.refiner_blocks.1.ff.net.2": [
        "diffusion_model.txt_in.individual_token_refiner.blocks.1.mlp.fc2"
    ],
    "model.layers.0.self_attn.q_proj": [
        "base_model.model.model.layers.0.self_attn.q_proj",
        "_orig_mod.model.layers.0.self_attn.q_proj",
        "module.model.layers.0.self_attn.q_proj",
        "model._fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.self_attn.q_proj",
        "lycoris_model_layers_0_self_attn_q_proj",
    ],
    "model.layers.0.mlp.gate_up_proj": ["lycoris_model_layers_0_mlp_gate_up_proj"],
    "transformer.h.0.attn.c_attn": ["base_model.model.transformer.h.0.attn.c_attn"],
    "bert.encoder.layer.2.attention.self.query": [
        "base_model.model.bert.encoder.layer.2.attention.self.query",
        "lycoris_bert_encoder_layer_2_attention_self_query",
    ],
    "blocks.0.attn.qkv": ["base_model.model.blocks.0.attn.qkv"],  # timm's vision transformers
    "unet.0": ["unet:0"],
    "text_encoder.3": ["text_encoder:3"],
}


@pytest.mark.parametrize(
    ("layer", "path"), [(layer, path) for layer in SPELLINGS for path in (layer, *SPELLINGS[layer])]
)
def test_every_spelling_is_the_same_layer(layer, path):
    assert slices(path) == (Slice(layer),)


@pytest.mark.parametrize("i", range(12))
def test_blocks_of_compvis_are_numbered_through_the_levels(i):
    level, layer = divmod(i, 3)
    for name, theirs, ours in [
        ("attentions", "1.proj_in", "proj_in"),
        ("resnets", "0.in_layers.2", "conv1"),
    ]:
        up = slices(f"diffusion_model.output_blocks.{i}.{theirs}")
        assert up == (Slice(f"unet.up_blocks.{level}.{name}.{layer}.{ours}"),)
        if layer < 2:
            down = slices(f"diffusion_model.input_blocks.{i + 1}.{theirs}")
            assert down == (Slice(f"unet.down_blocks.{level}.{name}.{layer}.{ours}"),)


def shared(prefix, *names, shares=(1, 1, 1)):
    """Layers that share the rows of a module."""
    ends = [sum(shares[: at + 1]) for at in range(len(shares))]
    return tuple(
        Slice(prefix + name, end - share, end, ends[-1])
        for name, share, end in zip(names, shares, ends, strict=True)
    )


QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


@pytest.mark.parametrize(
    ("expected", "paths"),
    [
        (
            shared(FLUX + "attn.", *QKV),
            [
                "lora_unet_double_blocks_3_img_attn_qkv",
                "diffusion_model.double_blocks.3.img_attn.qkv",
                "double_blocks.3.img_attn.qkv",
                "transformer.double_blocks.3.img_attn_qkv",
                "double_blocks.3.processor.qkv_lora1",
                "lora_unet_joint_blocks_3_x_block_attn_qkv",
                "transformer.transformer_blocks.3.attn.to_qkv",
            ],
        ),
        (
            shared(FLUX + "attn.", *ADDED),
            [
                "lora_unet_double_blocks_3_txt_attn_qkv",
                "double_blocks.3.processor.qkv_lora2",
                "diffusion_model.joint_blocks.3.context_block.attn.qkv",
            ],
        ),
        (
            shared(SINGLE, "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", shares=(1, 1, 1, 4)),
            ["lora_unet_single_blocks_12_linear1", "diffusion_model.single_blocks.12.linear1"],
        ),
        (
            shared(SINGLE + "attn.", *QKV),
            ["single_blocks.12.processor.qkv_lora", "diffusion_model.single_blocks.12.linear1_qkv"],
        ),
        (
            shared("transformer.layers.9.attention.", *QKV),
            ["diffusion_model.layers.9.attention.qkv", "lora_unet_layers_9_attention_qkv"],
        ),
        (
            shared(f"text_encoder_2.{CLIP}self_attn.", "q_proj", "k_proj", "v_proj"),
            ["conditioner.embedders.1.model.transformer.resblocks.11.attn.in_proj"],
        ),
        (
            (Slice("transformer.norm_out.linear", swapped=True),),
            [
                "lora_unet_final_layer_adaLN_modulation_1",
                "diffusion_model.final_layer.adaLN_modulation.1",
            ],
        ),
    ],
)
def test_rows_of_fused_modules_are_shared(expected, paths):
    for path in paths:
        assert slices(path) == expected


def test_shapes_tell_modules_of_one_name_apart():
    path = "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1"
    layer = "transformer.transformer_blocks.23.norm1_context.linear"
    assert slices(path) == slices(path, "SD3", (48, 8)) == (Slice(layer),)
    # The last block's has scale and shift alone, which diffusers keeps in the other order.
    assert slices(path, "SD3", (16, 8)) == (Slice(layer, swapped=True),)
    path = "lora_unet_single_blocks_0_linear1"
    assert len(slices(path, shape=(56, 8))) == 4
    assert slices(path, shape=(72, 8)) == (Slice(SINGLES + "attn.to_qkv_mlp_proj"),)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # Without words of any model, a name of kohya's stays whole; with them, it has dots.
        ("lora_unet_what_is_this", "unet.what_is_this"),
        ("lora_te2_to_kitchen", "text_encoder_2.to_kitchen"),
        ("lycoris_what_is_this", "what_is_this"),
        (
            "lora_unet_down_blocks_0_attentions_1_conv2_to_k",
            "unet.down_blocks.0.attentions.1.conv2.to_k",
        ),
        ("lora_unet_double_blocks_0_norm", "transformer.double_blocks.0.norm"),
        # Names with dots stay, after a part that their first module tells.
        ("down_blocks.0.motion_modules.1.q", "unet.down_blocks.0.motion_modules.1.q"),
        ("base_model.model.transformer_blocks.0.zebra", "transformer.transformer_blocks.0.zebra"),
        ("diffusion_model.blocks.0.attn.to_q", "transformer.blocks.0.attn.to_q"),
        ("layers.0.zebra", "layers.0.zebra"),
        ("fc_1", "fc_1"),
        ("_fc.0", "_fc.0"),
        ("zebra.0.base_layer", "zebra.0"),
    ],
)
def test_unknown_modules_keep_their_names(path, expected):
    assert slices(path) == (Slice(expected),)


def test_numbers_of_the_table_must_agree():
    assert slices("diffusion_model.blocks.0.ffn.1") == (Slice("transformer.blocks.0.ffn.1"),)
    assert slices("diffusion_model.input_blocks.12.0.in_layers.2") == (
        Slice("unet.input_blocks.12.0.in_layers.2"),
    )


FLUX_MODULES = {
    "lora_unet_double_blocks_0_img_mlp_0": (32, 8),
    "lora_unet_single_blocks_0_linear1": (56, 8),
    "lora_unet_txt_in": (8, 4),
}
CLIP_MODULES = {f"lora_te1_text_model_encoder_layers_{i}_mlp_fc1": (32, 8) for i in range(12)}
FLUX2_MODULES = FLUX_MODULES | {"lora_unet_single_blocks_0_linear1": (72, 8)}
QWEN = {"lora_unet_img_in": (8, 4), "lora_unet_transformer_blocks_0_img_mod_1": (48, 8)}
Z_IMAGE = {"diffusion_model.layers.0.attention.qkv": (24, 8)}
LUMINA = {"diffusion_model.layers.0.attention.qkv": (10, 6)}
SD3 = {"diffusion_model.joint_blocks.0.x_block.attn.qkv": (24, 8)}
HIDREAM = {"diffusion_model.double_stream_blocks.0.block.attn1.to_q_t": (8, 8)}
TIMM = {"base_model.model.blocks.0.attn.qkv": (24, 8), "blocks.0.mlp.fc1": (32, 8)}


@pytest.mark.parametrize(
    ("shapes", "expected", "path", "layer"),
    [
        (FLUX_MODULES, "Flux", "lora_unet_img_in", "transformer.x_embedder"),
        (FLUX_MODULES, "Flux", "lora_te3_shared", "text_encoder_2.shared"),
        (CLIP_MODULES | FLUX_MODULES, "Flux", "lora_te3_shared", "text_encoder_2.shared"),
        (
            FLUX2_MODULES,
            "Flux2",
            "lora_unet_single_blocks_0_linear1",
            SINGLES + "attn.to_qkv_mlp_proj",
        ),
        (QWEN, "Qwen-Image", "lora_unet_img_in", "transformer.img_in"),
        (Z_IMAGE, "Z-Image", "diffusion_model.t_embedder.mlp.0", "transformer.t_embedder.mlp.0"),
        (SD3, "SD3", "text_encoders.t5xxl.transformer.shared", "text_encoder_3.shared"),
        (
            HIDREAM,
            "HiDream",
            "diffusion_model.final_layer.linear",
            "transformer.final_layer.linear",
        ),
        (TIMM, "timm", "blocks.0.attn.qkv", "blocks.0.attn.qkv"),
        ({"zebra.0": (2, 2), "": (0, 0)}, "", "lora_te3_shared", "text_encoder_3.shared"),
        ({}, "", "lora_unet_img_in", "transformer.x_embedder"),
    ],
)
def test_other_modules_of_a_file_tell_families_apart(shapes, expected, path, layer):
    assert family(shapes) == expected
    assert slices(path, family(shapes)) == (Slice(layer),)


def test_queries_of_lumina_have_more_rows_than_keys():
    expected = shared("transformer.layers.0.attn.", *QKV, shares=(3, 1, 1))
    [path] = LUMINA
    assert slices(path, family(LUMINA)) == expected


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "_",
        "lora_unet_",
        "lora_unet_.._..",
        "{i}",
        "double_blocks.{i}.img_attn.qkv",
        "double_blocks_#_img_attn_qkv",
        "base_model.model.",
        "unet.",
        "lora_unet_double_blocks_٣_img_attn_qkv",
        "lora_unet_" + "0_" * 2_500_000 + "to_q",
        "base_model.model." * 60_000 + "to_q",
        "._orig_mod" * 100_000,
        "lora_unet_" + "to_k_" * 50,
        "\0\n" * 1000,
    ],
)
def test_hostile_paths_take_no_time(path):
    began = time.process_time()
    assert all(each.begin < each.end <= each.of for each in slices(path, "Flux"))
    assert isinstance(family({path: (1, 1)}), str)
    assert time.process_time() - began < 1


def test_onetrainer_splits_the_layers_that_bfl_fuses():
    for number, layer in enumerate(("to_q", "to_k", "to_v")):
        [found] = slices(f"transformer.double_blocks.3.img_attn.qkv.{number}")
        assert found.layer == f"{FLUX}attn.{layer}"
    assert slices("transformer.single_blocks.12.linear1.3")[0].layer == f"{SINGLE}proj_mlp"


def test_an_unknown_module_is_of_the_part_that_its_family_is():
    [found] = slices("lora_unet_zebra_0", "Wan")
    assert found.layer == "transformer.zebra_0"
