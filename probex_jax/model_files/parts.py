"""Tells the models apart that one file holds: the parts of a pipeline."""

import re
from collections.abc import Iterable

# How the names of a part begin in single-file checkpoints, and nowhere else.
_ALWAYS = (
    r"model\.diffusion_model\.",
    r"cond_stage_model\.",
    r"conditioner\.embedders\.\d+\.",
    r"first_stage_model\.",
    r"model_ema\.",
    r"text_encoders\.\w+\.",
)
# How they begin, too, if there is another part.
_BESIDE = (
    r"diffusion_model\.",
    r"unet\.",
    r"net\.",
    r"transformer_2\.",
    r"transformer\.(?!(?:h|wte|wpe|ln_f)\.)",
    r"text_encoder(?:_\d)?\.",
    r"image_encoder\.",
    r"prior\.",
    r"vae\.",
    r"vae_decoder\.",
    r"controlnet\.",
    r"control_model\.",
)
_PART = re.compile("|".join((*_ALWAYS, *_BESIDE)))
_SURE = re.compile("|".join(_ALWAYS))


def parts(names: Iterable[str]) -> dict[str, list[str]]:
    """The parts of a file that holds several models, such as a checkpoint of Stable Diffusion.

    Args:
      names: of the file's tensors or layers.

    Returns:
      How the names of each part begin, to its names, both sorted; {} if the file holds one model.
      Names of no part, such as `alphas_cumprod`, are in none.

    Example:
      >>> found = parts(["model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.bias"])
      >>> [*found]
      ['first_stage_model.', 'model.diffusion_model.']
      >>> parts(["transformer.h.0.ln_1.weight", "unet.conv_in.weight"])
      {}
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if begin := _PART.match(name):
            found.setdefault(begin[0], []).append(name)
    is_several = len(found) > 1 or any(_SURE.fullmatch(part) for part in found)
    return dict(sorted(found.items())) if is_several else {}
