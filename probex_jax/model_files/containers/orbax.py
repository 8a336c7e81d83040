"""Folders of Orbax: a zarr array for each parameter, together in an OCDBT store or not.

Orbax's own restoring makes the whole tree from the checkpoint's metadata, and reads it at once.
TensorStore, below it, opens one array at a time, and says its shape before anything is read.
"""

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from probex_jax.errors import ProbexError
from probex_jax.model_files.byte_ranges import read_small
from probex_jax.model_files.containers.header import (
    Contained,
    NoBytes,
    check_unpacked,
    dtype_name,
    foreign,
)
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import json_object, quoted

_TREE = "_METADATA"
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}
_VALUES_A_TENSOR = 40


class Checkpoint(NoBytes):
    """The files of a checkpoint.

    Args:
      path: of the folder.
      files: in it.
    """

    def __init__(self, path: Path, files: Iterable[str]):
        super().__init__(str(path))
        self.path, self._files = path, {file: _state(file) for file in files}
        self.total = sum(size for size, _ in self._files.values())

    def check_unchanged(self) -> None:
        """Raises a ProbexError if a file was written to since the checkpoint was opened."""
        for file, state in self._files.items():
            if _state(file) != state:
                raise ProbexError(f"{file}: changed while it was read; try again")


def _state(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError as error:
        raise ProbexError(f"{file}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ProbexError(f"{file}: not a regular file")
    return status.st_size, status.st_mtime_ns


def read_checkpoint(folder: Checkpoint, limits: Limits) -> Contained:
    """The arrays of a checkpoint, by the keys of its tree."""
    names = dict(_names(folder, limits))
    tensors: dict[str, TensorInfo] = {}
    readers = {}
    base: dict[str, Any] = {"driver": "file", "path": f"{folder.path}/"}
    if (folder.path / "manifest.ocdbt").exists():
        base = {"driver": "ocdbt", "base": f"file://{folder.path}/"}
    with foreign(folder.name, "checkpoint of Orbax"):
        keys = ts.KvStore.open(base).result().list().result()
        if len(keys) > 100 * limits.tensors:
            raise ProbexError(f"{folder.name}: {len(keys)} entries in it")
        for key in sorted(key.decode() for key in keys):
            path, _, last = key.rpartition("/")
            if last not in _DRIVERS or not path:
                continue
            if len(tensors) >= limits.tensors:
                raise ProbexError(f"{folder.name}: over {limits.tensors} tensors, the limit")
            spec = {"driver": _DRIVERS[last], "kvstore": _within(base, path)}
            store = ts.open(
                {**spec, "fill_missing_data_reads": False}, open=True, read=True
            ).result()
            name = names.get(path, path)
            dtype = np.dtype(store.dtype.numpy_dtype)
            chunk = (
                math.prod(size or 1 for size in store.chunk_layout.read_chunk.shape or ())
                * dtype.itemsize
            )
            for size in (math.prod(store.shape) * dtype.itemsize, chunk):
                check_unpacked(folder.name, name, size, folder.total)
            tensors[name] = TensorInfo(dtype_name(dtype), tuple(store.shape))
            readers[name] = partial(_read, folder, name, spec, tuple(store.shape))
    return Contained(tensors, readers=readers, nested=True)


def _within(base: Mapping[str, Any], path: str) -> dict[str, Any]:
    before = base.get("path", "")
    return {**base, "path": f"{before}{path}/"}


def _names(folder: Checkpoint, limits: Limits) -> Iterator[tuple[str, str]]:
    """The path of each array, with its keys joined by slashes."""
    file = folder.path / _TREE
    if not file.exists():
        return
    where = str(file)
    values = _VALUES_A_TENSOR * limits.tensors
    data = read_small(file, limits.header_bytes)
    tree = json_object(data, where, depth=limits.depth, values=values).get("tree_metadata")
    for entry in tree.values() if isinstance(tree, dict) else ():
        keys = entry.get("key_metadata") if isinstance(entry, dict) else None
        if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
            raise ProbexError(f"{where}: {quoted(entry)} has no keys")
        path = [str(key.get("key")) for key in keys]
        yield ".".join(path), "/".join(path)


def _read(
    folder: Checkpoint, name: str, spec: Mapping[str, Any], shape: tuple[int, ...]
) -> np.ndarray:
    where = f"{folder.name}: tensor {quoted(name)}"
    with foreign(where, "array of zarr"):
        store = ts.open({**spec, "fill_missing_data_reads": False}, open=True, read=True).result()
        if tuple(store.shape) != shape:
            raise ProbexError(f"{where}: changed while it was read; try again")
        return np.ascontiguousarray(store.read().result())
