"""Which tags an expert aligned with text may show for a model, as its card keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.fitting.ranked import Curve, fitted_curve, lowest_cut
from probex_jax.layer_store import LayerStore

WRONG = 0.2
# A curve for tags that no training model has is learnt from so many right ones at least.
_LEAST = 5


@dataclass(frozen=True)
class TagCut:
    """A vocabulary of tags, how probable each is by its similarity, and which are shown.

    Args:
      column: of the store, which says the tags of its models.
      seen: the tags of training models.
      new: those that other models of the store have alone.
      seen_curve, new_curve: the probabilities of scores, for the tags of training models and for
        all others; None until fitted, or where too few models have others.
      cut: the probability from which on a tag is shown; None for none.
      wrong: the expected share of wrong tags among those shown, at most.

    Example:
      >>> known = TagCut("tags", ("cat", "dog"), ("fox",), Curve(4, 0), Curve(2, -1), 0.6)
      >>> known.probabilities(np.array([[1.0, -1.0, 1.0]]), known.vocabulary).round(2).tolist()
      [[0.98, 0.02, 0.73]]
    """

    column: str
    seen: tuple[str, ...]
    new: tuple[str, ...]
    seen_curve: Curve | None = None
    new_curve: Curve | None = None
    cut: float | None = None
    wrong: float = WRONG

    @classmethod
    def of(cls, store: LayerStore, column: str) -> TagCut:
        """The vocabulary of a column of a store, to be fitted.

        Raises:
          ProbexError: if there is no such column, or no training or validation model has a tag.
        """
        said = store.tables.column(column, store.path)
        tags = {
            split: {tag for m in store.models if m.split == split for tag in said.get(m.id, ())}
            for split in ("train", "val")
        }
        for split, found in tags.items():
            if not found:
                raise ProbexError(f"{store.path}: no model of {split} has a tag in {column!r}")
        every = {tag for model in store.models for tag in said.get(model.id, ())}
        new = every - tags["train"]
        return cls(column, tuple(sorted(tags["train"])), tuple(sorted(new)))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tags that have a probability."""
        return (*self.seen, *(self.new if self.new_curve else ()))

    def fitted(self, scores: np.ndarray, right: np.ndarray) -> TagCut:
        """With the curves of every other model, and the cut of the rest.

        Args:
          scores: [N, V] of validation models, by the tags `seen` and `new`.
          right: [N, V], 1 where the model has the tag.
        """
        scores_NV, right_NV, n_seen = scores[::2], right[::2], len(self.seen)
        enough = right_NV[:, n_seen:].sum() >= _LEAST
        found = replace(
            self,
            # Tags that no weights tell are right by chance, whatever their score.
            seen_curve=fitted_curve(scores_NV[:, :n_seen], right_NV[:, :n_seen], floor=True),
            new_curve=fitted_curve(scores_NV[:, n_seen:], right_NV[:, n_seen:]) if enough else None,
        )
        n_tags = len(found.vocabulary)
        p_NV = found.probabilities(scores[1::2, :n_tags], found.vocabulary)
        return replace(found, cut=lowest_cut(p_NV, right[1::2, :n_tags], self.wrong))

    def probabilities(self, scores: np.ndarray, tags: Sequence[str]) -> np.ndarray:
        """How probably models have tags [N, V], by the scores [N, V].

        Raises:
          ProbexError: if there is a tag that no training model has, and no curve for such tags.
        """
        is_seen_V = np.isin(tags, self.seen)
        if not self.seen_curve or not (self.new_curve or is_seen_V.all()):
            new = tags[int(np.argmin(is_seen_V))]
            raise ProbexError(
                f"tag {new!r}: the expert was trained on no model with it, and too few validation "
                "models have such tags to tell how probable one is"
            )
        new_curve = self.new_curve or self.seen_curve
        return np.where(is_seen_V, self.seen_curve(scores), new_curve(scores))

    def shown(self, probabilities: np.ndarray) -> np.ndarray:
        """Which tags are shown, [N, V] bool."""
        return np.asarray(probabilities) >= (np.inf if self.cut is None else self.cut)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: object = "card") -> TagCut:
        """Of JSON values, whatever they hold.

        Raises:
          ProbexError: if they are no `TagCut`.
        """
        try:
            seen, new = (tuple(map(_tag, _list(value[name]))) for name in ("seen", "new"))
            return cls(
                _tag(value["column"]),
                seen,
                new,
                _curve(value.get("seen_curve")),
                _curve(value.get("new_curve")),
                None if value.get("cut") is None else _number(value["cut"]),
                _number(value["wrong"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ProbexError(f"{where}: text.tags on the card is damaged ({error!r})") from None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.50} is not a list")
    return value


def _tag(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is not a string")
    return value


def _curve(value: Any) -> Curve | None:
    return None if value is None else Curve(*map(_number, _list(value)))


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < float("inf"):
        raise TypeError(f"{value!r:.50} is not a number")
    return value
