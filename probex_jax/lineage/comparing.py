"""Pairs of models, compared and tested by an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from probex_jax.engine import Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.lineage.adapters import base_fit, merged_cosine
from probex_jax.lineage.kinship import kinship
from probex_jax.lineage.pairs import pair_layers
from probex_jax.lineage.relation import Relation, relate
from probex_jax.model_files import open_model

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
        """How the models of each pair relate, or why that cannot be told."""
        asked = [(self._paths[a], self._paths[b], permuted) for a, b in pairs]
        return self._mapped(_relating, asked, "comparing")

    def tested(self, pairs: Sequence[tuple[int, int]]) -> list[float | ProbexError]:
        """The p-value of each pair, or why there is none."""
        asked = [(self._paths[a], self._paths[b]) for a, b in pairs]
        return self._mapped(_testing, asked, "testing")

    def fits(self, pairs: Sequence[tuple[int, int]]) -> list[float | ProbexError]:
        """The p-value of each adapter and base, or why there is none."""
        asked = [(self._paths[a], self._paths[b]) for a, b in pairs]
        return self._mapped(_fitting, asked, "testing adapters")

    def merged(self, triples: Sequence[tuple[int, int, int]]) -> list[float | ProbexError]:
        """`merged_cosine` of each adapter, base and model, or why there is none."""
        asked = [(self._paths[a], self._paths[b], self._paths[c]) for a, b, c in triples]
        return self._mapped(_merging, asked, "testing adapters")

    def _mapped(self, make: Callable[[], Work], items: Sequence[Any], what: str) -> list[Any]:
        results: list[Any] = []
        parts = in_parts(items, 4)
        done = self._engine.map(make, parts, readers=self._readers, computes=False)
        for _, result in flattened(done):
            results.append(result)
            self._on_progress(what, len(results), len(items))
        return results


def _relating() -> Work:
    return Work(partial(_or_error, _relation), lambda part, found: found)


def _testing() -> Work:
    return Work(partial(_or_error, _p_value), lambda part, found: found)


def _fitting() -> Work:
    return Work(partial(_or_error, _fit), lambda part, found: found)


def _merging() -> Work:
    return Work(partial(_or_error, _merged), lambda part, found: found)


def _or_error(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except ProbexError as error:
        return error


def _relation(item: tuple[Path, Path, bool]) -> Relation:
    with open_model(item[0]) as one, open_model(item[1]) as other:
        return relate(one, other, pair_layers(one, other), permuted=item[2])


def _p_value(item: tuple[Path, Path]) -> float:
    with open_model(item[0]) as one, open_model(item[1]) as other:
        return kinship(one, other).p_value


def _fit(item: tuple[Path, Path]) -> float:
    with open_model(item[0]) as adapter, open_model(item[1]) as base:
        return base_fit(adapter, base).p_value


def _merged(item: tuple[Path, Path, Path]) -> float:
    with open_model(item[0]) as adapter, open_model(item[1]) as base, open_model(item[2]) as model:
        return merged_cosine(adapter, base, model)
