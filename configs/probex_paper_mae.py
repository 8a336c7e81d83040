"""ProbeX as published, on Model-J's MAE: ViT-B/16, pre-trained as a masked autoencoder; layer 64.

python -m experiments.train --config=configs/probex_paper_mae.py --workdir=W --config.store=S

Published test accuracy: 76.5 %. Not run here: these machines reach no hub.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    """The only size."""
    return paper.probex_on("MAE")
