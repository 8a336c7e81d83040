"""ProbeX as published, on Model-J's SupViT: ViT-B/16, pre-trained with labels; layer 59.

python -m experiments.train --config=configs/probex_paper_supvit.py --workdir=W --config.store=S

Published test accuracy: 88.5 %. Not run here: these machines reach no hub.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    """The only size."""
    return paper.probex_on("SupViT")
