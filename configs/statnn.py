"""StatNN: a random forest on seven statistics of every layer, the baseline of the ProbeX paper.

probex train --config=configs/statnn.py --workdir=W --config.store=S

On the default miniature zoo, test accuracy: MiniSupViT .730, MiniMAE .707, MiniResNet .713.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The only size."""
    config = ml_collections.ConfigDict()
    # Layer store to train on; all of its layers are used.
    config.store = ""
    # Label column of the store, or FILE or FILE:COLUMN; empty for what the zoo of folders says.
    config.labels = ""
    # Split of the store, or FILE.json:NAME; empty for the folders. NAME runs NAME-0, NAME-1, ….
    config.split = ""
    config.encoder = ml_collections.ConfigDict()
    config.encoder.name = "statnn"
    # Trees of the forest.
    config.encoder.n_trees = 500
    config.recipe = ml_collections.ConfigDict()
    # Decides the forest.
    config.recipe.seed = 0
    return config.lock()
