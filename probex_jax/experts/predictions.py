"""What experts answer for the models of a store, and what the chosen one did for the test models.

That is asked once, after the choice, and kept beside its metrics.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from probex_jax.bucket_paths import fetched
from probex_jax.errors import ProbexError
from probex_jax.experts.card import Card
from probex_jax.experts.card_parts import read_task, task_json
from probex_jax.experts.chance import chance, chance_by_class
from probex_jax.experts.expert import Expert
from probex_jax.experts.together import SMALL
from probex_jax.files import layer_folder, parse_json, write_bytes
from probex_jax.fitting import TASKS, OneClass, SeveralClasses, Task
from probex_jax.fitting.conformal import Conformal
from probex_jax.layer_store import LayerStore

NAME = "predictions.safetensors"
EARLIER = "answered.safetensors"
_CRC = "crc32c"
_ABOUT = ("classes", "ids", "labels", "chance", "chance_by_class")
_OF_TASK = ("task", "temperature", "conformal")
# Matrices of one layer that are in memory at a time.
_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Predictions:
    """An expert's answers for the models of `test`, and how it represents them.

    Args:
      classes: Y names.
      ids, labels: of M models: the N ones of `test`, then those of held-out classes.
      logits: [N, Y] float.
      y: targets of the task.
      vectors: [M, T] representations; [0, 0] of what makes none.
      chance: the accuracy of always giving the commonest answer (`chance.chance`).
      chance_by_class: that of each class (`chance.chance_by_class`).
      task: what was asked.
      conformal: what the expert's intervals or sets are made by; None where there are none.
      temperature: what its logits are divided by.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    logits: np.ndarray
    y: np.ndarray
    vectors: np.ndarray
    chance: float
    chance_by_class: tuple[float, ...] = ()
    task: Task = field(default_factory=SeveralClasses)
    conformal: Conformal | None = None
    temperature: float = 1.0

    @property
    def region(self) -> np.ndarray | None:
        """What conformal prediction leaves possible (`Task.region`); None without it."""
        if self.conformal is None:
            return None
        return self.task.region(self.logits, self.temperature, self.conformal)

    @classmethod
    def of(
        cls,
        store: LayerStore,
        classes: Sequence[str],
        task: Task,
        answers: tuple[np.ndarray, np.ndarray],
        expert: Expert | None = None,
    ) -> Predictions:
        """Answers for the models of a store.

        Args:
          store: where the models are.
          classes: Y names.
          task: what is asked.
          answers: logits and targets.
          expert: who represents the models, also those of held-out classes; None if nobody does.
        """
        held_out = expert and store.has("test_holdout") and not store.is_number
        splits = ["test", *(["test_holdout"] if held_out else [])]
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
            np.asarray(y, np.float64 if store.is_number else np.int32),
            np.asarray(vectors, np.float32),
            chance(task, store, "test", classes),
            tuple(map(float, chance_by_class(task, store, "test", classes))),
            task,
        )

    def believed(self, card: Card) -> Predictions:
        """The same, with the calibration of an expert's card."""
        return replace(self, conformal=card.conformal, temperature=card.temperature)

    def write(self, workdir: Path) -> None:
        """Keeps it in a work directory.

        Raises:
          ProbexError: if it cannot be written.
        """
        about: dict[str, Any] = {name: getattr(self, name) for name in _ABOUT}
        about |= {"task": task_json(self.task), "temperature": self.temperature}
        about["conformal"] = self.conformal and asdict(self.conformal)
        arrays = {"logits": self.logits, "y": self.y, "vectors": self.vectors}
        # safetensors writes the memory of an array as it lies there.
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        about[_CRC] = _checksum(arrays, about)
        write_bytes(workdir / NAME, save(arrays, {"about": json.dumps(about)}))

    @classmethod
    def read(cls, workdir: Path) -> Predictions | None:
        """What a training kept; None where there is nothing, as of earlier versions.

        Raises:
          ProbexError: if it is damaged.
        """
        path = workdir / NAME
        if not path.exists():
            path = workdir / EARLIER
        if not path.exists():
            return None
        try:
            with fetched(path) as here, safe_open(here, "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about: dict[str, Any] = parse_json(file.metadata()["about"], str(path))
            if odd := about.keys() - {*_ABOUT, *_OF_TASK, _CRC}:  # a checksum by another name, too
                raise ValueError(f"unknown field {min(odd)!r:.40}")
            if _CRC in about and about.pop(_CRC) != _checksum(arrays, about):
                raise ValueError("its content does not match its checksum")
            labels = tuple(map(tuple, about["labels"]))
            implied = OneClass.name if arrays["y"].ndim == 1 else SeveralClasses.name  # earlier
            return cls(
                tuple(about["classes"]),
                tuple(about["ids"]),
                labels,
                **arrays,
                chance=about["chance"],
                chance_by_class=tuple(about.get("chance_by_class", ())),
                task=_task(about.get("task", implied), path),
                conformal=(said := about.get("conformal")) and Conformal(**said),
                temperature=about.get("temperature", 1.0),
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ProbexError(f"{path}: damaged ({error})") from error


def attribute_folder(workdir: Path, name: str) -> Path:
    """Where a joint training keeps what is of one attribute; any column's name has a folder.

    Example:
      >>> attribute_folder(Path("w"), "a/b").as_posix()
      'w/attributes/a%2Fb'
      >>> attribute_folder(Path("w"), "..").name[:13]
      'sha256-5ec1f7'
    """
    try:
        return layer_folder(workdir / "attributes", name)
    except ProbexError:  # dots alone, or too long
        return workdir / "attributes" / f"sha256-{hashlib.sha256(name.encode()).hexdigest()}"


def _task(said: Any, path: Path) -> Task:
    """The task of its name, as in files of earlier versions, or of its fields."""
    if isinstance(said, str):
        return TASKS[said]()
    return read_task(said, TASKS[said["name"]].head, None, path)


def _checksum(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> int:
    """CRC-32C of arrays and what is said of them."""
    crc = google_crc32c.value(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        header = json.dumps([name, array.shape, array.dtype.str])
        crc = google_crc32c.extend(google_crc32c.extend(crc, header.encode()), array.tobytes())
    return crc


def stored_logits(
    expert: Expert, store: LayerStore, split: str, texts_YD: Any = None
) -> np.ndarray:
    """Logits [N, Y] of the models of a split, a block of models at a time.

    Args:
      expert: of the store's tree.
      store: where the models are.
      split: name of the split.
      texts_YD: of an expert aligned with text, the candidates.

    Raises:
      ProbexError: as `LayerStore.matrices` and `Expert.logits`, or if a model's are not finite.
    """
    return _in_blocks(expert, store, split, lambda x: expert.logits(x, texts_YD))


def stored_vectors(expert: Expert, store: LayerStore, split: str) -> np.ndarray:
    """Representations [N, T] of the models of a split, in the same way."""
    return _in_blocks(expert, store, split, expert.encode)


def _in_blocks(
    expert: Expert, store: LayerStore, split: str, answer: Callable[[Any], Any]
) -> np.ndarray:
    n_models = len(store.split(split))
    entries = [math.prod(shape) for shape in expert.layers.values()]
    largest = max(*entries, sum(size for size in entries if size <= SMALL), 1)
    size = min(n_models, max(1, _BLOCK_BYTES // (4 * largest)))
    blocks = []
    for start in range(0, n_models, size):
        # The last block is filled up, so that there is one program.
        models = np.minimum(np.arange(start, start + size), n_models - 1)
        blocks.append(np.asarray(answer(store.by_layer(split, models))))
    found = np.concatenate(blocks)[:n_models]
    if not (finite_N := np.isfinite(found).all(axis=1)).all():
        odd = store.split(split)[int(np.argmin(finite_N))]
        raise ProbexError(
            f"{store.path}: {odd.id}: its weights are too large for finite answers; remove it"
        )
    return found
