"""Searching by a text or by a model, whatever it is that finds the vectors near another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import Expert
from probex_jax.language import TextEncoder
from probex_jax.search.embedding import key, represented
from probex_jax.search.hits import Hit
from probex_jax.search.identity import show

# LanceDB allocates memory for as many results before it searches.
MAX_K = 100_000
# Concurrent queries.
_SEARCHERS = 4


class Searchable(ABC):
    """Models in the representation space of one expert.

    Attributes:
      about: `expert` is the identity of the expert.
    """

    about: dict[str, Any]

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def expert(self) -> Expert:
        """The expert that encodes the models."""

    @abstractmethod
    def near(self, vector: np.ndarray, k: int = 10, where: str | None = None) -> list[Hit]:
        """The models most similar to a vector [T]; otherwise as `search`."""

    def search(
        self,
        *,
        query: str | None = None,
        like: str | Path | None = None,
        k: int = 10,
        where: str | None = None,
        encoder: TextEncoder | None = None,
    ) -> list[Hit]:
        """The models whose representations are most similar to that of a text or a model.

        Args:
          query: a text, such as "an inverted three"; for experts aligned with text.
          like: path of a model, which is left out of the result. Give either `query` or `like`.
          k: maximal number of models, 1 to `MAX_K`.
          where: SQL condition on the fields of `Hit`, such as
            `split = 'test' AND array_has(labels, 'cat')`.
          encoder: text encoder, if that of the expert cannot be opened from its card.

        Returns:
          The models, most similar first.

        Raises:
          ProbexError: if the query is empty, k out of range, the expert has no text encoder, the
            model cannot be read, the condition is invalid, or the index is damaged.
        """
        if (query is None) == (like is None):
            raise ProbexError("give either a text (query) or a model (like)")
        if not 1 <= k <= MAX_K:
            raise ProbexError(f"k is {k}: expected 1 to {MAX_K}")
        if query is not None:
            return self.near(self.place(query, encoder), k, where)
        assert like is not None
        [found] = self.alike([like], k=k, where=where)
        if isinstance(found, ProbexError):
            raise found
        return found

    def alike(
        self, paths: Sequence[str | Path], *, k: int = 10, where: str | None = None
    ) -> list[list[Hit] | ProbexError]:
        """As `search` with `like`, for several models at once.

        Args:
          paths: of the models; each is left out of its own result.
          k: as for `search`.
          where: as for `search`.

        Returns:
          For each model the most similar ones, or why it cannot be read.

        Raises:
          ProbexError: if the condition is invalid, or the index is damaged.
        """

        def nearest(path: Path, vector_T: np.ndarray | ProbexError) -> list[Hit] | ProbexError:
            if isinstance(vector_T, ProbexError):
                return vector_T
            own, hits = key(path), self.near(vector_T, k + 1, where)
            return [hit for hit in hits if hit.path != own][:k]

        models = list(map(Path, paths))
        vectors = represented(self.expert, models)
        with ThreadPoolExecutor(_SEARCHERS) as searchers:
            return list(searchers.map(nearest, models, vectors))

    def place(self, query: str, encoder: TextEncoder | None = None) -> np.ndarray:
        """The representation [T] of a text, float32; raises as `search`."""
        if not query.strip():
            raise ProbexError("the query is empty; give a text such as 'an inverted three'")
        if self.expert.card.text is None:
            raise ProbexError(
                f"{self.name}: the expert of {show(self.about['expert'])} is not aligned "
                "with text; search by example (like), or index with an expert that is"
            )
        return np.asarray(self.expert.place([query], encoder))[0]
