"""The miniature zoo, in three sizes, a zoo of wider ViTs, and families for lineage.

  probex build_zoo --config=configs/zoo_miniature.py:default --out=out/zoo

Measured 2026-11-21 on two cores, 600 models a tree. Then the best layer's test accuracy of
`configs/probex.py:mini` (ProbeX) and of StatNN on these zoos:

              models' accuracy   seconds   ProbeX   StatNN
  MiniSupViT              .950       124     .982     .730
  MiniMAE                 .872       115     .937     .707
  MiniResNet              .989       152     .990     .713

MiniLoRA, built alone (`--config.trees='("MiniLoRA",)'`) on two cores that others used, too. Loss
is a LoRA's on held-back images of its concept, as a share of the root's:

            LoRAs   loss   processor s   seconds
  default    1200   .554           121       267
  demo        560   .554            79       153

The size `wide`, MiniSupViT alone: accuracy of the models .85, 2 processor seconds a
model and 40 for the root; a quarter of an hour of one core, 1.3 GB. It shows what holds for larger
matrices, and is no part of the demo.

The size `attributes` varies all that a table of models may say, 400 models a tree; each tree gets a
`labels.csv`. Measured 2026-11-30, seed 510, one tree at a time, on two busy cores with a load of 8.
Quantiles of .05, .5 and .95 of the models' accuracies, or of the LoRAs' losses as shares of the
root's:

              accuracy or loss   processor s   seconds
  MiniSupViT    .20  .53   .87            55       171
  MiniMAE       .19  .27   .68            60       208
  MiniResNet    .36  .82   .97            68       151
  MiniLoRA      .54  .79   .94            32        50

The sizes `families` and `families_tiny` make families of known descent (issue 23), 22 models each:

  probex build_zoo --config=configs/zoo_miniature.py:families --out=out/families

What was tried at the size `default`, other fields as they are here. Test accuracy of a ProbeX (32
probes, 32 projections, logit scale 20, bag-of-words texts) on the best on validation of three or
four layers: seen concepts (chance .016), held-out ones among the 16 (.063), among all 80 (.013):

                                                     seen    16    80
  as here                                            .849  .681  .325
  learning rates 3e-3 to 1e-2                        .755  .594  .281
  those rates, and 25 to 35 steps                    .562  .506  .131
  those rates, and fresh down matrices of std 0.18   .526  .537  .200
"""

import ml_collections


def get_config(size: str = "default") -> ml_collections.ConfigDict:
    """The config of one size: default, demo, tiny, wide, attributes[_tiny] or families[_tiny]."""
    if size in ("families", "families_tiny"):
        return _families(size == "families_tiny").lock()
    config = ml_collections.ConfigDict()
    # Trees to build.
    config.trees = ("MiniSupViT", "MiniMAE", "MiniResNet", "MiniLoRA")
    # Fine-tuned models per tree of classifiers: 70 % train, 10 % validation, 20 % test.
    config.models = 600
    # Decides every random choice.
    config.seed = 0
    # Classes, of the 20, that each model is fine-tuned on.
    config.chosen = 10
    # Numbers of fine-tuning steps, one of which each model gets.
    config.steps = (100, 125, 150)
    # Adam's learning rate at the first step: lowest and highest, log-uniform between.
    config.learning_rates = (1e-3, 3e-3)
    # Decoupled weight decay: lowest and highest, log-uniform between.
    config.weight_decays = (1e-4, 1e-2)
    # Images per fine-tuning step.
    config.batch_size = 32
    # Pre-training of the root: steps, images per step, learning rate at the first step.
    config.pretraining_steps = 3000
    config.pretraining_batch_size = 64
    config.pretraining_rate = 2e-3
    # Models that one compiled program fine-tunes side by side, on each core.
    config.models_at_once = 8
    # Architecture of MiniSupViT and MiniMAE, in the words of transformers' ViTConfig.
    config.vit = _vit()
    # All that MiniLoRA is made with, but for the seed.
    config.lora = _lora()
    # In what else classifiers differ.
    config.variety = _variety()
    if size == "demo":
        config.trees = ("MiniSupViT", "MiniMAE", "MiniLoRA")
        config.models = 300
        config.lora.models = 7
    elif size == "tiny":
        config.models = 12
        config.steps = (3, 5)
        config.batch_size = 8
        config.pretraining_steps = 10
        config.pretraining_batch_size = 8
        config.models_at_once = 4
        config.lora.digits = 4
        config.lora.transforms = 3
        config.lora.models = 3
        config.lora.steps = (3, 5)
        config.lora.pretraining_steps = 10
        config.lora.models_at_once = 4
    elif size == "wide":
        config.trees = ("MiniSupViT",)
        config.models = 350
        config.steps = (80, 100, 120)
        config.learning_rates = (3e-4, 1e-3)
        config.batch_size = 16
        config.pretraining_steps = 1000
        config.pretraining_batch_size = 32
        config.pretraining_rate = 5e-4
        config.models_at_once = 4
        config.vit.hidden_size = 192
        config.vit.num_attention_heads = 6
        config.vit.intermediate_size = 768
    elif size in ("attributes", "attributes_tiny"):
        _attributes(config, tiny=size == "attributes_tiny")
    elif size != "default":
        expected = "default, demo, tiny, wide, attributes[_tiny], families[_tiny]"
        raise ValueError(f"size {size!r}: expected {expected}")
    return config.lock()


