"""Copies among the models of a command: found, and told in a few lines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments import cli
from probex_jax.buckets import address_of
from probex_jax.engine import HERE, Engine
from probex_jax.lineage.copies import confirmed, copies_among, find_copies
from probex_jax.lineage.lineage import Copies
from probex_jax.lineage.marks import Mark
from probex_jax.search import FoundModel

_GROUPS, _MODELS = 10, 5  # that are told of


def confirm(
    marks: Mapping[int, Mark], models: Sequence[FoundModel], engine: Engine = HERE
) -> tuple[Copies, ...]:
    """The copies among models, by number; only candidates are read, a progress bar counts them."""
    candidates = find_copies([marks.get(number) for number in range(len(models))])
    named = [(model.id, model.path) for model in models]
    with cli.progress(candidates.count, "comparing", "model") as bar:
        return confirmed(candidates, named, engine=engine, on_model=bar.update)


def find(models: Iterable[FoundModel], engine: Engine = HERE) -> tuple[Copies, ...]:
    """The copies among the models on a disk, which are read for it."""
    here = [(m.id, m.path) for m in models if not (m.fault or address_of(m.path))]
    with cli.progress(len(here), "looking for copies", "model") as bar:
        return copies_among(here, engine=engine, on_model=bar.update)


def tell(copies: Sequence[Copies]) -> None:
    """Prints a line for each group of copies, ten at most."""
    for group in copies[:_GROUPS]:
        names = ", ".join(group.models[:_MODELS])
        more = len(group.models) - _MODELS
        rest = f" and {more} more" if more > 0 else ""
        rounding = f" (rounded, by {group.largest_difference:.1g} at most)"
        print(
            cli.one_line(
                f"the same weights: {names}{rest}{rounding if group.largest_difference else ''}"
            )
        )
    if len(copies) > _GROUPS:
        print(f"and {len(copies) - _GROUPS} more groups of copies")


def as_json(copies: Iterable[Copies]) -> list[dict[str, Any]]:
    """Groups as JSON values: the models and their largest difference."""
    return [
        {"models": [*group.models], "largest_difference": group.largest_difference}
        for group in copies
    ]
