"""Pairs of models, compared and tested by an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from probex_jax.engine import Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.lineage.adapters import base_fit, merged_cosine
from probex_jax.lineage.attempts import or_error
from probex_jax.lineage.kinship import Kinship, kinship
from probex_jax.lineage.pairs import pair_layers
from probex_jax.lineage.relation import Relation, relate
from probex_jax.model_files import ModelFile, open_model

# What is done, how much of it is, and how much there is.
Progress = Callable[[str, int, int], None]


class Comparing:
    """Compares models that are told by their numbers.

    Args:
      paths: of the models.
      engine: who compares them.
      readers: threads of each worker that read.
      on_progress: called after each pair.
    """

    def __init__(
        self, paths: Sequence[Path], engine: Engine, readers: int, on_progress: Progress
    ) -> None:
        self._paths, self._engine, self._readers = paths, engine, readers
        self._on_progress = on_progress

    def related(
        self, pairs: Sequence[tuple[int, int]], *, permuted: bool = False
    ) -> list[Relation | ProbexError]:
        """How the models of each pair relate, but for kinds, or why that cannot be told.

        Pairs with one first model in succession are compared together.
        """
        asked = [
            (self._paths[one], tuple(self._paths[other] for _, other in group), permuted)
            for one, group in groupby(pairs, lambda pair: pair[0])
        ]
        total = len(pairs)
        found: list[Relation | ProbexError] = []
        for results in self._mapped(_relating, asked):
            found += results
            self._on_progress("comparing", len(found), total)
        return found

    def tested(self, pairs: Sequence[tuple[int, int]]) -> list[float | ProbexError]:
        """The p-value of each pair, or why there is none."""
        return self._told(_testing, self._asked(pairs), "testing")

    def examined(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[Kinship, str] | ProbexError]:
        """The test of each parent and child and the kind, or why they cannot be told."""
        return self._told(_examining, self._asked(pairs), "examining")

    def fits(self, pairs: Sequence[tuple[int, int]]) -> list[float | ProbexError]:
        """The p-value of each adapter and base, or why there is none."""
        return self._told(_fitting, self._asked(pairs), "testing adapters")

    def merged(self, triples: Sequence[tuple[int, int, int]]) -> list[float | ProbexError]:
        """`merged_cosine` of each adapter, base and model, or why there is none."""
        asked = [(self._paths[a], self._paths[b], self._paths[c]) for a, b, c in triples]
        return self._told(_merging, asked, "testing adapters")

    def _asked(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[Path, Path]]:
        return [(self._paths[one], self._paths[other]) for one, other in pairs]

    def _told(self, make: Callable[[], Work], items: Sequence[Any], what: str) -> list[Any]:
        results: list[Any] = []
        for result in self._mapped(make, items):
            results.append(result)
            self._on_progress(what, len(results), len(items))
        return results

    def _mapped(self, make: Callable[[], Work], items: Sequence[Any]) -> Iterator[Any]:
        # Each thread has its model; BLAS's own would get in their way.
        with threadpool_limits(1, "blas"):
            parts = in_parts(items, 4)
            done = self._engine.map(make, parts, readers=self._readers, computes=False)
            yield from (result for _, result in flattened(done))


def _relating() -> Work:
    return Work(_relations, lambda part, found: found)


def _examining() -> Work:
    return Work(partial(or_error, _examined), lambda part, found: found)


def _testing() -> Work:
    return Work(partial(or_error, _p_value), lambda part, found: found)


def _fitting() -> Work:
    return Work(partial(or_error, _fit), lambda part, found: found)


def _merging() -> Work:
    return Work(partial(or_error, _merged), lambda part, found: found)


def _relations(item: tuple[Path, Sequence[Path], bool]) -> list[Relation | ProbexError]:
    path, others, permuted = item
    try:
        with open_model(path) as one:
            return [or_error(partial(_relation, one, permuted), other) for other in others]
    except ProbexError as error:
        return [error] * len(others)


def _relation(one: ModelFile, permuted: bool, path: Path) -> Relation:
    with open_model(path) as other:
        return relate(one, other, pair_layers(one, other), kinds=False, permuted=permuted)


def _examined(item: tuple[Path, Path]) -> tuple[Kinship, str]:
    with open_model(item[0]) as parent, open_model(item[1]) as child:
        pairs = pair_layers(parent, child)
        return kinship(parent, child, pairs), relate(parent, child, pairs).kind


def _p_value(item: tuple[Path, Path]) -> float:
    with open_model(item[0]) as one, open_model(item[1]) as other:
        return kinship(one, other).p_value


def _fit(item: tuple[Path, Path]) -> float:
    with open_model(item[0]) as adapter, open_model(item[1]) as base:
        return base_fit(adapter, base).p_value


def _merged(item: tuple[Path, Path, Path]) -> float:
    with open_model(item[0]) as adapter, open_model(item[1]) as base, open_model(item[2]) as model:
        return merged_cosine(adapter, base, model)
