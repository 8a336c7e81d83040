"""From model files to rows and vectors of an index, in batches of constant shape."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.buckets import Refused, Unreachable, address_of, listed, stated
from probex_jax.engine import Part, Work, in_parts
from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, Read, batch_size, in_batches
from probex_jax.forest import Answer, Forest, Tree
from probex_jax.model_files import ModelFile, Remote, open_model, read_stated
from probex_jax.model_files.hub import hub_address, hub_repo
from probex_jax.model_files.locate import SINGLE, local_files
from probex_jax.model_files.stated import files_of_labels
from probex_jax.model_files.untrusted_text import is_unicode
from probex_jax.prefetch import prefetch
from probex_jax.search.attributes import attributes_of
from probex_jax.search.folders import FoundModel, files_of, model_path
from probex_jax.search.vectors import unit
from probex_jax.zoo.listed_path import ListedPath

_READERS = 4

Row = dict[str, Any]
Check = Callable[[ModelFile], None]


def represented(
    expert: Expert, paths: Sequence[Path], remote: Remote | None = None
) -> list[np.ndarray | ProbexError]:
    """Unit vectors [T] of models, read as `open_model` does; a ProbexError for each without."""

    def read(path: Path) -> Read | ProbexError:
        try:
            with open_model(path, remote=remote) as file:
                return expert.read(file)
        except ProbexError as error:
            return error

    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(read, paths))
    weights = [one for one in found if isinstance(one, Mapping)]
    vectors = _encoded(expert, weights, batch_size(expert.layers, len(paths)))
    return [next(vectors) if isinstance(one, Mapping) else one for one in found]


@dataclass(frozen=True)
class Asked:
    """A model to be embedded.

    Args:
      model: which.
      path: its canonical path.
      stamp: the one in the index; None if it is not there.
    """

    model: FoundModel
    path: str
    stamp: str | None


def each_asked(
    models: Iterable[FoundModel],
    stamps: Callable[[Sequence[str]], Mapping[str, str]],
    at_a_time: int,
) -> Iterator[Asked]:
    """Models with what an index knows of them, as `stamps` says of so many at a time.

    Of several that have one path the first one counts; of each a few bytes are kept.
    """
    seen: set[int] = set()
    paths = prefetch(lambda model: key(model.path), models, _READERS, beyond=at_a_time)
    for part in in_parts(paths, at_a_time):
        known = stamps([path for _, path in part if is_unicode(path)])
        for model, path in part:
            if hash(path) not in seen:
                seen.add(hash(path))
                yield Asked(model, path, known.get(path))


def embedding(expert: Expert, size: int, forest: Forest | None) -> Work:
    """What turns models into rows of a table and unit vectors.

    Args:
      expert: encodes the models.
      size: models of a compiled call.
      forest: refuses models of other trees than the expert's, and predicts their attributes.

    Returns:
      Work on `Asked`: of each its row, and its vector [T]; instead of the vector, None for an
      unchanged model and a ProbexError for one that cannot be embedded.
    """

    stopped = threading.Event()
    tree = predicting(forest, expert)

    def check(model: ModelFile) -> None:
        if forest is not None:
            forest.check_tree(model, expert.card.tree)

    def read(asked: Asked) -> _Seen:
        return _read(expert, tree, asked, check, asked.model.remote or Remote(stopped=stopped))

    def compute(part: Part, seen: Sequence[_Seen]) -> list[tuple[Row, Any]]:
        whole = [one.found for one in seen if isinstance(one.found, Mapping)]
        vectors = _encoded(expert, whole, size)
        of_tree = [one.for_tree for one in seen if isinstance(one.found, Mapping)]
        answers = iter(tree.answers(of_tree, size) if tree else [()] * len(whole))
        return [
            _embedded(one.row, next(vectors), next(answers))
            if isinstance(one.found, Mapping)
            else (one.row, one.found)
            for one in seen
        ]

    return Work(read, compute, stopped.set)


def predicting(forest: Forest | None, expert: Expert) -> Tree | None:
    """The tree whose experts predict named attributes of an expert's models; None without one."""
    tree = None if forest is None else forest.tree_of(expert.card.tree)
    return tree if tree is not None and any(tree.entries) else None


def _embedded(
    row: Row, vector: np.ndarray | ProbexError, answers: Sequence[Answer] | ProbexError
) -> tuple[Row, np.ndarray | ProbexError]:
    if isinstance(answers, ProbexError):
        return row, answers
    return row | {"attributes": attributes_of(answers)}, vector


