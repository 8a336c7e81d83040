"""What the configs `probex_paper_*` and `mvprobe_paper_*` share: Model-J's subsets, best layers.

The papers give layers as numbers in the order of the sorted names (docs/formats.md); here they go
by their names. With ProbeX: SupViT 59, DINO 59, MAE 64, ResNet 59, SD 46. With MVProbe: DINO 47 and
ResNet 67, else the same.
"""

import ml_collections

from configs import mvprobe, probex

_VIT = "vit.encoder.layer"
_RESNET = "resnet.encoder.stages.2.layers"
_LORA = "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q"

LAYERS = {
    "SupViT": f"{_VIT}.7.attention.output.dense.weight",
    "DINO": f"{_VIT}.7.attention.output.dense.weight",
    "MAE": f"{_VIT}.8.attention.attention.value.weight",
    "ResNet": f"{_RESNET}.19.layer.0.convolution.weight",
    "SD_200": _LORA,
    "SD_1k": _LORA,
}
MVPROBE_LAYERS = LAYERS | {
    "DINO": f"{_VIT}.5.attention.output.dense.weight",
    "ResNet": f"{_RESNET}.20.layer.2.convolution.weight",
}
ALIGNED = ("SD_200", "SD_1k")


def probex_on(subset: str) -> ml_collections.ConfigDict:
    """ProbeX as published, on the best layer of a subset."""
    config = probex.get_config().unlock()
    config.layers = LAYERS[subset]
    return _aligned(config) if subset in ALIGNED else config.lock()


def mvprobe_on(subset: str) -> ml_collections.ConfigDict:
    """MVProbe as published, on the best layer of a subset."""
    config = mvprobe.get_config().unlock()
    config.layers = MVPROBE_LAYERS[subset]
    if subset not in ALIGNED:
        return config.lock()
    config = _aligned(config).unlock()
    config.recipe.learning_rate = 3e-4
    config.recipe.epochs = 500
    return config.lock()


def _aligned(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """With the text head and the recipe of the ProbeX paper."""
    with_text(config)
    config.encoder.rep_dim = 512
    config.recipe.learning_rate = 2e-3
    config.recipe.l2 = 0.0
    config.recipe.epochs = 200
    config.recipe.eval_every = 10
    return config.lock()


def with_text(config: ml_collections.ConfigDict) -> None:
    """Adds the settings of a text head, those of the paper."""
    config.head = "text"
    config.text = ml_collections.ConfigDict()
    # Text encoder: hashing, hashing:DIM, clip:FOLDER or HUB_ID, file:PATH of embeddings.
    config.text.encoder = "clip:openai/clip-vit-large-patch14"
    # The sentence of a class.
    config.text.template = "a photo of a {class}"
    # Scale of the cosines in the softmax over the candidates.
    config.text.logit_scale = 1.0
