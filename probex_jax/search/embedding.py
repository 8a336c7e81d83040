"""From model files to rows and vectors of an index, in batches of constant shape."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.buckets import Refused, Unreachable, address_of, listed, stated
from probex_jax.engine import Part, Work, in_parts
from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, Read, batch_size, in_batches
from probex_jax.forest import Forest
from probex_jax.model_files import ModelFile, Remote, open_model, read_stated
from probex_jax.model_files.hub import hub_address, hub_repo
from probex_jax.model_files.locate import SINGLE, local_files
from probex_jax.model_files.stated import files_of_labels
from probex_jax.model_files.untrusted_text import is_unicode
from probex_jax.prefetch import prefetch
from probex_jax.search.folders import FoundModel, files_of, model_path
from probex_jax.search.vectors import unit
from probex_jax.zoo.listed_path import ListedPath

_READERS = 4

Row = dict[str, Any]
Check = Callable[[ModelFile], None]


def represented(expert: Expert, paths: Sequence[Path]) -> list[np.ndarray | ProbexError]:
    """Unit vectors [T] of models; a ProbexError for each model that has none."""

    def read(path: Path) -> Read | ProbexError:
        try:
            with open_model(path) as file:
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
      forest: refuses models of other trees than the expert's.

    Returns:
      Work on `Asked`: of each its row, and its vector [T]; instead of the vector, None for an
      unchanged model and a ProbexError for one that cannot be embedded.
    """

    stopped = threading.Event()

    def check(model: ModelFile) -> None:
        if forest is not None:
            forest.check_tree(model, expert.card.tree)

    def read(asked: Asked) -> tuple[Row, Read | ProbexError | None]:
        return _read(expert, asked, check, asked.model.remote or Remote(stopped=stopped))

    def compute(part: Part, read: Sequence[tuple[Row, Any]]) -> list[tuple[Row, Any]]:
        vectors = _encoded(expert, [m for _, m in read if isinstance(m, Mapping)], size)
        return [
            (row, next(vectors) if isinstance(found, Mapping) else found) for row, found in read
        ]

    return Work(read, compute, stopped.set)


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


def _read(
    expert: Expert, asked: Asked, check: Check, remote: Remote
) -> tuple[Row, Read | ProbexError | None]:
    model = asked.model
    row: Row = {name: getattr(model, name) for name in ("id", "tree", "split")}
    row["path"] = asked.path
    try:
        if model.fault:
            raise ProbexError(model.fault)
        if not all(map(is_unicode, (model.id, row["path"]))):
            raise ProbexError(f"{row['path']!a}: its name is not valid Unicode; rename it")
        model = _pinned(model, remote)
        row["stamp"] = _stamp(model)
        if asked.stamp == row["stamp"]:
            return row, None
        with open_model(model.path, remote=remote) as file:
            check(file)
            row["labels"] = _labels(model, file)
            row["text"] = ", ".join(model.texts.get(label, label) for label in row["labels"])
            return row, expert.read(file)
    except ProbexError as error:
        return row, error


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


def _stamp(model: FoundModel) -> str:
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
