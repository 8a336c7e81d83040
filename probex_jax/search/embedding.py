"""From model files to rows and vectors of an index, in batches of constant shape."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.buckets import address_of, is_address, listed, stated
from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, Read, batch_size, in_batches
from probex_jax.model_files import ModelFile, open_model, read_stated
from probex_jax.model_files.locate import SINGLE, local_files
from probex_jax.model_files.stated import files_of_labels
from probex_jax.model_files.untrusted_text import is_unicode
from probex_jax.search.folders import FoundModel, files_of, model_path
from probex_jax.search.table import unit
from probex_jax.zoo.listed_path import ListedPath

_READERS = 4

Row = dict[str, Any]
Check = Callable[[ModelFile], None]


def represented(expert: Expert, paths: Sequence[Path]) -> list[np.ndarray | ProbexError]:
    """Unit vectors [T] of models; a ProbexError for each model that has none."""

    def read(path: Path) -> Read | ProbexError:
        try:
            return _read_weights(expert, path)
        except ProbexError as error:
            return error

    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(read, paths))
    weights = [one for one in found if isinstance(one, Mapping)]
    vectors = _encoded(expert, weights, batch_size(expert.layers, len(paths)))
    return [next(vectors) if isinstance(one, Mapping) else one for one in found]


def embedded(
    expert: Expert,
    models: Sequence[FoundModel],
    known: Mapping[str, str],
    check: Check = lambda model: None,
) -> Iterator[tuple[FoundModel, Row, np.ndarray | ProbexError | None]]:
    """Each model with its row for the table and its unit vector [T].

    Args:
      expert: encodes the models.
      models: to embed.
      known: path to stamp of the models in the index.
      check: raises a ProbexError for an open model that must not be embedded.

    Yields:
      Instead of the vector, None for an unchanged model and a ProbexError for one that cannot be
      embedded.
    """
    size = batch_size(expert.layers, len(models))
    waiting = iter(models)
    with ThreadPoolExecutor(_READERS) as readers:
        while batch := list(islice(waiting, size)):
            read = list(readers.map(lambda model: _read(expert, model, known, check), batch))
            vectors = _encoded(expert, [m for _, m in read if isinstance(m, Mapping)], size)
            for model, (row, result) in zip(batch, read, strict=True):
                yield model, row, next(vectors) if isinstance(result, Mapping) else result


def key(path: Path) -> str:
    """The canonical path of a model.

    It is the folder if that is the model (`model.safetensors`, shards, a hub cache), else the file.
    Links on the way are resolved, but not a file's own name.
    """
    if is_address(path):
        return address_of(path)
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
    if is_address(path):
        return stated(address_of(path)) is not None or any(listed(address_of(path)))
    files = files_of(path)
    return bool(files) and all(file.exists() for file in files)


def _read(
    expert: Expert, model: FoundModel, known: Mapping[str, str], check: Check
) -> tuple[Row, Read | ProbexError | None]:
    row: Row = {name: getattr(model, name) for name in ("id", "tree", "split")}
    row["path"] = key(model.path)
    try:
        if model.fault:
            raise ProbexError(model.fault)
        if not all(map(is_unicode, (model.id, row["path"]))):
            raise ProbexError(f"{row['path']!a}: its name is not valid Unicode; rename it")
        row["stamp"] = _stamp(model)
        if known.get(row["path"]) == row["stamp"]:
            return row, None
        row["labels"] = _labels(model)
        row["text"] = ", ".join(model.texts.get(label, label) for label in row["labels"])
        return row, _read_weights(expert, model.path, check)
    except ProbexError as error:
        return row, error


def _labels(model: FoundModel) -> list[str]:
    """The labels, or else what its files say of its training data."""
    with open_model(model.path) as file:
        try:
            return list(model.labels_in(file))
        except ProbexError:
            return list(read_stated(file).about)


def _read_weights(expert: Expert, path: Path, check: Check = lambda model: None) -> Read:
    with open_model(path) as file:
        check(file)
        return expert.read(file)


def _stamp(model: FoundModel) -> str:
    """A hash of everything that the row and the vector depend on."""
    files: list[list[str | int]]
    if isinstance(model.path, ListedPath):
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
