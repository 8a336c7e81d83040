"""Matrices of one layer on disk: sharded, checksummed zarr3 arrays, read by TensorStore.

A layer is one array, `matrices` [rows, H, W]. A LoRA layer is two: `up` [rows, H, R] and `down`
[rows, R, W].
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from probex_jax.errors import ProbexError
from probex_jax.files import layer_folder

_CHECKED = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def array_metadata(shape: tuple[int, int], block: int, rows: int) -> str:
    """The content of an array's `zarr.json`, byte for byte as TensorStore writes it.

    Args:
      shape: of a row.
      block: rows per shard; a shard is one file.
      rows: number of rows.
    """
    shards = {
        "chunk_shape": [1, *shape],
        "codecs": _CHECKED,
        "index_codecs": _CHECKED,
    }
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *shape],
        "data_type": "float32",
        "fill_value": 0.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [block, *shape]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": shards}],
    }
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"))


def parts(shape: tuple[int, int], rank: int | None) -> dict[str, tuple[int, int]]:
    """The arrays that hold a layer, each with the shape of a row.

    Example:
      >>> parts((6, 4), None), parts((6, 4), 2)
      ({'matrices': (6, 4)}, {'up': (6, 2), 'down': (2, 4)})
    """
    if rank is None:
        return {"matrices": shape}
    return {"up": (shape[0], rank), "down": (rank, shape[1])}


class LayerArray:
    """One array of a layer, [rows, a, b] float32, read by rows."""

    def __init__(self, path: Path, array: Any):
        self._path = path
        self._array = array

    @classmethod
    def open(cls, store: Path, layer: str, part: str, shape: tuple[int, int]) -> "LayerArray":
        """Opens an array; a ProbexError unless its rows have the given shape."""
        folder = layer_folder(store / "layers", layer)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder.resolve()}/{part}/"},
            # A missing chunk would otherwise read as zeros.
            "fill_missing_data_reads": False,
            "open": True,
        }
        with _one_line_errors(folder):
            array = ts.open(spec).result()
        if array.shape[1:] != shape or array.dtype.name != "float32":
            raise ProbexError(f"{folder}: rows differ from store.json: expected {shape} float32")
        return cls(folder, array)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._array.shape[0])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Reads rows [n] as [n, a, b] float32, in the given order."""
        with _one_line_errors(self._path):
            contiguous = len(rows) > 0 and np.array_equal(rows, rows[0] + np.arange(len(rows)))
            index = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
            return np.asarray(self._array[index].read().result())


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turns TensorStore's errors into one line; only their text tells them apart."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError, KeyError) as error:
        text = str(error)
        if "NOT_FOUND" in text:
            reason = "a part of the store is missing; pack it again"
        elif "DATA_LOSS" in text or "CRC" in text or "FAILED_PRECONDITION" in text:
            reason = f"the store is damaged; pack it again ({text[:200]})"
        else:
            reason = f"cannot be read: {text[:200]}"
        raise ProbexError(f"{path}: {reason}") from error
