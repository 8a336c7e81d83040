"""ProbeX as published, on Model-J's SD_1k: LoRAs of Stable Diffusion, 1000 concepts; layer 46.

python -m experiments.train --config=configs/probex_paper_sd_1k.py --workdir=W --config.store=S

Published test accuracy: 29.6 % among seen concepts, 50.5 % zero-shot.
Not run here: these machines reach no hub.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    """The only size."""
    return paper.probex_on("SD_1k")
