"""Downstream tasks: the figures of `evaluate` for an expert on a store.

Every task is measured on the seen classes (known models `train`, queries `test`, the expert that
was best on `val`) and, if the store has held-out classes, on these (known models `val_holdout`,
queries `test_holdout`, the expert that was best on `val_holdout`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, evaluate, versions, zero_shot
from probex_jax.experts.alignment import check_unseen, class_sentences
from probex_jax.experts.chance import chance_by_class, targets
from probex_jax.experts.tags import stored_tags, tag_cut, tag_probabilities, vocabulary
from probex_jax.files import one_writer, read_json, write_json
from probex_jax.fitting import OneClass, Score, share
from probex_jax.fitting.metrics import auc_by_class
from probex_jax.language import TextEncoder
from probex_jax.layer_store import LayerStore
from probex_jax.search.neighbours import auc, knn, mahalanobis, one_class, retrieval
from probex_jax.search.tag_figures import tag_figures
from probex_jax.zoo.model_j import HELD_OUT_SPLITS

ONE_CLASS_NEIGHBOURS = 2  # the reference's


@dataclass(frozen=True)
class Measured:
    """One figure of a task.

    Args:
      task: its name.
      key: the name of the figure in `metrics.json`, unique within the task.
      what: the figure in words.
      classes: "seen", "held out", or "in all".
      n_classes: number of candidate classes.
      score: the figure with its interval.
      chance: for an accuracy, that of always giving the most common answer; of an AUC one half;
        else that of guessing.
      by_class: the figure of each class, if there is one.
      chance_by_class: the chance of each class, where each has its own answer.
    """

    task: str
    key: str
    what: str
    classes: str
    n_classes: int
    score: Score
    chance: float
    by_class: Mapping[str, float] = field(default_factory=dict)
    chance_by_class: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_accuracy(self) -> bool:
        """Whether the figure is an accuracy."""
        return self.what.startswith("accuracy")

    def as_json(self) -> dict[str, Any]:
        """The figure for `metrics.json`."""
        about = {"chance": self.chance, "classes": self.classes, "n_classes": self.n_classes}
        of_classes = {"by_class": self.by_class, "chance_by_class": self.chance_by_class}
        by_class = {name: dict(figures) for name, figures in of_classes.items() if figures}
        return {**asdict(self.score), **about, **by_class}


@dataclass(frozen=True)
class Subject:
    """An expert and the models to measure it on.

    Args:
      experts: from `load_experts`, by the split on which they were best.
      store: of the models.
      split: the queries of seen classes.
      neighbours: k of kNN and of precision at k, limited by the smallest class.
      encoder: the text encoder of an expert aligned with text; None to open it from the card.
    """

    experts: Mapping[str, Expert]
    store: LayerStore
    split: str = "test"
    neighbours: int = 5
    encoder: TextEncoder | None = None

    @cached_property
    def sides(self) -> "tuple[_Side, ...]":
        """Models of seen and held-out classes with their representations, shared by all tasks."""
        return tuple(_sides(self))


@dataclass(frozen=True)
class _Side:
    """Representations of known models and queries of the seen or the held-out classes."""

    expert: Expert
    name: str
    classes: tuple[str, ...]
    known_NT: np.ndarray
    known_labels_N: np.ndarray
    queries_QT: np.ndarray
    labels_Q: np.ndarray

    def measured(self, task: str, key: str, what: str, score: Score, chance: float) -> Measured:
        key = f"{key}_{self.name.replace(' ', '_')}"
        return Measured(task, key, what, self.name, len(self.classes), score, chance)


def measure(subject: Subject, task: str) -> list[Measured]:
    """The figures of one task.

    Args:
      subject: expert and models.
      task: one of `TASKS`.

    Returns:
      One or more figures, with 95 % bootstrap intervals over the models.

    Raises:
      ProbexError: if there is no such task, or the expert or the store does not fit it.
    """
    _check_task(task)
    return list(TASKS[task](subject))


def measure_all(
    subject: Subject,
    tasks: Sequence[str],
    workdir: Path,
    *,
    on_task: Callable[[str], None] = lambda fault: None,
) -> list[Measured]:
    """The figures of several tasks, also written to `metrics.json`.

    A task that cannot be measured does not stop the others.

    Args:
      subject: expert and models.
      tasks: some of `TASKS`.
      workdir: created if missing.
      on_task: called after each task with the reason why it failed, or "".

    Returns:
      The figures, in the order of the tasks.

    Raises:
      ProbexError: if there is no such task, none could be measured, or the folder is being written.
    """
    for task in tasks or [""]:
        _check_task(task)
    path = workdir / "metrics.json"
    with one_writer(workdir):
        by_task, faults = _measured(subject, tasks, on_task)
        baselines = {"baselines": kept} if (kept := kept_baselines(path)) else {}
        write_json(path, _metrics(subject, by_task, faults) | baselines)
    return [figure for figures in by_task.values() for figure in figures]


def kept_baselines(path: Path) -> dict[str, Any]:
    """What a `metrics.json` has of baselines (`baselines.compare`), which know no expert.

    Raises:
      ProbexError: if it is damaged.
    """
    metrics = read_json(path) if path.exists() else {}
    found = metrics.get("baselines", {}) if isinstance(metrics, dict) else None
    if not isinstance(found, dict):
        raise ProbexError(f"{path}: damaged; remove it to measure anew")
    return found


def _measured(
    subject: Subject, tasks: Sequence[str], on_task: Callable[[str], None]
) -> tuple[dict[str, list[Measured]], dict[str, str]]:
    """The figures by task, and why other tasks failed."""
    by_task: dict[str, list[Measured]] = {}
    faults: dict[str, str] = {}
    for task in tasks:
        try:
            by_task[task] = measure(subject, task)
        except ProbexError as error:
            faults[task] = str(error)
        on_task(f"{task}: {faults[task]}" if task in faults and len(tasks) > 1 else "")
    if not by_task:
        raise ProbexError(next(iter(faults.values())))
    return by_task, faults


def _metrics(
    subject: Subject, by_task: Mapping[str, Sequence[Measured]], faults: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `metrics.json`."""
    expert, store = subject.experts["val"], subject.store
    metrics: dict[str, Any] = {
        "tree": store.tree,
        "layers": list(expert.layers),
        "split": subject.split,
        "store_hash": store.hash,
        "expert_hash": expert.hash,
        "seed": (expert.card.common("recipe") or {}).get("seed"),
        "versions": versions(),
        "not_measured": faults,
    }
    for task, figures in by_task.items():
        metrics[task] = {figure.key: figure.as_json() for figure in figures}
    return metrics


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ProbexError(f"--tasks: {task!r} is not one of {', '.join(TASKS)}")


