"""Translates the layer names of all LoRA dialects into those of diffusers.

diffusers writes a module's path in the pipeline, `unet.down_blocks.0.…to_q`. PEFT writes its path
in the one adapted model, after `base_model.model.`. kohya writes `lora_unet_` or `lora_te_` and the
path with underscores for dots; the known names of modules tell which underscores were dots.
"""

import re

# The part of a pipeline that a path without a prefix belongs to, by its first module.
_PARTS = {
    "unet": re.compile(
        r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|"
        r"conv_in|conv_out|time_embedding|add_embedding)\b"
    ),
    "text_encoder": re.compile(r"text_model\b"),
    "transformer": re.compile(r"(?:transformer_blocks|single_transformer_blocks)\b"),
}
_PEFT = "base_model.model."
_KOHYA = {
    "lora_unet_": "unet.",
    "lora_te_": "text_encoder.",
    "lora_te1_": "text_encoder.",
    "lora_te2_": "text_encoder_2.",
    "lora_transformer_": "transformer.",
}

# Names of modules in diffusers and transformers: with underscores, and without.
_LONG = """
    add_embedding add_k_proj add_q_proj add_v_proj conv_in conv_norm_out conv_out conv_shortcut
    down_blocks emb_layers ff_context in_layers input_blocks k_proj linear_1 linear_2 mid_block
    middle_block out_layers out_proj output_blocks proj_in proj_mlp proj_out q_proj self_attn
    single_transformer_blocks skip_connection text_model text_projection time_emb_proj
    time_embedding to_add_out to_k to_k_ip to_out to_q to_v to_v_ip token_embedding
    transformer_blocks up_blocks v_proj
"""
_SHORT = """
    attentions attn attn1 attn2 conv conv1 conv2 downsamplers emb encoder fc1 fc2 ff layers linear
    mlp net norm op proj resnets upsamplers
"""
# The longest match counts: `to_k_ip` is not `to_k`.
_NAMES = "|".join(sorted([*_LONG.split(), *_SHORT.split()], key=len, reverse=True))
_MODULE = re.compile(rf"({_NAMES}|[0-9]+)(?:_|\Z)")
_MAX_CHARACTERS = 200


def canonical(path: str) -> str | None:
    """diffusers' name of the layer at a path in any dialect; None for an unknown one.

    Args:
      path: name of a factor without its ending.

    Example:
      >>> canonical("base_model.model.mid_block.attentions.0.proj_in")
      'unet.mid_block.attentions.0.proj_in'
      >>> canonical("lora_te_text_model_encoder_layers_3_self_attn_q_proj")
      'text_encoder.text_model.encoder.layers.3.self_attn.q_proj'
      >>> canonical("lora_unet_what_is_this") is None
      True
    """
    for prefix, part in _KOHYA.items():
        if path.startswith(prefix):
            dotted = _dotted(path.removeprefix(prefix))
            return part + dotted if dotted else None
    path = path.removeprefix(_PEFT)
    for part, begins in _PARTS.items():
        if begins.match(path):
            return f"{part}.{path}"
    return path


def _dotted(text: str) -> str | None:
    """The path with dots between its modules; None if one of them is unknown."""
    if len(text) > _MAX_CHARACTERS:
        return None
    parts, at = [], 0
    while at < len(text):
        module = _MODULE.match(text, at)
        if module is None:
            return None
        parts.append(module[1])
        at = module.end()
    return ".".join(parts)
