"""Centred MVProbe on every layer of one tree, the best layers as a committee.

probex train --config=configs/committee.py --workdir=W --config.store=S

The size `mini` on the miniature zoo of seed 0, test accuracy: MiniSupViT .996, MiniMAE .980,
MiniResNet .998.
"""

import ml_collections

from configs import mvprobe


def get_config(size: str = "paper") -> ml_collections.ConfigDict:
    """The config of one size: `paper`, or `mini` for matrices of tens of rows."""
    config = mvprobe.get_config(size).unlock()
    config.normalise = "centre"
    config.committee = 12
    config.recipe.learning_rate = 1e-3
    config.recipe.epochs = 75
    return config.lock()
