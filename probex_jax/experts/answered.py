"""What the chosen expert answered for the test models, kept beside its metrics.

It is asked once, after the choice; whoever draws or counts it reads it from here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from probex_jax.errors import ProbexError
from probex_jax.experts.answering import stored_vectors
from probex_jax.experts.chance import chance, chance_by_class
from probex_jax.experts.expert import Expert
from probex_jax.files import parse_json, write_bytes
from probex_jax.layer_store import LayerStore

_NAME = "answered.safetensors"
_ABOUT = ("classes", "ids", "labels", "chance", "chance_by_class")


@dataclass(frozen=True)
class Answered:
    """An expert's answers for the models of `test`, and how it represents them.

    Args:
      classes: Y names.
      ids, labels: of M models: the N ones of `test`, then those of held-out classes.
      logits: [N, Y] float.
      y: as `Split.y`: [N, Y] of zeros and ones, or [N] where one class is chosen.
      vectors: [M, T] representations; [0, 0] of what makes none.
      chance: the accuracy of always giving the commonest answer (`chance.chance`).
      chance_by_class: where each class is answered for itself, that of each; none as of earlier
        versions.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    logits: np.ndarray
    y: np.ndarray
    vectors: np.ndarray
    chance: float
    chance_by_class: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        store: LayerStore,
        classes: Sequence[str],
        answers: tuple[np.ndarray, np.ndarray],
        expert: Expert | None = None,
    ) -> Answered:
        """Answers for the models of a store.

        Args:
          store: where the models are.
          classes: Y names.
          answers: logits and what is true, as of `Answers`.
          expert: who represents the models, also those of held-out classes; None if nobody does.
        """
        splits = ["test", *(["test_holdout"] if expert and store.has("test_holdout") else [])]
        models = [model for split in splits for model in store.split(split)]
        vectors = np.zeros([0, 0])
        if expert is not None:
            vectors = np.concatenate([stored_vectors(expert, store, split) for split in splits])
        logits_NY, y = answers
        return cls(
            tuple(classes),
            tuple(model.id for model in models),
            tuple(tuple(model.labels) for model in models),
            np.asarray(logits_NY, np.float32),
            np.asarray(y, np.int32),
            np.asarray(vectors, np.float32),
            *_chances(store, classes, several=np.ndim(y) == 2),
        )

    @property
    def several(self) -> bool:
        """Whether a model may be of several classes, each answered for itself."""
        return self.y.ndim == 2

    def write(self, workdir: Path) -> None:
        """Keeps it in a work directory.

        Raises:
          ProbexError: if it cannot be written.
        """
        about = {name: getattr(self, name) for name in _ABOUT}
        arrays = {"logits": self.logits, "y": self.y, "vectors": self.vectors}
        write_bytes(workdir / _NAME, save(arrays, {"about": json.dumps(about)}))

    @classmethod
    def read(cls, workdir: Path) -> Answered | None:
        """What a training kept; None where there is nothing, as of earlier versions.

        Raises:
          ProbexError: if it is damaged.
        """
        path = workdir / _NAME
        if not path.exists():
            return None
        try:
            with safe_open(path, "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about: dict[str, Any] = parse_json(file.metadata()["about"], str(path))
            labels = tuple(map(tuple, about["labels"]))
            return cls(
                tuple(about["classes"]),
                tuple(about["ids"]),
                labels,
                **arrays,
                chance=about["chance"],
                chance_by_class=tuple(about.get("chance_by_class", ())),
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ProbexError(f"{path}: damaged ({error})") from error


def _chances(
    store: LayerStore, classes: Sequence[str], *, several: bool
) -> tuple[float, tuple[float, ...]]:
    if not several:
        return chance(store, "test", classes), ()
    return chance(store, "test"), tuple(map(float, chance_by_class(store, "test")))
