"""Planted trees: models of real sizes with known classes, which nobody trained.

  probex build_zoo --config=configs/zoo_planted.py:vit_base --out=out/planted

For time and memory. How well their classes are told says nothing of real models.
"""

import ml_collections


def get_config(size: str = "vit_base") -> ml_collections.ConfigDict:
    """The config of one size: `vit_base`, `sd_lora` or `tiny`."""
    config = ml_collections.ConfigDict()
    # Models: of every ten, 7 are for training, 1 for validation and 2 for testing.
    config.models = 200
    # Decides every random choice. A model is the same however many there are.
    config.seed = 0
    # Rows and columns of each layer.
    config.layers = ((768, 768), (768, 768), (3072, 768))
    # Whether they are LoRAs instead of whole matrices, of rank chosen + shared + own.
    config.factors = False
    # Classes of the tree, and of each model.
    config.classes = 100
    config.chosen = 50
    # A class is a matrix of rank one and norm 1. Lowest and highest strength of it in a model.
    config.strengths = (0.5, 1.5)
    # Nuisance, of rank one, too: matrices of the tree, matrices of each model, and their strength.
    config.shared = 8
    config.own = 4
    config.nuisance = 0.75
    # Norm of the noise: as a share of that of the classes; of LoRAs, of each vector of a factor as
    # a share of its norm without.
    config.noise = 0.75
    # Numbers of the files: "float32", "bfloat16" or "float16".
    config.dtype = "float32"
    if size == "sd_lora":
        config.models = 1000
        config.layers = ((1280, 1280),) * 4
        config.factors = True
        config.classes = 50
        config.chosen = 1
        config.own = 7
        config.nuisance = 1.0
        config.noise = 1.0
    elif size == "tiny":
        config.models = 20
        config.layers = ((12, 8), (8, 8))
        config.classes = 6
        config.chosen = 3
        config.shared = 2
        config.own = 1
    elif size != "vit_base":
        raise ValueError(f"size {size!r}: expected vit_base, sd_lora or tiny")
    return config.lock()