def _classify(subject: Subject) -> Iterator[Measured]:
    expert, store, split = subject.experts["val"], subject.store, subject.split
    score, logits_NY = evaluate(expert, store, split, subject.encoder)
    classes, task = expert.card.classes, expert.card.task
    y, n_classes = targets(task, store, split, classes), len(classes)

    def named(found: Mapping[int, float]) -> dict[str, float]:
        return {classes[place]: float(value) for place, value in found.items()}

    if store.is_number:  # of which there are no classes
        yield Measured("classify", "accuracy", "R²", "seen", n_classes, score, _chance(score))
        return
    by_class = named(task.accuracy_by_class(logits_NY, y))
    chances = named(dict(enumerate(chance_by_class(task, store, split, classes))))
    of_all = "seen", n_classes, score, _chance(score)
    yield Measured("classify", "accuracy", "accuracy", *of_all, by_class, chances)
    if area := task.auc(logits_NY, y):
        by_class = named(auc_by_class(task.evidence(logits_NY), y))
        of_all, chances = ("seen", n_classes, area, _chance(area)), dict.fromkeys(by_class, 0.5)
        yield Measured("classify", "auc", "macro AUC", *of_all, by_class, chances)


def _chance(score: Score) -> float:
    assert score.chance is not None
    return score.chance


def _zero_shot(subject: Subject) -> Iterator[Measured]:
    expert = subject.experts["val_holdout"]
    found = zero_shot(expert, subject.store, encoder=subject.encoder)
    for key, what, score, classes, count in (
        (
            "among_held_out",
            "accuracy among held-out classes",
            found.among_held_out,
            "held out",
            found.n_held_out,
        ),
        ("among_all", "accuracy among all classes", found.among_all, "in all", found.n_all),
        (
            "seen_among_all",
            "accuracy of seen classes among all",
            found.seen_among_all,
            "in all",
            found.n_all,
        ),
    ):
        if score is None:
            continue
        yield Measured("zero_shot", key, what, classes, count, score, _chance(score))


def _knn(subject: Subject) -> Iterator[Measured]:
    for side in subject.sides:
        k = min(subject.neighbours, len(side.known_NT))
        predicted_Q = knn(side.known_NT, side.known_labels_N, side.queries_QT, k)
        score = share(predicted_Q == side.labels_Q)
        what = f"accuracy of {k} nearest models"
        chance = OneClass().chance(side.known_labels_N, side.labels_Q)
        yield side.measured("knn", "accuracy", what, score, chance)


