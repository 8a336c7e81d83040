"""ProbeX on every layer of one tree, with the recipe of the paper.

probex train --config=configs/probex.py --workdir=W --config.store=S

The size `mini` on the default miniature zoo (600 models a tree, seed 0), test accuracy of the layer
chosen on validation: MiniSupViT .982, MiniMAE .937, MiniResNet .990; 47, 51 and 44 s on two cores.
The size `paper`, on that layer of the two ViT trees alone: .991 and .958; 84 and 87 s.
"""

import ml_collections


def get_config(size: str = "paper") -> ml_collections.ConfigDict:
    """The config of one size: `paper`, or `mini` for matrices of tens of rows."""
    config = ml_collections.ConfigDict()
    # Layer store to train on.
    config.store = ""
    # Label column of the store, or FILE or FILE:COLUMN; empty for what the zoo of folders says.
    config.labels = ""
    # Split of the store, or FILE.json:NAME; empty for the folders. NAME runs NAME-0, NAME-1, ….
    config.split = ""
    # Layers: names, numbers or regular expressions, separated by commas; empty for all.
    config.layers = ""
    # Encoder: its name and its fields.
    config.encoder = ml_collections.ConfigDict()
    config.encoder.name = "probex"
    config.encoder.n_probes = 128
    config.encoder.proj_dim = 128
    config.encoder.rep_dim = 128
    # Whether responses pass a ReLU; whether every matrix is first brought to mean 0 and standard
    # deviation 1 over its entries.
    config.encoder.relu = True
    config.encoder.standardise = False
    # Head: "class" for a linear one on the representation, "none" for none.
    config.head = "class"
    # What is asked: an attribute of the store by its name, several with commas between, or "all";
    # or of config.labels "one_class" where each model has exactly one, "several_classes" where any
    # number, "number"; empty to be told by the labels.
    config.task = ""
    # "centre" to subtract the mean of the training matrices and divide by the spread of what is
    # left, "scale" to divide alone, or "none".
    config.normalise = "none"
    # The most layers that answer together; how many do is chosen on validation. 0 for all.
    config.committee = 1
    # "adam" for gradient descent, "ridge" for the closed form, of a linear encoder alone.
    config.fit = "adam"
    config.recipe = ml_collections.ConfigDict()
    # Adam's learning rate.
    config.recipe.learning_rate = 1e-3
    # Weight of the L2 term, added to the gradient.
    config.recipe.l2 = 1e-5
    # Models a step; the last, short batch of an epoch is kept.
    config.recipe.batch_size = 128
    # Passes over the training split.
    config.recipe.epochs = 500
    # Epochs between evaluations on the validation split.
    config.recipe.eval_every = 25
    # Decides initialisation and order.
    config.recipe.seed = 0
    # What products are computed in: "float32", "tensorfloat32" or "bfloat16".
    config.recipe.compute = "float32"
    # What the matrices are kept in on the device: "float32" or "bfloat16".
    config.recipe.storage = "float32"
    # Values of the recipe's fields to try, as (1e-3, 3e-3); empty for the recipe's own. Of each
    # layer the variant that is best on validation is kept.
    config.grid = ml_collections.ConfigDict()
    config.grid.learning_rate = ()
    config.grid.l2 = ()
    config.grid.seed = ()
    # Whether batches are read from the store as they are needed, even if a layer fits the device.
    config.stream = False
    # A layer's training is saved at the first evaluation so many seconds after the last save.
    config.save_every_s = 1.0
    if size == "mini":
        config.encoder.n_probes = 32
        config.encoder.proj_dim = 32
        config.recipe.epochs = 200
    elif size != "paper":
        raise ValueError(f"size {size!r}: expected paper or mini")
    return config.lock()