def _attributes(config: ml_collections.ConfigDict, tiny: bool) -> None:
    """Has models differ in all that a table of them may say."""
    config.models = 400
    config.learning_rates = (1e-3, 1e-2)
    config.weight_decays = (1e-2, 3.0)
    config.pretraining_steps = 1500
    config.lora.digits = 5
    config.lora.transforms = 4
    config.lora.models = 20
    config.lora.learning_rates = (4e-3, 4e-2)
    config.lora.ranks = (2, 4, 8)
    config.lora.scales = (0.5, 1.0, 2.0)
    config.lora.weight_decays = (1e-2, 3.0)
    for variety in (config.variety, config.lora.variety):
        variety.augmented = 0.5
        variety.optimisers = ("AdamW", "SGD")
        variety.seed_groups = 8
    config.variety.steps = (30, 150)
    config.variety.images = (4, 140)
    config.variety.batch_sizes = (4, 8, 16)
    config.lora.variety.steps = (20, 100)
    config.lora.variety.images = (2, 40)
    config.lora.variety.batch_sizes = (2, 4, 8)
    if tiny:
        config.models = 12
        config.pretraining_steps = 10
        config.pretraining_batch_size = 8
        config.models_at_once = 4
        config.variety.steps = (2, 6)
        config.variety.batch_sizes = (2, 4)
        config.lora.digits = 4
        config.lora.transforms = 3
        config.lora.models = 3
        config.lora.variety.steps = (2, 6)
        config.lora.variety.batch_sizes = (2, 4)
        config.lora.pretraining_steps = 10
        config.lora.models_at_once = 4


def _families(tiny: bool) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    # Architectures and pre-trainings of families.
    config.kinds = ("MiniSupViT", "MiniMAE", "MiniResNet", "MiniDenoiser")
    # Families of each kind.
    config.families = 5
    # Decides every random choice.
    config.seed = 0
    # How roots are pre-trained and children fine-tuned, in the words of the zoo's own config.
    config.training = training = ml_collections.ConfigDict()
    training.chosen = 10
    training.steps = (100, 125, 150)
    training.learning_rates = (1e-3, 3e-3)
    training.weight_decays = (1e-3, 1e-1)
    training.batch_size = 32
    training.pretraining_steps = 1200
    training.pretraining_batch_size = 64
    training.pretraining_rate = 2e-3
    training.vit = _vit()
    if tiny:
        config.kinds = ("MiniMAE",)
        config.families = 2
        training.steps = (3, 5)
        training.batch_size = 8
        training.pretraining_steps = 10
        training.pretraining_batch_size = 8
    return config


def _vit() -> ml_collections.ConfigDict:
    vit = ml_collections.ConfigDict()
    # Sides of the images, a multiple of 8, and of their patches, in pixels.
    vit.image_size = 8
    vit.patch_size = 2
    # Features of a token, blocks, attention heads, features inside a block's MLP.
    vit.hidden_size = 32
    vit.num_hidden_layers = 2
    vit.num_attention_heads = 4
    vit.intermediate_size = 128
    return vit


def _lora() -> ml_collections.ConfigDict:
    lora = ml_collections.ConfigDict()
    # Concepts: the first digits under the first transforms, ten and eight at most.
    lora.digits = 10
    lora.transforms = 8
    # LoRAs per concept. Of a seen concept 70 % train, 10 % validation, 20 % test, one or more
    # each; of a held-out one, a fifth of all, a third val_holdout and two thirds test_holdout.
    lora.models = 15
    # Rank of the updates.
    lora.rank = 4
    # Fewest and most images that a LoRA is adapted to.
    lora.images = (5, 10)
    # Numbers of adaptation steps, one of which each LoRA gets.
    lora.steps = (50, 60, 70)
    # Adam's learning rate at the first step: lowest and highest, log-uniform between.
    lora.learning_rates = (8e-3, 2e-2)
    # Noisy images per adaptation step.
    lora.batch_size = 8
    # Pre-training of the denoiser: steps, images per step, learning rate at the first step.
    lora.pretraining_steps = 2000
    lora.pretraining_batch_size = 32
    lora.pretraining_rate = 2e-3
    # LoRAs that one compiled program adapts side by side, on each core.
    lora.models_at_once = 4
    # Of which each LoRA has one: ranks, and scales, alpha / rank; () for `rank` and 1.
    lora.ranks = ()
    lora.scales = ()
    # Decoupled weight decay: lowest and highest, log-uniform between; () for none.
    lora.weight_decays = ()
    # In what else LoRAs differ.
    lora.variety = _variety()
    return lora


def _variety() -> ml_collections.ConfigDict:
    variety = ml_collections.ConfigDict()
    # Fewest and most training steps, log-uniform between; () to choose from `steps`.
    variety.steps = ()
    # Fewest and most images of each class or concept, log-uniform between; () for all 140, or as
    # many as `lora.images` says.
    variety.images = ()
    # Share of models whose images are moved by a pixel and noised, anew at every step.
    variety.augmented = 0.0
    # Optimisers of which each model has one: AdamW, and SGD with momentum, whose steps are longer
    # by a factor, so that it learns at AdamW's learning rates.
    variety.optimisers = ("AdamW",)
    # Images per step of which each model has one number, divisors of the largest; () for
    # `batch_size`.
    variety.batch_sizes = ()
    # Groups of models that share a seed, which decides batches and initial weights; 0 for none.
    variety.seed_groups = 0
    return variety
