"""A tree of a forest on disk: its router, and an expert for each label set."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.bucket_paths import fetched
from probex_jax.errors import ProbexError
from probex_jax.experts import Card, Expert, Read, in_batches
from probex_jax.experts.tags import Vocabulary, ranked_tags, tag_cut
from probex_jax.files import disk_errors, read_json
from probex_jax.fitting import Number
from probex_jax.forest.answers import Asked, answered
from probex_jax.forest.description import Answer, ExpertFacts, Prediction, RankedTags
from probex_jax.forest.router import TreeRouter
from probex_jax.forest.usual import Usual
from probex_jax.integrity import unsealed
from probex_jax.model_files import open_model

VERSION = 3
_FOLDER = re.compile(r"expert(-\d+)?")
_ARRAYS = re.compile(r"arrays(-[0-9a-f]{16})?\.safetensors")


@dataclass(frozen=True)
class ExpertEntry:
    """An expert in a tree's table.

    Args:
      label_set: what its classes are about; "" if that has no name.
      folder: in the tree's folder.
      hash: of the expert.
      layers: name to (H, W), the layers that it reads.
      classes: that it knows.
      tags: that it ranks.
    """

    label_set: str
    folder: str
    hash: str
    layers: Mapping[str, tuple[int, int]]
    classes: tuple[str, ...]
    tags: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ExpertEntry:
        """From the JSON of one; other errors than ProbexError if it is damaged."""
        layers = {name: (int(h), int(w)) for name, (h, w) in value["layers"].items()}
        folder = str(value["folder"])
        if not _FOLDER.fullmatch(folder):
            raise ValueError(f"folder {folder!r:.50}")
        classes = tuple(map(str, value["classes"]))
        tags = tuple(map(str, value.get("tags", ())))
        return cls(str(value["label_set"]), folder, str(value["hash"]), layers, classes, tags)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        layers = {name: list(shape) for name, shape in self.layers.items()}
        return {
            "label_set": self.label_set,
            "folder": self.folder,
            "hash": self.hash,
            "layers": layers,
            "classes": list(self.classes),
            **({"tags": list(self.tags)} if self.tags else {}),
        }


class Tree:
    """One tree of a forest.

    Attributes:
      path: its folder.
      router: recognises its models.
      usual: what is usual of its models; None if it was grown by an earlier version.
      entries: label sets to their experts in the table.
      layers: name to (H, W), the layers that the experts read.
      label_sets: with or without an expert.
      names: of the tree and of the stores that brought its experts.
      about: the content of tree.json.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about = unsealed(read_json(path / "tree.json"), path / "tree.json")
            if (version := self.about["version"]) != VERSION:
                raise ProbexError(
                    f"{path / 'tree.json'}: tree of version {version!r}, expected {VERSION}; grow "
                    "it again"
                )
            self._arrays = _arrays(arrays_file(path, self.about), self.about["arrays_sha256"])
            self.router = TreeRouter.from_json(self.about["router"], self._arrays["centres"])
            usual = self.about.get("usual")
            self.usual = None if usual is None else Usual.from_json(usual, self._arrays)
            entries = [ExpertEntry.from_json(entry) for entry in self.about["experts"]]
            self.entries = {entry.label_set: entry for entry in entries}
            self.label_sets = {str(source["label_set"]) for source in self.about["sources"]}
            self.names = frozenset(str(source["tree"]) for source in self.about["sources"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise ProbexError(
                f"{path / 'tree.json'}: damaged tree ({error!r}); grow it again"
            ) from error
        self.layers = {n: shape for e in self.entries.values() for n, shape in e.layers.items()}
        self._lock = threading.Lock()
        self._experts: dict[str, Expert] = {}

    @property
    def expert(self) -> Expert | None:
        """The expert of the first label set; None for a tree without one; errors as `experts`."""
        return next(iter(self.experts.values()), None)

    @property
    def experts(self) -> Mapping[str, Expert]:
        """The experts by their label sets, in the order in which they joined.

        Raises:
          ProbexError: if one is damaged, or not the one that the tree was grown with.
        """
        with self._lock:
            for label_set, entry in self.entries.items():
                if label_set in self._experts:
                    continue
                expert = Expert.load(self.path / entry.folder)
                if expert.hash != entry.hash:
                    raise ProbexError(f"{self.path}: holds a different expert; grow the tree again")
                self._experts[label_set] = expert
            return {label_set: self._experts[label_set] for label_set in self.entries}

    def texts(self, entry: ExpertEntry) -> np.ndarray | None:
        """Embedded texts [Y, D] of the classes of an expert; None for one without text."""
        return self._arrays.get(texts_of(entry.folder))

    def asked(self, label_set: str) -> Mapping[str, Asked]:
        """What an expert is asked: of a joint one each attribute that the weights tell, by name.

        What another expert of the tree tells alone, or a later joint one, is left to that one.
        """
        expert, card = self.experts[label_set], self.experts[label_set].card
        if not card.attributes:
            return {label_set: Asked(card, slice(None), self.facts(label_set))}
        others = [entry for name, entry in self.entries.items() if name != label_set]
        told = {entry.label_set for entry in others}, {entry.classes for entry in others}
        later = [*self.entries][[*self.entries].index(label_set) + 1 :]
        told[0].update(a.name for name in later for a in self.experts[name].card.attributes)
        return {
            each.name: Asked(part, card.outputs(each.name), _facts(part, expert))
            for each in card.attributes
            if each.told and each.name not in told[0] and each.classes not in told[1]
            for part in [card.part(each.name)]
        }

    @property
    def untold(self) -> tuple[str, ...]:
        """The attributes that weights do not tell: no better than what is usual in the tree.

        What has no name is no attribute: it is answered, with what there is to say of the expert.
        Of several experts the one counts that is `asked`.
        """
        cards = {label_set: expert.card for label_set, expert in self.experts.items()}
        told = {each.name: each.told for card in cards.values() for each in card.attributes}
        told |= {name: card.told for name, card in cards.items() if not card.attributes}
        return tuple(name for name, is_told in told.items() if name and not is_told)

    def vocabulary(self, entry: ExpertEntry) -> Vocabulary | None:
        """The tags that an expert ranks; None for one that ranks none."""
        if not entry.tags:
            return None
        classes_YD = self._arrays[texts_of(entry.folder)]
        return Vocabulary(entry.tags, self._arrays[tags_of(entry.folder)], classes_YD)

    def answers(
        self, models: Sequence[Mapping[str, Read]], size: int
    ) -> list[tuple[Answer, ...] | ProbexError]:
        """The answers of all experts for models, in compiled calls of `size` models.

        Args:
          models: what each expert reads of them, by label set.
          size: models in a call.
        """
        found: list[tuple[Answer, ...] | ProbexError] = [() for _ in models]
        untold = self.untold
        for label_set, expert in self.experts.items():
            if label_set in untold and not expert.card.attributes:
                continue
            answers = self._answers(label_set, expert, [m[label_set] for m in models], size)
            for place, one in answers.items():
                before = found[place]
                if isinstance(one, ProbexError) or isinstance(before, ProbexError):
                    found[place] = one if isinstance(one, ProbexError) else before
                else:
                    found[place] = (*before, *one)
        return found

    def _answers(
        self, label_set: str, expert: Expert, models: Sequence[Read], size: int
    ) -> dict[int, tuple[Answer, ...] | ProbexError]:
        entry, asked = self.entries[label_set], self.asked(label_set)
        texts, tags = self.texts(entry), self.vocabulary(entry)
        n_tags = 0 if tags is None else len(tags.tags)
        if texts is not None and tags is not None:
            texts = np.concatenate([texts, tags.texts_VD])
        found: dict[int, tuple[Answer, ...] | ProbexError] = {}
        for places, batch in in_batches(expert, models, size):
            logits_NY = np.asarray(expert.logits(batch, texts))
            logits_NY, of_tags_NV = np.split(logits_NY, [logits_NY.shape[1] - n_tags], axis=1)
            answers = [answered(name, one, logits_NY) for name, one in asked.items()]
            if tags is not None:
                shown = _ranked(expert, of_tags_NV, tags)
                answers = [
                    [replace(a, tags=t) for a, t in zip(of, shown, strict=True)] for of in answers
                ]
            for row, place in enumerate(places):
                found[place] = (
                    tuple(of[row] for of in answers)
                    if np.isfinite(logits_NY[row]).all()
                    else ProbexError("its weights are too large for finite probabilities")
                )
        return found

    def facts(self, label_set: str) -> ExpertFacts:
        """The facts about an expert for descriptions; of a joint one `asked` has those of each."""
        return _facts(self.experts[label_set].card, self.experts[label_set])


def _facts(card: Card, expert: Expert) -> ExpertFacts:
    """The facts about an expert, or about the part of one that a card is of."""
    is_number = isinstance(card.task, Number)
    return ExpertFacts(
        hash=expert.hash,
        layers=tuple(expert.layers),
        encoder=(card.common("encoder") or {"name": "committee"})["name"],
        n_train=card.n_train,
        accuracy=card.figures.get("test_accuracy"),
        calibration_error=(card.calibration and card.calibration.after) or {},
        chosen="number" if is_number else "one" if card.task.exclusive else "several",
        auc=card.figures.get("test_auc"),
        coverage=card.figures.get("test_coverage"),
    )


def _ranked(expert: Expert, logits_NV: np.ndarray, tags: Vocabulary) -> Sequence[RankedTags]:
    cut, words = tag_cut(expert), expert.card.words
    return [
        RankedTags(
            tuple(Prediction(t.tag, words.get(t.tag, t.tag), t.probability) for t in shown),
            len(tags.tags),
            cut.wrong,
        )
        for shown in ranked_tags(expert, logits_NV, tags)
    ]


def texts_of(folder: str) -> str:
    """The name of the embedded texts of an expert among the arrays of its tree."""
    return f"texts.{folder}"


def tags_of(folder: str) -> str:
    """The name of the embedded tags of an expert among the arrays of its tree."""
    return f"tags.{folder}"


def arrays_file(folder: Path, about: Mapping[str, Any]) -> Path:
    """The file of a tree's arrays; ValueError if its `tree.json` names none."""
    name = about.get("arrays", "arrays.safetensors")
    if not _ARRAYS.fullmatch(name):
        raise ValueError(f"arrays {name!r:.50}")
    return folder / name


def _arrays(path: Path, sha256: str) -> dict[str, np.ndarray]:
    with disk_errors(path), fetched(path) as here:
        if hashlib.sha256(here.read_bytes()).hexdigest() != sha256:
            raise ProbexError(f"{path}: damaged: its content does not match its hash")
        with open_model(here) as file:
            return {name: file.tensor(name) for name in file.tensors}
