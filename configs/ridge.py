"""Ridge regression on all entries of all layers: no encoder but one linear layer, in closed form.

probex train --config=configs/ridge.py --workdir=W --config.store=S

The best of methods where matrices are small (results/together.md). Where they are as large as real
ones, its expert is, too: 236 MB for a layer of 768×768 and 100 classes.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """As `configs/default.py`, with another encoder."""
    config = default.get_config().unlock()
    config.encoder = ml_collections.ConfigDict({"name": "dense", "standardise": True})
    config.fit = "ridge"
    config.recipe = ml_collections.ConfigDict()
    # L2 penalties that are tried, relative to the mean inner product of a matrix with itself.
    config.recipe.penalties = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
    # The most parameters of an expert; layers that tell least are left out.
    config.recipe.most_parameters = 2**30
    return config.lock()
