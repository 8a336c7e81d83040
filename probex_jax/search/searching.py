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
from probex_jax.search.attributes import order
from probex_jax.search.embedding import key, represented
from probex_jax.search.hits import Hit, sorted_by
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

    @property
    @abstractmethod
    def attributes(self) -> tuple[str, ...]:
        """The attributes that the models may have."""

    @abstractmethod
    def ordered(self, k: int, sort: str = "", where: str | None = None) -> list[Hit]:
        """The first models by an attribute, of all that meet a condition; otherwise as `search`."""

    def search(
        self,
        *,
        query: str | None = None,
        like: str | Path | None = None,
        k: int = 10,
        where: str | None = None,
        sort: str = "",
        encoder: TextEncoder | None = None,
    ) -> list[Hit]:
        """The models whose representations are most similar to that of a text or a model.

        Args:
          query: a text, such as "an inverted three"; for experts aligned with text.
          like: path of a model, which is left out of the result. Give at most one of `query` and
            `like`; with neither, all models that meet the condition are asked for.
          k: maximal number of models, 1 to `MAX_K`.
          where: SQL condition on the fields of `Hit` and on attributes, such as
            `split = 'test' AND array_has(labels, 'cat') AND accuracy > .9`. The name of an
            attribute that is no SQL identifier stands in double quotes.
          sort: an attribute by which the models found are sorted, behind "-" for the largest
            first; those without it come last.
          encoder: text encoder, if that of the expert cannot be opened from its card.

        Returns:
          The models, most similar first unless they are sorted.

        Raises:
          ProbexError: if nothing is asked, the query is empty, k out of range, the expert has no
            text encoder, the model cannot be read, the condition is invalid, there is no such
            attribute, or the index is damaged.
        """
        if query is not None and like is not None:
            raise ProbexError("give either a text (query) or a model (like)")
        if not 1 <= k <= MAX_K:
            raise ProbexError(f"k is {k}: expected 1 to {MAX_K}")
        if query is None and like is None:
            if not (where or sort):
                raise ProbexError("give a text (query), a model (like), a condition or an order")
            return self.ordered(k, sort, where)
        by = order(sort, self.attributes) if sort else None
        found: list[Hit] | ProbexError
        if query is not None:
            found = self.near(self.place(query, encoder), k, where)
        else:
            [found] = self.alike([like or ""], k=k, where=where)
        if isinstance(found, ProbexError):
            raise found
        return found if by is None else sorted_by(found, by[0], falling=by[1])

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