def _occ(subject: Subject) -> Iterator[Measured]:
    for side in subject.sides:
        if len(np.unique(side.labels_Q)) < 2:
            continue  # a single class
        known = side.known_NT, side.known_labels_N
        near_QC = one_class(*known, side.queries_QT, k=ONE_CLASS_NEIGHBOURS)
        what = f"AUC, distance to {ONE_CLASS_NEIGHBOURS} nearest models"
        yield side.measured("occ", "auc_nearest", what, auc(near_QC, side.labels_Q), 0.5)
        if not all(
            len(np.unique(side.known_NT[side.known_labels_N == y], axis=0)) > 1
            for y in range(len(side.classes))
        ):
            continue  # equal models have no covariance
        score = auc(mahalanobis(*known, side.queries_QT), side.labels_Q)
        yield side.measured("occ", "auc_mahalanobis", "AUC, Mahalanobis distance", score, 0.5)


def _retrieval(subject: Subject) -> Iterator[Measured]:
    for side in subject.sides:
        shares_Y = np.bincount(side.known_labels_N, minlength=len(side.classes))
        chance = float(shares_Y[side.labels_Q].mean() / len(side.known_labels_N))
        # With a greater k not even a perfect ranking would have precision 1.
        k = min(subject.neighbours, int(np.bincount(side.known_labels_N).min()))
        known = side.known_NT, side.known_labels_N
        found = retrieval(*known, side.queries_QT, side.labels_Q, k)
        what = f"like a model, precision at {k}"
        yield side.measured("retrieval", "precision", what, found.precision, chance)
        score = found.mean_average_precision
        what = "like a model, mean average precision"
        yield side.measured("retrieval", "mean_average_precision", what, score, chance)
        if side.expert.card.text is not None:
            yield _by_text(side, subject)


def _by_text(side: _Side, subject: Subject) -> Measured:
    """Ranks the queries by the sentence of each class: here the classes are what is asked."""
    text = side.expert.text
    texts = {**subject.store.texts, **text.texts}
    sentences = class_sentences(side.classes, texts, text.template)
    vectors_YT = side.expert.place(sentences, subject.encoder)
    numbers_Y = np.arange(len(side.classes))
    found = retrieval(side.queries_QT, side.labels_Q, np.asarray(vectors_YT), numbers_Y, k=1)
    score = found.mean_average_precision
    what = "by a text, mean average precision"
    key = "mean_average_precision_by_text"
    return side.measured("retrieval", key, what, score, 1 / len(side.classes))


def _tags(subject: Subject) -> Iterator[Measured]:
    expert, store = subject.experts["val"], subject.store
    known, words = tag_cut(expert), vocabulary(expert, encoder=subject.encoder)
    splits = [s for s in (subject.split, f"{subject.split}_holdout") if store.has(s)]
    found = [stored_tags(expert, store, split, words) for split in splits]
    logits_NV, right_NV = (np.concatenate(each) for each in zip(*found, strict=True))
    p_NV = tag_probabilities(expert, logits_NV, words)
    is_seen_V = np.isin(words.tags, known.seen)
    for name, of in (("seen", is_seen_V), ("held out", ~is_seen_V), ("in all", is_seen_V | True)):
        if right_NV[:, of].any() and (name == "seen" or not is_seen_V.all()):
            figures = tag_figures(p_NV[:, of], known.shown(p_NV[:, of]), right_NV[:, of])
            for key, what, score, chance in figures:
                key = f"{key}_{name.replace(' ', '_')}"
                yield Measured("tags", key, what, name, int(of.sum()), score, chance)


def _sides(subject: Subject) -> Iterator[_Side]:
    store = subject.store
    yield _side(subject.experts["val"], store, "seen", store.seen_classes, "train", subject.split)
    if all(map(store.has, HELD_OUT_SPLITS)):
        check_unseen(subject.experts["val_holdout"], store)
        yield _side(
            subject.experts["val_holdout"],
            store,
            "held out",
            store.held_out_classes,
            "val_holdout",
            "test_holdout",
        )


def _side(
    expert: Expert,
    store: LayerStore,
    name: str,
    classes: tuple[str, ...],
    known: str,
    queried: str,
) -> _Side:
    expert.check_fits(store.tree, store.classes)

    def represented(split: str) -> np.ndarray:
        return np.asarray(expert.encode(store.by_layer(split)))

    known_N = store.class_indices(known, classes)
    queried_Q = store.class_indices(queried, classes)
    # Neighbours cannot find a class without known models: its queries are left out.
    numbers, known_labels_N = np.unique(known_N, return_inverse=True)
    asked_Q = np.isin(queried_Q, numbers)
    return _Side(
        expert=expert,
        name=name,
        classes=tuple(classes[number] for number in numbers),
        known_NT=represented(known),
        known_labels_N=known_labels_N,
        queries_QT=represented(queried)[asked_Q],
        labels_Q=np.searchsorted(numbers, queried_Q[asked_Q]),
    )


TASKS: Mapping[str, Callable[[Subject], Iterator[Measured]]] = {
    "classify": _classify,
    "zero_shot": _zero_shot,
    "knn": _knn,
    "occ": _occ,
    "retrieval": _retrieval,
    "tags": _tags,
}
