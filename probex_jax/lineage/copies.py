"""Finding models with the same weights among many, in near-linear time.

A `Mark` of each model, a few hundred bytes, tells which models may be copies: samples that are
equal, whatever the order of layers, and samples that are as near as rounding leaves them.
`confirmed` reads these models alone, and compares all of their entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from probex_jax.engine import HERE, Engine, Work, flattened, in_parts
from probex_jax.lineage.attempts import or_error
from probex_jax.lineage.difference import copy_difference
from probex_jax.lineage.lineage import Copies
from probex_jax.lineage.marks import Mark, hash_of, read_marks
from probex_jax.matrices import LowRank
from probex_jax.model_files import ModelFile, open_model

_REACH = 0.02  # of features that may be of copies; five standard deviations of rounding
_BITS_OF_F16 = 11
_NEAREST = 32  # models that one is compared with, at most


@dataclass(frozen=True)
class Candidates:
    """Models that may be copies, by their numbers.

    Args:
      equal: groups with equal samples, each at least one model.
      near: for groups whose models may be rounded from others, the numbers in `equal` of these
        others, nearest first.
    """

    equal: tuple[tuple[int, ...], ...]
    near: Mapping[int, tuple[int, ...]]

    @property
    def count(self) -> int:
        """How many models `confirmed` reads or compares, about."""
        return sum(len(group) for group in self.equal if len(group) > 1) + len(self.near)


def find_copies(marks: Sequence[Mark | None]) -> Candidates:
    """Finds models that may be copies, in near-linear time.

    Models with equal samples are found by their hashes; those in another rounding by the nearest
    features, of at most 32 models.

    Args:
      marks: of the models; None for those that are no one's copies.

    Returns:
      The candidates.

    Example:
      >>> from probex_jax.lineage.marks import mark
      >>> from probex_jax.lineage.sketch import sketch
      >>> from probex_jax.model_files import open_params
      >>> a_HW, b_HW = np.random.default_rng(0).normal(size=(2, 16, 16)).astype("f4")
      >>> trees = [{"a": a_HW}, {"a": b_HW}, {"b": a_HW}, {"a": b_HW.astype("f2")}]
      >>> find_copies([mark(sketch(open_params(tree))) for tree in trees])
      Candidates(equal=((0, 2), (1,), (3,)), near={2: (1,)})
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, each in enumerate(marks):
        if each is not None:
            groups.setdefault((each.kind, each.content), []).append(number)
    equal = tuple(map(tuple, groups.values()))
    heads = [marks[numbers[0]] for numbers in equal]
    by_kind: dict[str, list[int]] = {}
    for group, head in enumerate(heads):
        if head is not None:
            by_kind.setdefault(head.kind, []).append(group)
    near: dict[int, tuple[int, ...]] = {}
    for of_kind in by_kind.values():
        near |= _near(of_kind, [head for group in of_kind if (head := heads[group])])
    kept = sorted(
        {*near, *(other for others in near.values() for other in others)}
        | {group for group, numbers in enumerate(equal) if len(numbers) > 1}
    )
    place = {group: at for at, group in enumerate(kept)}
    return Candidates(
        tuple(equal[group] for group in kept),
        {place[group]: tuple(place[other] for other in near[group]) for group in sorted(near)},
    )


def confirmed(
    candidates: Candidates,
    models: Sequence[tuple[str, Path]],
    *,
    engine: Engine = HERE,
    on_model: Callable[[], None] = lambda: None,
) -> tuple[Copies, ...]:
    """Reads the candidates, and tells which have the same weights.

    Each model with an equal sample is read once. Of each content one model is compared with those
    that it may be rounded from, nearest first, until one fits.

    Args:
      candidates: of `find_copies`.
      models: id and path of each model that had a mark.
      engine: who reads them.
      on_model: called after each model that was read or compared.

    Returns:
      The groups of copies, each with the one first that the others may be rounded from, in the
      given order. Models that can no longer be read are in none.
    """
    numbers = [number for group in candidates.equal if len(group) > 1 for number in group]
    contents: dict[int, str] = {}
    paths = in_parts(((number, models[number][1]) for number in numbers), 4)
    for (number, _), content in flattened(engine.map(_reading, paths, computes=False)):
        on_model()
        if isinstance(content, str):
            contents[number] = content
    # The models of each group with equal samples, by their whole content.
    split: list[list[list[int]]] = []
    for group in candidates.equal:
        same: dict[str, list[int]] = {}
        for number in group:
            if len(group) == 1 or number in contents:
                same.setdefault(contents.get(number, ""), []).append(number)
        split.append([*same.values()])
    asked = [
        (same[0], _heads(split, group, others, same[0]))
        for group, others in candidates.near.items()
        for same in split[group]
    ]
    compared = (
        (number, tuple(models[each][1] for each in (number, *heads))) for number, heads in asked
    )
    origins: dict[int, tuple[int, float]] = {}
    found = flattened(engine.map(_comparing, in_parts(compared, 4), computes=False))
    for (number, heads), (_, origin) in zip(asked, found, strict=True):
        on_model()
        if isinstance(origin, tuple):
            origins[number] = heads[origin[0]], origin[1]
    return _grouped([same for group in split for same in group], origins, models)


