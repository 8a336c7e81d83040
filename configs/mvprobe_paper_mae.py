"""MVProbe as published, on Model-J's MAE: ViT-B/16, pre-trained as a masked autoencoder; layer 64.

python -m experiments.train --config=configs/mvprobe_paper_mae.py --workdir=W --config.store=S

Published test accuracy: 81.62 %. Not run here: these machines reach no hub.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    """The only size."""
    return paper.mvprobe_on("MAE")
