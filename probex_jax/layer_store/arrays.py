"""Matrices of one layer on disk: sharded, checksummed zarr3 arrays, read by TensorStore.

A layer is one array, `matrices` [rows, H, W]. A LoRA layer is two: `up` [rows, H, R] and `down`
[rows, R, W]. Vectors, which are many and small, share arrays [rows, 1, entries].
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from probex_jax.bucket_paths import BucketPath, s3_endpoint
from probex_jax.errors import ProbexError
from probex_jax.files import layer_folder

# Of TensorStore's driver for S3; by default it waits a second before the first.
_RETRIES = {"max_retries": 8, "initial_delay": "250ms", "max_delay": "10s"}

# Entries of an array of vectors, unless a single vector has more.
_TOGETHER = 4096
# Whoever reads a vector reads its whole array, and finds the next vector in the cache.
_CACHE_BYTES = 64 * 2**20

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


class Place(NamedTuple):
    """Where a vector lies: the number of its array, and its first entry there."""

    array: int
    start: int


def places(sizes: Mapping[str, int]) -> dict[str, Place]:
    """Divides vectors among arrays.

    Args:
      sizes: name to number of entries, in the order in which they are read.

    Example:
      >>> places({"a": 3000, "b": 1000, "c": 500})
      {'a': Place(array=0, start=0), 'b': Place(array=0, start=3000), 'c': Place(array=1, start=0)}
    """
    found: dict[str, Place] = {}
    array, end = 0, 0
    for name, size in sizes.items():
        if end and end + size > _TOGETHER:
            array, end = array + 1, 0
        found[name] = Place(array, end)
        end += size
    return found


def array_sizes(sizes: Mapping[str, int], at: Mapping[str, Place]) -> dict[int, int]:
    """The number of entries of each array of vectors."""
    ends: dict[int, int] = {}
    for name, place in at.items():
        ends[place.array] = max(ends.get(place.array, 0), place.start + sizes[name])
    return ends


def cache() -> ts.Context:
    """Room for rows that were read, shared by the arrays that are opened with it."""
    return ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})


def part_folder(store: Path, layer: str, part: str) -> Path:
    """The folder of an array of a layer."""
    return layer_folder(store / "layers", layer) / part


def vectors_folder(store: Path, number: int) -> Path:
    """The folder of an array of vectors."""
    return store / "vectors" / str(number)


class LayerArray:
    """An array [rows, a, b] float32, read by rows."""

    def __init__(self, path: Path, array: Any):
        self._path = path
        self._array = array

    @classmethod
    def open(
        cls, folder: Path, shape: tuple[int, int], cache: ts.Context | None = None
    ) -> "LayerArray":
        """Opens an array; a ProbexError unless its rows have the given shape."""
        spec = {
            "driver": "zarr3",
            "kvstore": _kvstore(folder),
            # A missing chunk would otherwise read as zeros.
            "fill_missing_data_reads": False,
            "open": True,
            "recheck_cached_data": "open",
        }
        with _one_line_errors(folder):
            array = ts.open(spec, context=cache).result()
        if array.shape[1:] != shape or array.dtype.name != "float32":
            raise ProbexError(f"{folder}: rows differ from store.json: expected {shape} float32")
        return cls(folder, array)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._array.shape[0])

    def read(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Reads rows [n] as [n, a, b] float32, in the given order; of them some columns."""
        with _one_line_errors(self._path):
            contiguous = len(rows) > 0 and np.array_equal(rows, rows[0] + np.arange(len(rows)))
            index = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
            return np.asarray(self._array[index][:, :, columns].read().result())


def _kvstore(folder: Path) -> dict[str, Any]:
    """Where TensorStore finds the files of a folder."""
    if not isinstance(folder, BucketPath):
        return {"driver": "file", "path": f"{folder.resolve()}/"}
    scheme, bucket, *keys = folder.parts
    place = {"bucket": bucket, "path": "/".join(keys) + "/"}
    if scheme == "gs:":
        return {"driver": "gcs", **place}
    told = {
        "endpoint": s3_endpoint(),
        "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    # By default it looks in files, and says on standard error that there are none.
    kind = "environment" if "AWS_ACCESS_KEY_ID" in os.environ else "default"
    if os.environ.get("AWS_SKIP_SIGNATURE"):
        kind = "anonymous"
    told = {name: value for name, value in told.items() if value}
    return {
        "driver": "s3",
        **place,
        **told,
        "aws_credentials": {"type": kind},
        "context": {"s3_request_retries": _RETRIES},
    }


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