def key(path: Path) -> str:
    """The canonical path of a model.

    It is the folder if that is the model (`model.safetensors`, shards, a hub cache), else the file.
    Links on the way are resolved, but not a file's own name.
    """
    if url := address_of(path):
        return url
    path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    folder = path if path.is_dir() else path.parent
    hub = folder.parent.parent
    if folder.parent.name == "snapshots" and files_of(path) and files_of(hub) == files_of(path):
        return str(hub)
    if path.is_dir() or path.name == SINGLE:
        return str(model_path(folder))
    return str(path)


def is_there(path: Path) -> bool:
    """Whether there still is a model at the path."""
    if url := address_of(path):
        try:
            if address := hub_address(url):
                return bool(hub_repo(address, Remote()).files)
        except (Unreachable, Refused):
            raise
        except ProbexError:
            return False
        return stated(url) is not None or any(listed(url))
    files = files_of(path)
    return bool(files) and all(file.exists() for file in files)


@dataclass(frozen=True)
class _Seen:
    """What is read of a model.

    Args:
      row: its fields.
      found: what its expert reads of it; None of an unchanged model, or why it cannot be read.
      for_tree: what the experts of its tree read, by label set.
    """

    row: Row
    found: Read | ProbexError | None
    for_tree: Mapping[str, Read] = field(default_factory=dict)


def _read(expert: Expert, tree: Tree | None, asked: Asked, check: Check, remote: Remote) -> _Seen:
    model = asked.model
    row: Row = {name: getattr(model, name) for name in ("id", "tree", "split")}
    row["path"] = asked.path
    try:
        if model.fault:
            raise ProbexError(model.fault)
        if not all(map(is_unicode, (model.id, row["path"]))):
            raise ProbexError(f"{row['path']!a}: its name is not valid Unicode; rename it")
        model = _pinned(model, remote)
        row["stamp"] = _stamp(model, tree)
        if asked.stamp == row["stamp"]:
            return _Seen(row, None)
        with open_model(model.path, remote=remote) as file:
            check(file)
            row["labels"] = _labels(model, file)
            row["text"] = ", ".join(model.texts.get(label, label) for label in row["labels"])
            read = {expert.hash: expert.read(file)}
            others = {} if tree is None else tree.experts
            for one in others.values():
                if one.hash not in read:
                    read[one.hash] = one.read(file)
            for_tree = {label_set: read[one.hash] for label_set, one in others.items()}
            return _Seen(row, read[expert.hash], for_tree)
    except ProbexError as error:
        return _Seen(row, error)


def _pinned(model: FoundModel, remote: Remote) -> FoundModel:
    """The model; of one on the hub, at the commit that its branch has now."""
    url = address_of(model.path)
    address = hub_address(url) if url else None
    if address is None:
        return model
    commit = hub_repo(address, remote).commit
    return dataclasses.replace(model, path=Path(str(dataclasses.replace(address, revision=commit))))


def _labels(model: FoundModel, file: ModelFile) -> list[str]:
    """The labels, or else what its files say of its training data."""
    try:
        return list(model.labels_in(file))
    except ProbexError:
        return list(read_stated(file).about)


def _stamp(model: FoundModel, tree: Tree | None) -> str:
    """A hash of everything that the row and the vector depend on."""
    files: list[list[str | int]]
    url = address_of(model.path)
    if url and not isinstance(model.path, ListedPath):
        entry = None if hub_address(url) else stated(url)
        files = [[url] if entry is None else [url, entry.size, entry.etag]]
    elif isinstance(model.path, ListedPath):
        beside = model.path.tree.get(model.path.parts[:-1], {})
        near = [(name, beside.get(name)) for name in files_of_labels(model.path.stem)]
        entries = [*model.path.files(), *((name, entry) for name, entry in near if entry)]
        files = [[name, entry.size, entry.etag] for name, entry in entries]
    else:
        try:
            weights = local_files(model.path)
            told = map(weights[0].with_name, files_of_labels(weights[0].stem))
            read = [*weights, *(file for file in told if file.is_file())]
            states = [(file, file.stat()) for file in read]
        except OSError as error:
            raise ProbexError(f"{model.path}: cannot be read: {error.strerror}") from error
        files = [[file.name, status.st_size, status.st_mtime_ns] for file, status in states]
    content = [model.id, model.tree, model.split, model.stated, sorted(model.texts.items()), files]
    if tree is not None:
        content.append([entry.hash for entry in tree.entries.values()])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _encoded(
    expert: Expert, models: Sequence[Read], size: int
) -> Iterator[np.ndarray | ProbexError]:
    """Unit vectors of models, in order; every compiled call has `size` models."""
    vectors: dict[int, np.ndarray] = {}
    for places, batch in in_batches(expert, models, size):
        vectors |= zip(places, np.asarray(expert.encode(batch)), strict=False)
    for place in range(len(models)):
        try:
            yield unit(vectors[place])
        except ProbexError:
            yield ProbexError("its representation is zero or not finite")
