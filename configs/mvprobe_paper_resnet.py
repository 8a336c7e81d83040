"""MVProbe as published, on Model-J's ResNet: ResNet-101; layer 67.

python -m experiments.train --config=configs/mvprobe_paper_resnet.py --workdir=W --config.store=S

Published test accuracy: 92.24 %. Not run here: these machines reach no hub.
"""

import ml_collections

from configs import paper


def get_config() -> ml_collections.ConfigDict:
    """The only size."""
    return paper.mvprobe_on("ResNet")
