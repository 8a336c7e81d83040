"""LoRAs aligned with text: MVProbe on every layer, the best layers as a committee.

probex train --config=configs/align.py --workdir=W --config.store=S

The size `mini` on the MiniLoRA of the miniature zoo of seed 0, test accuracy, mean over three seeds
of training (results/README.md): .986 among the 64 concepts trained on; zero-shot .823 among the 16
held out, .444 among all. With what classes trained on now stand back by (docs/method.md), .694 and
.825 among all on the zoos of seeds 0 and 7, and .927 and .823 of seen LoRAs among all
(results/texts.md). Tried on validation, without that, among seen concepts, among held-out ones, and
these among all, best committee: L2 term of 1e-3 1.000, .800, .438; of 1e-2 (as here) 1.000, .838,
.438; logit scale 10 1.000, .825, .412.

The recipe of the ProbeX paper is in `configs/paper.py:probex_sd_200`.
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
