"""Dividing models into parts by their labels, one by one or in groups that stay together.

Iterative stratification: the rarest class that is not yet divided comes first, and each of its
models goes to the part that lacks most of the class.

References:
  Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, ECML PKDD 2011.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import quoted
from probex_jax.zoo.tables import HELD_OUT_SPLITS, SPLITS

PARTS = SPLITS[:3]
FRACTIONS = (0.6, 0.15, 0.25)
# Of groups, which cannot be divided evenly, the best of so many draws is taken.
_DRAWS = 20


def make_split(
    labels: Mapping[str, Sequence[str]],
    *,
    groups: Mapping[str, str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> dict[str, tuple[str, ...]]:
    """Divides models into train, val and test, so that each part has its share of every class.

    Args:
      labels: model to its classes.
      groups: model to its group, of which no two parts have models; a model that is not there is a
        group of its own. None for models one by one.
      fractions: of models in train, val and test.
      seed: decides which models go where; the same seed gives the same split.

    Returns:
      Part to models, in the order of `labels`. A class of three models or groups and more is in all
      parts; a rarer one is in train, and of two in test.

    Raises:
      ProbexError: if the fractions are not positive or do not add up to one, or a part is empty,
        since there are too few models or groups.

    Example:
      >>> labels = {f"m{n}": ["amp" if n % 3 else "pedal"] for n in range(12)}
      >>> split = make_split(labels, fractions=(0.5, 0.25, 0.25), seed=1)
      >>> {part: len(models) for part, models in split.items()}
      {'train': 6, 'val': 3, 'test': 3}
      >>> {part: sum(labels[model] == ["pedal"] for model in split[part]) for part in split}
      {'train': 2, 'val': 1, 'test': 1}
    """
    share_P = np.asarray(fractions, float)
    if share_P.shape != (len(PARTS),) or (share_P <= 0).any() or abs(share_P.sum() - 1) > 1e-6:
        told = ", ".join(f"{fraction:g}" for fraction in fractions)
        raise ProbexError(f"fractions {told}: expected {len(PARTS)} above 0 that add up to 1")
    units: dict[object, list[str]] = {}
    for model in labels:
        group = None if groups is None else groups.get(model)
        units.setdefault((model,) if group is None else group, []).append(model)
    if len(units) < len(PARTS):
        what = "models" if groups is None else "groups"
        raise ProbexError(f"{len(units)} {what} with a label; expected {len(PARTS)} or more")
    classes = sorted({name for model in labels for name in labels[model]})
    column = {name: place for place, name in enumerate(classes)}
    # Models of each class in each unit, and in the last column all of its models.
    count_UY = np.zeros([len(units), len(classes) + 1], int)
    for unit, models in enumerate(units.values()):
        count_UY[unit, -1] = len(models)
        for model in models:
            count_UY[unit, [column[name] for name in labels[model]]] += 1
    rng = np.random.default_rng(seed)
    draws = [_drawn(count_UY, share_P, rng) for _ in range(1 if groups is None else _DRAWS)]
    part_U = min(draws, key=lambda drawn: _unevenness(count_UY, share_P, drawn))
    part_of = {m: part for part, models in zip(part_U, units.values(), strict=True) for m in models}
    split = {
        name: tuple(model for model in labels if part_of[model] == part)
        for part, name in enumerate(PARTS)
    }
    if empty := [name for name, models in split.items() if not models]:
        raise ProbexError(
            f"too few models with a label, {len(labels)}: none is left for {empty[0]}"
        )
    return split


def make_text_split(
    texts: Mapping[str, Sequence[str]],
    *,
    groups: Mapping[str, str] | None = None,
    held_out: float = 0.2,
    seed: int = 0,
) -> dict[str, tuple[str, ...]]:
    """Divides models of one text each, holding out some texts for zero-shot.

    Args:
      texts: model to its text, the only class.
      groups, seed: as `make_split` takes them.
      held_out: share of the texts that are held out, half of them for validation.

    Returns:
      Part to models, with `val_holdout` and `test_holdout`. Every text in val and test is in train.

    Raises:
      ProbexError: as `make_split`.

    Example:
      >>> texts = {f"m{n}": [f"a {n % 10}"] for n in range(100)}
      >>> {part: len(models) for part, models in make_text_split(texts).items()}
      {'train': 48, 'val': 12, 'test': 20, 'val_holdout': 10, 'test_holdout': 10}
    """
    distinct = sorted({text for named in texts.values() for text in named})
    order = np.random.default_rng(seed).permutation(len(distinct))
    half = int(len(distinct) * held_out / 2)
    parts = {
        part: {distinct[n] for n in order[place * half : (place + 1) * half]}
        for place, part in enumerate(HELD_OUT_SPLITS)
    }
    away = set().union(*parts.values())
    split = make_split(
        {m: named for m, named in texts.items() if away.isdisjoint(named)}, groups=groups, seed=seed
    )
    seen = {text for model in split["train"] for text in texts[model]}
    kept = {
        part: [m for m in models if seen.issuperset(texts[m])] for part, models in split.items()
    }
    kept |= {
        part: [m for m, named in texts.items() if held.issuperset(named)]
        for part, held in parts.items()
    }
    return {part: tuple(models) for part, models in kept.items() if models}


def ranges_of(numbers: Mapping[str, float], ranges: int = 5) -> dict[str, tuple[str, ...]]:
    """Numbers as classes, each a range that has about as many models as the others.

    Args:
      numbers: model to its number.
      ranges: how many; there are fewer where many models have one number, or there are few models.

    Returns:
      Model to its range, such as "0.1 to 0.5".

    Example:
      >>> sorted(set(ranges_of({f"m{n}": float(n) for n in range(12)}, ranges=3).values()))
      [('0 to 3',), ('4 to 7',), ('8 to 11',)]
    """
    ids, value_N = list(numbers), np.array([*numbers.values()])
    ends = np.quantile(value_N, np.arange(1, ranges) / ranges) if ids else []
    range_N = np.searchsorted(np.unique(ends), value_N)
    names = {}
    for found in np.unique(range_N):
        inside = value_N[range_N == found]
        names[found] = f"{inside.min():g} to {inside.max():g}"
    return {id: (names[found],) for id, found in zip(ids, range_N, strict=True)}


def _drawn(count_UY: np.ndarray, share_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of each unit."""
    part_U = np.full(len(count_UY), -1)
    lacking_PY = share_P[:, None] * count_UY.sum(0)
    has_PY = np.zeros(lacking_PY.shape, bool)
    order_U = rng.permutation(len(count_UY))
    while (part_U < 0).any():
        left_U = order_U[part_U[order_U] < 0]
        in_Y = (count_UY[left_U] > 0).sum(0)
        in_Y[-1] = len(order_U) + 1  # all models, for those without any class, come last
        rarest = int(np.argmin(np.where(in_Y > 0, in_Y, in_Y[-1] + 1)))
        for unit in left_U[count_UY[left_U, rarest] > 0]:
            # Last key first: a part without the class, then the one that lacks most of it.
            ranked = np.lexsort([lacking_PY[:, -1], lacking_PY[:, rarest], ~has_PY[:, rarest]])
            part_U[unit] = part = ranked[-1]
            lacking_PY[part] -= count_UY[unit]
            has_PY[part] |= count_UY[unit] > 0
    return part_U


