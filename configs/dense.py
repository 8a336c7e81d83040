"""The dense expert, one linear layer on the flattened matrix: the baseline of the ProbeX paper.

probex train --config=configs/dense.py --workdir=W --config.store=S

The size `mini` on the default miniature zoo, test accuracy of the layer chosen on validation:
MiniSupViT .982, MiniMAE .920, MiniResNet .992 (zoo of seed 0).
"""

import ml_collections

from configs import probex


def get_config(size: str = "paper") -> ml_collections.ConfigDict:
    """As `configs/probex.py`, with another encoder and no head."""
    config = probex.get_config(size).unlock()
    config.encoder = ml_collections.ConfigDict({"name": "dense"})
    config.head = "none"
    return config.lock()
