"""ProbeX on LoRAs, aligned with text: the recipe of the paper.

python -m experiments.train --config=configs/align.py --workdir=W --config.store=S
"""

import ml_collections

from configs import probex


def get_config(size: str = "paper") -> ml_collections.ConfigDict:
    """The config of one size: `paper`, or `mini` for updates of tens of rows."""
    config = probex.get_config(size).unlock()
    config.encoder.rep_dim = 512
    config.head = "text"
    config.text = ml_collections.ConfigDict()
    # Text encoder: hashing, hashing:DIM, clip:FOLDER or HUB_ID, file:PATH of embeddings.
    config.text.encoder = "clip:openai/clip-vit-large-patch14"
    # The sentence of a class.
    config.text.template = "a photo of a {class}"
    # Scale of the cosines in the softmax over the candidates.
    config.text.logit_scale = 1.0
    config.recipe.learning_rate = 2e-3
    config.recipe.l2 = 0.0
    config.recipe.epochs = 200
    config.recipe.eval_every = 10
    if size == "mini":
        config.text.encoder = "hashing"
        config.text.logit_scale = 20.0
        config.normalise = "scale"
        config.recipe.l2 = 3e-3
    return config.lock()
