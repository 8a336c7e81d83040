"""MVProbe on every layer of one tree, with the recipe of its paper.

probex train --config=configs/mvprobe.py --workdir=W --config.store=S

The size `mini` on the miniature zoo of seed 0, test accuracy of the layer chosen on validation,
mean over three seeds of training: MiniSupViT .989, MiniMAE .958, MiniResNet .993. Other zoos and
the size `paper`: results/accuracy.md.
"""

import ml_collections

from configs import probex


def get_config(size: str = "paper") -> ml_collections.ConfigDict:
    """The config of one size: `paper`, or `mini` for matrices of tens of rows."""
    config = probex.get_config(size).unlock()
    config.encoder.name = "mvprobe"
    config.encoder.rep_dim = 512 if size == "paper" else 128
    # Which responses there are, some of xu, xxtu, xtu, xtxu; whether they are standardised; and
    # whether they pass a ReLU once they are projected.
    config.encoder.branches = ("xu", "xxtu", "xtu", "xtxu")
    config.encoder.standardise = True
    config.encoder.relu = True
    config.recipe.learning_rate = 3e-4
    config.recipe.epochs = 500
    return config.lock()