def copies_among(
    models: Sequence[tuple[str, Path]],
    *,
    engine: Engine = HERE,
    on_model: Callable[[], None] = lambda: None,
) -> tuple[Copies, ...]:
    """Finds the models of a list that have the same weights.

    Args:
      models: id and path of each; those that cannot be read are in no group.
      engine: who reads them.
      on_model: called after each model that was sketched.

    Returns:
      The groups of copies.

    Example:
      >>> import tempfile
      >>> from safetensors.numpy import save_file
      >>> folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> a_HW, b_HW = rng.normal(size=(2, 16, 16)).astype("f4")
      >>> for name, weights in {"a": a_HW, "b": b_HW, "c": a_HW.astype("f2")}.items():
      ...     save_file({"fc.weight": weights}, folder / f"{name}.safetensors")
      >>> found = copies_among([(name, folder / f"{name}.safetensors") for name in "abc"])
      >>> [(each.models, each.largest_difference < 0.001) for each in found]
      [(('a', 'c'), True)]
    """
    return confirmed(
        find_copies(read_marks(models, engine=engine, on_model=on_model)), models, engine=engine
    )


def _near(groups: Sequence[int], heads: Sequence[Mark]) -> dict[int, tuple[int, ...]]:
    """For groups of one kind, those that they may be rounded from, nearest first."""
    found: dict[int, list[int]] = {}
    features_N2F = np.stack([head.features for head in heads])
    bits_N = np.array([head.bits for head in heads])
    roundings = np.array([head.roundings for head in heads])
    for rounding in dict.fromkeys(roundings.tolist()):
        asked = np.flatnonzero(roundings == rounding)
        of_updates = rounding == ""
        others = np.flatnonzero((roundings != rounding) | of_updates)
        others = others[bits_N[others] >= bits_N[asked].min()]
        if not others.size:
            continue
        # As the model's own dtype has them, so that a copy is nearer than near kin.
        features_NF = features_N2F[:, int(heads[asked[0]].least_bits < _BITS_OF_F16)]
        # With itself, a model has one more.
        _, places_AK = cKDTree(features_NF[others]).query(
            features_NF[asked], np.arange(1, _NEAREST + 2), p=np.inf, distance_upper_bound=_REACH
        )
        for one, places in zip(asked.tolist(), places_AK, strict=True):
            nearest = others[places[places < len(others)]]
            finer = (bits_N[nearest] > bits_N[one]) | (
                (bits_N[nearest] == bits_N[one]) & (nearest < one)
            )
            origins = [groups[int(each)] for each in nearest[finer]]
            # Updates with equal samples may differ in their factors.
            origins = [groups[one], *origins] if of_updates else origins
            if origins:
                found[groups[one]] = origins[:_NEAREST]
    return {group: tuple(others) for group, others in found.items()}


def _heads(
    split: Sequence[Sequence[Sequence[int]]], group: int, others: Iterable[int], number: int
) -> tuple[int, ...]:
    """The first models of each content that a model may be rounded from, nearest first."""
    heads = [
        same[0] for other in others for same in split[other] if other != group or same[0] < number
    ]
    return tuple(heads[:_NEAREST])


def _grouped(
    equal: Sequence[Sequence[int]],
    origins: Mapping[int, tuple[int, float]],
    models: Sequence[tuple[str, Path]],
) -> tuple[Copies, ...]:
    """Groups of copies, of models with equal contents and of those that are rounded from others."""
    members: dict[int, list[int]] = {}
    largest: dict[int, float] = {}
    for numbers in equal:
        root, difference = numbers[0], 0.0
        while root in origins:
            root, more = origins[root]
            difference += more
        members.setdefault(root, []).extend(numbers)
        largest[root] = max(largest.get(root, 0.0), difference)
    found = []
    for root, numbers in sorted(members.items()):
        if len(numbers) > 1:
            ordered = [root, *sorted({*numbers} - {root})]
            found.append(Copies(tuple(models[each][0] for each in ordered), largest[root]))
    return tuple(found)


def _reading() -> Work:
    return Work(lambda item: or_error(_content, item[1]), lambda part, found: found)


def _comparing() -> Work:
    return Work(lambda item: or_error(_origin, item[1]), lambda part, found: found)


def _content(path: Path) -> str:
    """A hash of all layers of a model, the same whatever their names and order."""
    with open_model(path) as model:
        layers = [
            (layer.shape, layer.is_update, _bytes_hash(model.matrix(name)))
            for name, layer in model.all_layers.items()
        ]
        model.check_unchanged()
    return hash_of(sorted(layers))


def _bytes_hash(matrix: np.ndarray | LowRank) -> str:
    parts = [matrix.up, matrix.down] if isinstance(matrix, LowRank) else [matrix]
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part + np.float32(0)).data)
    return found.hexdigest()


def _origin(paths: Sequence[Path]) -> tuple[int, float] | None:
    """Of the first model, the place among the others of one that it is a copy of, and how far."""
    with open_model(paths[0]) as one:
        for place, path in enumerate(paths[1:]):
            difference = or_error(partial(_difference, one), path)
            if isinstance(difference, float):
                return place, difference
    return None


def _difference(one: ModelFile, path: Path) -> float | None:
    with open_model(path) as other:
        return copy_difference(other, one)
