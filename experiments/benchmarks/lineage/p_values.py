"""P-values of pairs of models that were trained independently of each other.

Letters: M models.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from probex_jax.lineage.kinship import kinship
from probex_jax.model_files import ModelFile, open_params
from probex_jax.zoo.miniature import Families
from probex_jax.zoo.miniature.families import from_scratch

LEVELS = (0.05, 0.01, 0.001)
_STEPS = 300  # that models are trained for, at most
_AT_ONCE = 8
_DRAWS = 2000  # of the bootstrap


def independent(settings: Families, kind: str, count: int) -> list[ModelFile]:
    """Models of one architecture, trained on the same data from different seeds."""
    steps = min(_STEPS, settings.training.pretraining_steps)
    training = dataclasses.replace(settings.training, pretraining_steps=steps)
    make = jax.jit(jax.vmap(lambda seed: from_scratch(training, kind, seed)))
    models: list[ModelFile] = []
    for begin in range(0, count, _AT_ONCE):
        seeds = 1000 * settings.seed + begin + np.arange(_AT_ONCE)
        made = jax.device_get(make(seeds))
        for place in range(min(_AT_ONCE, count - begin)):
            models.append(open_params({name: value[place] for name, value in made.items()}))
    return models


def of_pairs(models: Sequence[ModelFile]) -> list[float]:
    """The p-value of each pair, in the order of `itertools.combinations`."""
    return [kinship(*pair).p_value for pair in itertools.combinations(models, 2)]


def shares_below(p_values: Sequence[float]) -> dict[str, list[float]]:
    """The shares of pairs below each of `LEVELS`, with 95 % intervals.

    Pairs share models, so models are what the bootstrap draws.

    Args:
      p_values: of all pairs of some models.

    Returns:
      Level to share and interval.
    """
    count = round((1 + np.sqrt(1 + 8 * len(p_values))) / 2)
    p_MM = np.ones((count, count))
    p_MM[np.triu_indices(count, 1)] = p_values
    p_MM = np.minimum(p_MM, p_MM.T)
    rng = np.random.default_rng(0)
    drawn_DM = rng.multinomial(count, np.full(count, 1 / count), _DRAWS).astype(float)
    pairs_D = np.square(drawn_DM.sum(1)) - np.square(drawn_DM).sum(1)
    found = {}
    for level in LEVELS:
        below_MM = (p_MM < level).astype(float)
        below_D = ((drawn_DM @ below_MM) * drawn_DM).sum(1)
        share_D = below_D / np.maximum(pairs_D, 1)
        share = float(np.mean(np.array(p_values) < level))
        found[str(level)] = [share, *np.quantile(share_D, (0.025, 0.975)).tolist()]
    return found
