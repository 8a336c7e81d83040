"""LoRAs aligned with text: MVProbe on every layer, the best layers as a committee.

python -m experiments.train --config=configs/align.py --workdir=W --config.store=S

The recipe of the ProbeX paper is in `configs/probex_paper_sd_200.py`.
"""

import ml_collections

from configs import committee, paper


def get_config(size: str = "paper") -> ml_collections.ConfigDict:
    """The config of one size: `paper` with CLIP's texts, or `mini` for updates of tens of rows."""
    config = committee.get_config(size).unlock()
    paper.with_text(config)
    config.text.logit_scale = 20.0
    config.normalise = "scale"
    config.recipe.l2 = 1e-2
    config.recipe.epochs = 100
    config.recipe.eval_every = 10
    if size == "mini":
        config.text.encoder = "hashing"
    return config.lock()
