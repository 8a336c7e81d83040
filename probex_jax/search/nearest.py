"""The nearest documented models of a model, for its description."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.forest import Neighbour
from probex_jax.search.hits import Hit
from probex_jax.search.index import Index
from probex_jax.search.indexes import Indexes

_NEIGHBOURS = 5


@dataclass(frozen=True)
class NearestIn:
    """Finds them in the index of each tree, for `Forest.describe_all`.

    Args:
      indexes: any number; those of one tree are of one expert.
    """

    indexes: Sequence[Index]

    def __call__(
        self, tree: str, paths: Sequence[Path]
    ) -> Sequence[Sequence[Neighbour] | ProbexError]:
        of_tree = [index for index in self.indexes if index.about["expert"]["tree"] == tree]
        if not of_tree:
            return [()] * len(paths)
        return [
            found if isinstance(found, ProbexError) else list(map(_neighbour, found))
            for found in Indexes(of_tree).alike(paths, k=_NEIGHBOURS)
        ]


def _neighbour(hit: Hit) -> Neighbour:
    return Neighbour(hit.id, hit.similarity, hit.text, hit.path)
