"""An index in memory, for a server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.search.attributes import Attribute, order, several
from probex_jax.search.conditions import Condition
from probex_jax.search.hits import Hit, sorted_by
from probex_jax.search.index import ANN_MODELS, Index
from probex_jax.search.vectors import unit

# Cached query vectors.
_PLACES = 1024


@dataclass(frozen=True)
class Filter:
    """Which models a search considers, and how it sorts those found; an empty field matches all.

    Args:
      tree: the tree of the model.
      split: its split.
      text: a part of its text, ignoring case.
      conditions: on its attributes.
      sort: as of `Index.search`.
    """

    tree: str = ""
    split: str = ""
    text: str = ""
    conditions: tuple[Condition, ...] = ()
    sort: str = ""

    def __bool__(self) -> bool:
        return bool(self.tree or self.split or self.text or self.conditions)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that it names."""
        named = [one.name for one in self.conditions]
        return tuple(dict.fromkeys([*named, *([self.sort.removeprefix("-")] if self.sort else [])]))

    def sql(self, values: Mapping[str, Attribute] | None = None) -> str | None:
        """The filter as a condition for `Index.search`.

        Args:
          values: an example of each attribute, if there are conditions on some.

        Example:
          >>> Filter(split="test", text="It's").sql()
          "split = 'test' AND strpos(lower(text), 'it''s') > 0"
        """
        asked = {"tree": self.tree, "split": self.split}
        parts = [f"{name} = {_quoted(value)}" for name, value in asked.items() if value]
        if self.text:
            parts.append(f"strpos(lower(text), {_quoted(self.text.lower())}) > 0")
        parts += [one.sql((values or {})[one.name]) for one in self.conditions]
        return " AND ".join(parts) or None


EVERY = Filter()


class Snapshot:
    """The models of an index and their vectors, searched by one matrix-vector product.

    That is ten times as fast as LanceDB's exact scan. From `ANN_MODELS` models on, it asks the
    index, which has an approximate index by then.

    Args:
      index: read once; later additions are not seen.

    Attributes:
      index: as given.
      models: every model as a hit of similarity 0, in the order of `vectors_NT`.
      vectors_NT: [N, T] float32 unit vectors.
      attributes: those that the models have, each with one of its values.
    """

    def __init__(self, index: Index):
        self.index = index
        rows, self.vectors_NT = index.everything()
        self.models = [
            Hit(**row | {"similarity": 0.0, "labels": tuple(row["labels"])}) for row in rows
        ]
        self.attributes = {n: v for hit in self.models for n, v in hit.attributes.items()}
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
        """Whether it can be searched by text."""
        return self.index.about["expert"]["text_encoder"] is not None

    @property
    def tree(self) -> str:
        """The tree of the expert."""
        return self.index.about["expert"]["tree"]

    def values(self, field: str) -> list[str]:
        """The values of `tree` or `split`, sorted."""
        return sorted({getattr(hit, field) for hit in self.models} - {""})

    def place(self, query: str) -> np.ndarray:
        """As `Index.place`, with a cache."""
        return self._place(query)

    def holds(self, id: str) -> bool:
        """Whether there is a model with this id."""
        return id in self._by_id

    def place_of(self, id: str) -> int:
        """The position of a model in `models`; a ProbexError unless there is exactly one."""
        if not self.holds(id):
            raise ProbexError(f"the index holds no model {id!r}")
        place, *others = self._by_id[id]
        if others:
            raise ProbexError(f"the index holds {len(others) + 1} models {id!r}; send the file")
        return place

    def near(
        self, vector_T: np.ndarray, k: int = 10, where: Filter = EVERY, *, but: str = ""
    ) -> list[Hit]:
        """The most similar models, best first.

        Args:
          vector_T: [T] float, not zero.
          k: maximal number of models.
          where: which models, and how they are sorted.
          but: path of a model to leave out.

        Raises:
          ProbexError: if it names an attribute that there is not, or of another kind.
        """
        self.check(where)
        if len(self) >= ANN_MODELS:
            with suppress(ProbexError):  # a writer has removed the version that was opened
                hits = self.index.near(vector_T, k + 1, where.sql(self.attributes))
                return self._sorted([hit for hit in hits if hit.path != but][:k], where)
        # Not `@`: BLAS threads spin while they wait, and take the time of other searches.
        similarities_N = np.vecdot(self.vectors_NT, unit([vector_T])[0])
        places = self._masks(where) if where else np.arange(len(self))
        places = _largest(similarities_N, places, k + 1)
        hits = [
            replace(self.models[place], similarity=min(1.0, float(similarities_N[place])))
            for place in places
        ]
        return self._sorted([hit for hit in hits if hit.path != but][:k], where)

    def listed(self, k: int, where: Filter) -> list[Hit]:
        """The first models that a filter lets through, as it sorts them; raises as `near`."""
        self.check(where)
        return self._sorted([self.models[place] for place in self._masks(where)], where)[:k]

    def check(self, where: Filter) -> None:
        """Raises a ProbexError if a filter names an attribute that there is not."""
        for one in where.conditions:
            one.check(self.attributes)
        if where.sort:
            name, _ = order(where.sort, self.attributes)
            if isinstance(self.attributes[name], tuple):
                raise several(name)

    def _sorted(self, hits: list[Hit], where: Filter) -> list[Hit]:
        if not where.sort:
            return hits
        name, falling = order(where.sort, self.attributes)
        return sorted_by(hits, name, falling=falling)

    def _mask(self, where: Filter) -> np.ndarray:
        said = where.text.lower()
        return np.flatnonzero(
            [
                where.tree in ("", hit.tree)
                and where.split in ("", hit.split)
                and said in text
                and all(one.holds(hit.attributes) for one in where.conditions)
                for hit, text in zip(self.models, self._texts, strict=True)
            ]
        )


def _largest(values_N: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    """The indices of the largest values, in order; ties go to the first."""
    values = values_N[places]
    if len(places) > k:
        candidates = values >= -np.partition(-values, k - 1)[k - 1]
        places, values = places[candidates], values[candidates]
    return places[np.argsort(-values, kind="stable")][:k]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
