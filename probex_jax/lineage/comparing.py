"""Pairs of models, compared and tested by an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from probex_jax.engine import Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
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

    def _mapped(self, make: Callable[[], Work], items: Sequence[Any], what: str) -> list[Any]:
        results: list[Any] = []
        parts = in_parts(items, 4)
        done = self._engine.map(make, parts, readers=self._readers, computes=False)
        for _, result in flattened(done):
            results.append(result)
            self._on_progress(what, len(results), len(items))
        return results


def _relating() -> Work:
    return Work(_relation_or_error, lambda part, found: found)


def _testing() -> Work:
    return Work(_p_value_or_error, lambda part, found: found)


def _relation_or_error(item: tuple[Path, Path, bool]) -> Relation | ProbexError:
    try:
        with open_model(item[0]) as one, open_model(item[1]) as other:
            return relate(one, other, pair_layers(one, other), permuted=item[2])
    except ProbexError as error:
        return error


def _p_value_or_error(item: tuple[Path, Path]) -> float | ProbexError:
    try:
        with open_model(item[0]) as one, open_model(item[1]) as other:
            return kinship(one, other).p_value
    except ProbexError as error:
        return error
