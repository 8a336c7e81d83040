"""From model files to rows and vectors of an index, in batches of one shape."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import Expert
from probex_jax.matrices import LowRank, stack
from probex_jax.model_files import open_model
from probex_jax.model_files.locate import SINGLE, locate
from probex_jax.model_files.untrusted_text import is_unicode
from probex_jax.search.folders import FoundModel, files_of, model_path
from probex_jax.search.table import unit

# Models that are embedded by one compiled call, less where their matrices are large.
_BATCH_MODELS = 32
_BATCH_BYTES = 256 * 2**20
_READERS = 4

Matrices = dict[str, np.ndarray | LowRank]  # of one model, by layer
Row = dict[str, Any]


def represented(expert: Expert, path: Path) -> np.ndarray:
    """The representation [T] of one model; a ProbexError if it cannot be read or has none."""
    matrices = {layer: stack([matrix]) for layer, matrix in _read_weights(expert, path).items()}
    return unit(np.asarray(expert.encode(matrices)))[0]


def embedded(
    expert: Expert, models: Sequence[FoundModel], known: Mapping[str, str]
) -> Iterator[tuple[FoundModel, Row, np.ndarray | ProbexError | None]]:
    """Each model with its row for the table and its unit vector [T].

    Args:
      expert: what to embed with.
      models: what to embed.
      known: path to stamp, of the models that an index holds.

    Yields:
      In the place of the vector None for a model that is known as it is now, and a ProbexError
      for one that cannot be embedded.
    """
    model_bytes = sum(4 * height * width for height, width in expert.layers.values())
    size = max(1, min(_BATCH_MODELS, _BATCH_BYTES // model_bytes))
    waiting = iter(models)
    with ThreadPoolExecutor(_READERS) as readers:
        while batch := list(islice(waiting, size)):
            read = list(readers.map(lambda model: _read(expert, model, known), batch))
            vectors = _encoded(expert, [m for _, m in read if isinstance(m, dict)], size)
            for model, (row, result) in zip(batch, read, strict=True):
                yield model, row, next(vectors) if isinstance(result, dict) else result


def key(path: Path) -> str:
    """The path that stands for a model, however it is given.

    Its folder where that is the model (`model.safetensors`, shards, a hub cache), else its file; no
    links on the way, the name of a file as it is.
    """
    path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    folder = path if path.is_dir() else path.parent
    hub = folder.parent.parent
    if folder.parent.name == "snapshots" and files_of(path) and files_of(hub) == files_of(path):
        return str(hub)
    if path.is_dir() or path.name == SINGLE:
        return str(model_path(folder))
    return str(path)


def is_there(path: Path) -> bool:
    """Whether the path still holds a model."""
    files = files_of(path)
    return bool(files) and all(file.exists() for file in files)


def _read(
    expert: Expert, model: FoundModel, known: Mapping[str, str]
) -> tuple[Row, Matrices | ProbexError | None]:
    row: Row = {name: getattr(model, name) for name in ("id", "tree", "split")}
    row["path"] = key(model.path)
    try:
        if not all(map(is_unicode, (model.id, row["path"]))):
            raise ProbexError(f"{row['path']!a}: its name is no Unicode text; rename it")
        row["stamp"] = _stamp(model)
        if known.get(row["path"]) == row["stamp"]:
            return row, None
        row["labels"] = _labels(model)
        row["text"] = ", ".join(model.texts.get(label, label) for label in row["labels"])
        return row, _read_weights(expert, model.path)
    except ProbexError as error:
        return row, error


def _labels(model: FoundModel) -> list[str]:
    """The labels; none where nothing says what they are."""
    with open_model(model.path) as file:
        try:
            return list(model.labels_in(file))
        except ProbexError:
            return []


def _read_weights(expert: Expert, path: Path) -> Matrices:
    with open_model(path) as file:
        return expert.read(file)


def _stamp(model: FoundModel) -> str:
    """Changes whenever the row or the vector of the model may."""
    try:
        found = [(file, file.stat()) for file in locate(model.path).files]
    except OSError as error:
        raise ProbexError(f"{model.path}: cannot be read: {error.strerror}") from error
    files = [[file.name, status.st_size, status.st_mtime_ns] for file, status in found]
    content = [model.id, model.tree, model.split, model.stated, sorted(model.texts.items()), files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _encoded(
    expert: Expert, models: Sequence[Matrices], size: int
) -> Iterator[np.ndarray | ProbexError]:
    """Unit vectors of up to `size` models, in order, from calls of `size` models each."""
    # A layer is kept as factors in some models and multiplied out in others.
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for place, matrices in enumerate(models):
        kind = tuple(isinstance(matrix, LowRank) for matrix in matrices.values())
        kinds.setdefault(kind, []).append(place)
    vectors: dict[int, np.ndarray] = {}
    for places in kinds.values():
        alike = {
            layer: _filled([models[place][layer] for place in places], size)
            for layer in expert.layers
        }
        vectors |= zip(places, np.asarray(expert.encode(alike)), strict=False)
    for place in range(len(models)):
        try:
            yield unit(vectors[place])
        except ProbexError:
            yield ProbexError("its representation is zero or not finite")


def _filled(matrices: list[Any], size: int) -> np.ndarray | LowRank:
    """A batch of `size`, the last ones being copies; ranks are powers of two, to compile few."""
    rank = None
    if isinstance(matrices[0], LowRank):
        rank = 1 << (max(matrix.up.shape[-1] for matrix in matrices) - 1).bit_length()
    return stack([*matrices, *[matrices[0]] * (size - len(matrices))], rank)
