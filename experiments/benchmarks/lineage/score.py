"""Which answers about families are right, counted family by family.

A model that is a copy stands for what it is a copy of. Letters: F families, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OURS = "ours"
ALL = "all"
_DRAWS = 2000  # of the bootstrap
# Edges of these are not scored with the others: an adapter is no whole model, a copy no child.
_APART = ("LoRA", "copy")

Record = Mapping[str, Any]  # of `measure.measured`


@dataclass(frozen=True)
class Answer:
    """What a method says of the parents of one model that has some.

    Args:
      kind: how the model was made of its parents.
      directed: whether the parents that are named are some of its own.
      undirected: whether it is linked to one of its parents, either way round.
    """

    kind: str
    directed: bool
    undirected: bool


def answers(record: Record, method: str, others: str = "others") -> Iterator[Answer]:
    """Of each model with parents, whether a method tells them.

    A merge's parents are right here if those that are named, one or more, are all its parents: the
    other methods name one.

    Args:
      record: of a family.
      method: `OURS`, or a variant of another one.
      others: "others", or "others_without_merges" to have no merge among its models.
    """
    apart = {*_APART, "merge"} if others == "others_without_merges" else _APART
    if method == OURS:
        parents = named(record)
    else:
        parents = {child: {parent} for child, parent in record[others][method].items()}
    for child, said in record["truth"].items():
        if said["parents"] and said["kind"] not in apart:
            true, found = set(said["parents"]), parents.get(child, set())
            is_right = found == true or (said["kind"] == "merge" and bool(found) and found < true)
            turned = any(child in parents.get(parent, ()) for parent in true)
            yield Answer(said["kind"], is_right, turned or bool(found & true))


def named(record: Record) -> dict[str, set[str]]:
    """The parents that ours names, by the child."""
    original = _originals(record)
    found: dict[str, set[str]] = {}
    for edge in record["edges"]:
        child = original.get(edge["child"], edge["child"])
        found.setdefault(child, set()).add(original.get(edge["parent"], edge["parent"]))
    return found


def edges(record: Record) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The edges of ours, each with what is true of the child, but for adapters."""
    original = _originals(record)
    for edge in record["edges"]:
        ends = {end: original.get(edge[end], edge[end]) for end in ("parent", "child")}
        said = record["truth"][ends["child"]]
        if said["kind"] != "LoRA":
            yield {**edge, **ends}, said


def _originals(record: Record) -> dict[str, str]:
    truth = record["truth"]
    return {
        name: next(iter(said["parents"]))
        for name, said in truth.items()
        if said["kind"] == "copy" and _together(record, name, next(iter(said["parents"])))
    }


def _together(record: Record, one: str, other: str) -> bool:
    return any(one in group and other in group for group in record["copies"])


def copies(record: Record) -> tuple[list[bool], int]:
    """Of each copy whether it is found with its original; and how many models are in false ones."""
    truth = record["truth"]
    true = {name: next(iter(x["parents"])) for name, x in truth.items() if x["kind"] == "copy"}
    found = [_together(record, name, original) for name, original in true.items()]
    false = sum(
        not any({name, true[name]} == {group[0], other} for name in true)
        for group in record["copies"]
        for other in group[1:]
    )
    return found, false


def share(
    records: Sequence[Record], rights: Callable[[Record], Iterable[bool]]
) -> list[float] | None:
    """The share of what is right, and its 95 % interval: a bootstrap over families.

    Args:
      records: of families.
      rights: what is right or wrong in one of them.

    Returns:
      Share, lower and upper end, and how many were asked; None if none was.
    """
    counts_F2 = np.array([_counted(rights(record)) for record in records])
    total = int(counts_F2[:, 1].sum())
    if not total:
        return None
    drawn_D = _ratios(counts_F2)
    ends = np.quantile(drawn_D, (0.025, 0.975)).tolist()
    return [float(counts_F2[:, 0].sum() / total), *ends, total]


def difference(
    records: Sequence[Record],
    ours: Callable[[Record], Iterable[bool]],
    other: Callable[[Record], Iterable[bool]],
) -> list[float]:
    """How much larger a share is than another, and its interval, of the same draws of families."""
    counts = [
        np.array([_counted(rights(record)) for record in records]) for rights in (ours, other)
    ]
    drawn_D = _ratios(counts[0]) - _ratios(counts[1])
    found = [counts_F2[:, 0].sum() / counts_F2[:, 1].sum() for counts_F2 in counts]
    return [float(found[0] - found[1]), *np.quantile(drawn_D, (0.025, 0.975)).tolist()]


def _counted(rights: Iterable[bool]) -> tuple[int, int]:
    listed = list(rights)
    return sum(listed), len(listed)


def _ratios(counts_F2: np.ndarray) -> np.ndarray:
    draws_DF = np.random.default_rng(0).integers(len(counts_F2), size=(_DRAWS, len(counts_F2)))
    right_D, total_D = counts_F2[draws_DF].sum(1).T
    return right_D / np.maximum(total_D, 1)
