"""What `train` does unless told otherwise: a linear ProbeX in closed form, on all layers together.

probex train --workdir=W --config.store=S

From each matrix and vector the tree's centre is taken off, and it is brought to mean 0 and standard
deviation 1; the layers' kernels are added up, each by how much it tells alone; the solution is an
expert that reads all layers, large ones by probes that show what its classes have in common, small
ones whole (docs/method.md). Everything is chosen by cross-validation over training and validation
models, and fitted to both. There is no seed, no number of steps and no size to choose.

What it tells is in results/: on miniature zoos in accuracy.md, on community models in together.md,
at real sizes in real_sizes.md.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The only size."""
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
    # The most probes and projections; fewer, where that is better, and all entries of matrices that
    # have fewer than responses.
    config.encoder.n_probes = 128
    config.encoder.proj_dim = 128
    # Without it ProbeX is linear, which the closed form asks for.
    config.encoder.relu = False
    # Whether every matrix is brought to mean 0 and standard deviation 1 over its entries.
    config.encoder.standardise = True
    # Head: "none", since the encoder has one output per class.
    config.head = "none"
    # What is asked: an attribute of the store by its name, several with commas between, or "all";
    # or of config.labels "one_class" where each model has exactly one, "several_classes" where any
    # number, "number"; empty to be told by the labels.
    config.task = ""
    # "centre" to subtract the mean of the training matrices and divide by the spread of what is
    # left, "scale" to divide alone, or "none".
    config.normalise = "centre"
    # The most layers that answer together, those that tell most by themselves; 0 for all.
    config.committee = 0
    # "ridge" for the closed form.
    config.fit = "ridge"
    config.recipe = ml_collections.ConfigDict()
    # L2 penalties that are tried, relative to the mean inner product of a matrix with itself.
    config.recipe.penalties = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
    # The most parameters of an expert; layers that tell least are left out.
    config.recipe.most_parameters = 2**26
    # A layer's training is saved at the first evaluation so many seconds after the last save.
    config.save_every_s = 1.0
    return config.lock()
