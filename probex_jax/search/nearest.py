"""The nearest documented models of a model, for its description."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.forest import Neighbour
from probex_jax.search.index import Hit, Index

_NEIGHBOURS = 5


@dataclass(frozen=True)
class NearestIn:
    """Finds them in the index of each tree, for `Forest.describe_all`.

    Args:
      indexes: at most one of each tree.
    """

    indexes: Sequence[Index]

    def __call__(
        self, tree: str, paths: Sequence[Path]
    ) -> Sequence[Sequence[Neighbour] | ProbexError]:
        for index in self.indexes:
            if index.about["expert"]["tree"] == tree:
                return [
                    found if isinstance(found, ProbexError) else list(map(_neighbour, found))
                    for found in index.alike(paths, k=_NEIGHBOURS)
                ]
        return [()] * len(paths)


def _neighbour(hit: Hit) -> Neighbour:
    return Neighbour(hit.id, hit.similarity, hit.text, hit.path)