def _unevenness(count_UY: np.ndarray, share_P: np.ndarray, part_U: np.ndarray) -> float:
    """How far parts are from their shares of each class; a class that a part lacks counts most."""
    wanted_PY = share_P[:, None] * count_UY.sum(0)
    found_PY = np.stack([count_UY[part_U == part].sum(0) for part in range(len(share_P))])
    off_PY = np.abs(found_PY - wanted_PY) / wanted_PY
    return float(off_PY.sum() + off_PY.size * (found_PY == 0).sum())


def too_rare(
    labels: Mapping[str, Sequence[str]], split: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The classes that are not in every part of a split, with the parts that lack them."""
    there = {part: {c for m in models for c in labels[m]} for part, models in split.items()}
    classes = sorted(set().union(*there.values()))
    lacking = {name: tuple(p for p in split if name not in there[p]) for name in classes}
    return {name: parts for name, parts in lacking.items() if parts}


def check_groups(groups: Mapping[str, Sequence[str]], column: str) -> dict[str, str]:
    """A column of labels as groups: of every model there is one.

    Raises:
      ProbexError: if a model has several.
    """
    for model, group in groups.items():
        if len(group) > 1:
            raise ProbexError(
                f"column {quoted(column)}: {quoted(model)} is in {len(group)} groups, expected one"
            )
    return {model: group[0] for model, group in groups.items() if group}
