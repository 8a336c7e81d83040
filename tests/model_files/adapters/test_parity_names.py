"""Modules of the models of diffusers and transformers have their own names in every dialect."""

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
