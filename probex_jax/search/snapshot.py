"""An index as it was when it was opened, held in memory: for a server that is asked often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.search.index import ANN_MODELS, Hit, Index
from probex_jax.search.table import unit

# Queries whose places are kept.
_PLACES = 1024


@dataclass(frozen=True)
class Filter:
    """Which models a search is about; an empty field asks for nothing.

    Args:
      tree: the tree that a model is said to be of.
      split: its split.
      text: what its words hold, in whatever case.
    """

    tree: str = ""
    split: str = ""
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.tree or self.split or self.text)

    def sql(self) -> str | None:
        """The same as a condition for `Index.search`.

        Example:
          >>> Filter(split="test", text="It's").sql()
          "split = 'test' AND strpos(lower(text), 'it''s') > 0"
        """
        asked = {"tree": self.tree, "split": self.split}
        parts = [f"{name} = {_quoted(value)}" for name, value in asked.items() if value]
        if self.text:
            parts.append(f"strpos(lower(text), {_quoted(self.text.lower())}) > 0")
        return " AND ".join(parts) or None


EVERY = Filter()


class Snapshot:
    """The models of an index and their vectors, searched by one product.

    What LanceDB takes ten times as long for; and a server asks it fifty times at once. From
    `ANN_MODELS` on the index is asked, which has an approximate structure by then.

    Args:
      index: to be read once; what is added to it later is not seen.

    Attributes:
      index: as given.
      models: every model as a hit of similarity 0, in the order of `vectors_NT`.
      vectors_NT: [N, T] float32 unit vectors.
    """

    def __init__(self, index: Index):
        self.index = index
        rows, self.vectors_NT = index.everything()
        self.models = [
            Hit(**row | {"similarity": 0.0, "labels": tuple(row["labels"])}) for row in rows
        ]
        self._texts = [hit.text.lower() for hit in self.models]
        self._place = lru_cache(_PLACES)(index.place)
        self._by_id: dict[str, list[int]] = {}
        for place, hit in enumerate(self.models):
            self._by_id.setdefault(hit.id, []).append(place)
        self._masks = lru_cache(64)(self._mask)

    def __len__(self) -> int:
        return len(self.models)

    @property
    def knows_texts(self) -> bool:
        """Whether it can be searched by words."""
        return self.index.about["expert"]["text_encoder"] is not None

    @property
    def tree(self) -> str:
        """The tree of the expert whose representations these are."""
        return self.index.about["expert"]["tree"]

    def values(self, field: str) -> list[str]:
        """The values of `tree` or `split`, sorted."""
        return sorted({getattr(hit, field) for hit in self.models} - {""})

    def place(self, query: str) -> np.ndarray:
        """As `Index.place`; texts that were asked for lately are remembered."""
        return self._place(query)

    def holds(self, id: str) -> bool:
        """Whether there is a model of this id."""
        return id in self._by_id

    def place_of(self, id: str) -> int:
        """Where a model stands in `models`; a ProbexError where there is no such, or several."""
        if not self.holds(id):
            raise ProbexError(f"the index holds no model {id!r}")
        place, *others = self._by_id[id]
        if others:
            raise ProbexError(f"the index holds {len(others) + 1} models {id!r}; send the file")
        return place

    def near(
        self, vector_T: np.ndarray, k: int = 10, where: Filter = EVERY, *, but: str = ""
    ) -> list[Hit]:
        """The most similar models, the most similar first.

        Args:
          vector_T: [T] float of any length but 0.
          k: how many, at most.
          where: which models.
          but: path of a model that is left out.
        """
        if len(self) >= ANN_MODELS:
            hits = self.index.near(vector_T, k + 1, where.sql())
            return [hit for hit in hits if hit.path != but][:k]
        # Not `@`: the threads of BLAS wait by spinning, while others would search.
        similarities_N = np.vecdot(self.vectors_NT, unit([vector_T])[0])
        places = self._masks(where) if where else np.arange(len(self))
        places = _largest(similarities_N, places, k + 1)
        hits = [
            replace(self.models[place], similarity=min(1.0, float(similarities_N[place])))
            for place in places
        ]
        return [hit for hit in hits if hit.path != but][:k]

    def _mask(self, where: Filter) -> np.ndarray:
        said = where.text.lower()
        return np.flatnonzero(
            [
                where.tree in ("", hit.tree) and where.split in ("", hit.split) and said in text
                for hit, text in zip(self.models, self._texts, strict=True)
            ]
        )


def _largest(values_N: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    """The places of the largest values, in their order; of equal ones the first."""
    values = values_N[places]
    if len(places) > k:
        candidates = values >= -np.partition(-values, k - 1)[k - 1]
        places, values = places[candidates], values[candidates]
    return places[np.argsort(-values, kind="stable")][:k]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
