"""ProbeX and MVProbe as published, on the best layers of Model-J's subsets.

probex train --config=configs/paper.py:probex_supvit --workdir=W --config.store=S

The papers give layers as numbers in the order of the sorted names (docs/formats.md); here they go
by their names. Published test accuracy, %; of the SD subsets among seen concepts / zero-shot. Not
run here: these machines reach no hub.

            probex_        layer   mvprobe_       layer
  supvit    88.5           59      92.33          59
  dino      70.5           59      78.29          47
  mae       76.5           64      81.62          64
  resnet    84.2           59      92.24          67
  sd_200    97.3 / 89.8    46      99.80 / 95.53  46
  sd_1k     29.6 / 50.5    46      97.88 / 97.96  46
"""

import ml_collections

from configs import mvprobe, probex

_VIT = "vit.encoder.layer"
_RESNET = "resnet.encoder.stages.2.layers"
_LORA = "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q"

# Subset to the layer of ProbeX and that of MVProbe.
LAYERS = {
    "supvit": (f"{_VIT}.7.attention.output.dense.weight",) * 2,
    "dino": (
        f"{_VIT}.7.attention.output.dense.weight",
        f"{_VIT}.5.attention.output.dense.weight",
    ),
    "mae": (f"{_VIT}.8.attention.attention.value.weight",) * 2,
    "resnet": (
        f"{_RESNET}.19.layer.0.convolution.weight",
        f"{_RESNET}.20.layer.2.convolution.weight",
    ),
    "sd_200": (_LORA, _LORA),
    "sd_1k": (_LORA, _LORA),
}
METHODS = {"probex": probex, "mvprobe": mvprobe}


def get_config(name: str = "probex_supvit") -> ml_collections.ConfigDict:
    """The config of a method and a subset, such as `mvprobe_sd_200`."""
    method, _, subset = name.partition("_")
    if method not in METHODS or subset not in LAYERS:
        raise ValueError(
            f"{name!r}: expected one of {', '.join(METHODS)}, an underscore, and one of "
            f"{', '.join(LAYERS)}"
        )
    config = METHODS[method].get_config().unlock()
    config.layers = LAYERS[subset][list(METHODS).index(method)]
    if subset.startswith("sd_"):
        with_text(config)
        config.encoder.rep_dim = 512
        config.recipe.l2 = 0.0
        config.recipe.eval_every = 10
        config.recipe.learning_rate = 2e-3 if method == "probex" else 3e-4
        config.recipe.epochs = 200 if method == "probex" else 500
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
    # Column of tags that the expert is calibrated to rank, as harvest makes one; "" for none.
    config.text.tags = ""
