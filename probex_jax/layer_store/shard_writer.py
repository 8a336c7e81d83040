"""Writes the arrays of a layer store, matrix by matrix, from several threads at once.

The files are, byte for byte, those that TensorStore writes: zarr3 shards (`sharding_indexed`, index
at the end) with one chunk per row, each chunk followed by its CRC-32C.

    shard   chunk, crc, chunk, crc, …, index, crc of the index
    index   for each row of the shard: offset and size of its chunk (crc included), little-endian
            uint64; all bits set for a row without a chunk

Why not TensorStore: it needs a whole shard in memory, copies it three times, and its wheels compute
CRC-32C in software. Writing each matrix to its slot in the file took a tenth of the time to pack,
with a few layers in memory (commit ab961db).
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from probex_jax.bucket_paths import BucketPath, put_and_delete
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, is_full, write_text
from probex_jax.layer_store.arrays import LayerArray, array_metadata

_CRC_BYTES = 4
_NO_CHUNK = 2**64 - 1
_FULL = "no space left on the disk; free some and run the same command again"


class UnwritableError(ProbexError):
    """The store cannot be written: no fault of the model's."""


class LayerWriter:
    """Writes one array [rows, a, b] float32.

    Matrices are first put into slots, the room for one matrix in a shard's file. `finish` then says
    which slots are rows, since the matrices of a model that turns out to be faulty belong to none;
    and `grow`, called by one process, that the array has them.

    Args:
      folder: of the array.
      shape: of a matrix.
      block: rows per shard; a shard is one file.
      made: of an array in a bucket, a folder on the disk where shards are made, to be put whole.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], block: int, made: Path | None = None):
        self._metadata, self._shape, self._block = folder / "zarr.json", shape, block
        self._shards, self._folder = folder / "c", made or folder / "c"
        self._rows: int | None = None
        self._chunk_bytes = 4 * math.prod(shape) + _CRC_BYTES

    def put(self, slot: int, matrix: np.ndarray) -> bytes:
        """Writes a matrix to a slot, in any order and from any thread.

        Args:
          slot: number of the slot, counted from the first shard on.
          matrix: [a, b] float32, contiguous.

        Returns:
          The matrix's CRC-32C.

        Raises:
          UnwritableError: if the file cannot be written.
        """
        checksum = _as_bytes(google_crc32c.value(matrix))
        with self._open(slot // self._block) as shard:
            _write_all(shard, [matrix, checksum], slot % self._block * self._chunk_bytes)
        return checksum

    def finish(self, first: int, slots: Sequence[int]) -> None:
        """Ends a shard with its index.

        Args:
          first: the first row of the shard.
          slots: those that become the rows from `first` on; others are ignored.
        """
        index = np.full([self._block, 2], _NO_CHUNK, "<u8")
        index[: len(slots), 0] = (np.asarray(slots) - first) * self._chunk_bytes
        index[: len(slots), 1] = self._chunk_bytes
        begin = (max(slots) + 1 - first) * self._chunk_bytes
        checksum = _as_bytes(google_crc32c.value(index))
        with self._open(first // self._block) as shard:
            end = _write_all(shard, [index, checksum], begin)
            if os.fstat(shard).st_size > end:  # a killed run left more
                os.ftruncate(shard, end)
        if isinstance(self._shards, BucketPath):
            made = self._file(first // self._block)
            put_and_delete(made, self._shards / made.relative_to(self._folder))

    def drop(self, first: int) -> None:
        """Removes a shard none of whose matrices became rows."""
        with disk_errors(self._folder):
            self._file(first // self._block).unlink(missing_ok=True)

    def grow(self, rows: int) -> None:
        """Gives the array so many rows, if it has less; of several processes one does that."""
        if rows > self._held():
            self._rows = rows
            about, path = array_metadata(self._shape, self._block, rows), str(self._metadata)
            if isinstance(self._metadata, BucketPath):
                return write_text(self._metadata, about)
            with disk_errors(self._metadata):
                with open(f"{path}.partial", "w") as file:
                    file.write(about)
                os.replace(f"{path}.partial", path)

    def check(self, blocks: Mapping[int, int]) -> None:
        """Checks the length of finished shards: writing them does not flush them to the disk.

        Args:
          blocks: number of each shard to its rows.

        Raises:
          ProbexError: if the array has another shape, or a shard is too short, as after a power
            failure.
        """
        self._held()
        if isinstance(self._shards, BucketPath):  # where an object is whole
            return
        for number, rows in blocks.items():
            path = self._file(number)
            with disk_errors(path):
                size = path.stat().st_size
            if size < rows * self._chunk_bytes + 16 * self._block + _CRC_BYTES:
                raise ProbexError(f"{path}: cut short; remove the store and pack it again")

    def _held(self) -> int:
        """The rows that the array has."""
        if self._rows is None:
            folder = self._metadata.parent
            is_there = self._metadata.is_file()
            self._rows = LayerArray.open(folder, self._shape).rows if is_there else 0
        return self._rows

    def _file(self, number: int) -> Path:
        return Path(f"{self._folder}/{number}/0/0")

    @contextmanager
    def _open(self, number: int) -> Iterator[int]:
        """Opens a shard for writing; every OSError inside becomes an UnwritableError."""
        # Not kept open: the factors of a LoRA have hundreds of shards, too many open files.
        path, flags = f"{self._folder}/{number}/0/0", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            try:
                shard = os.open(path, flags, 0o666)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                shard = os.open(path, flags, 0o666)
            try:
                yield shard
            finally:
                os.close(shard)
        except OSError as error:
            reason = _FULL if is_full(error) else error.strerror
            raise UnwritableError(f"{path}: {reason}") from error


def _as_bytes(checksum: int) -> bytes:
    return checksum.to_bytes(_CRC_BYTES, "little")


def _write_all(descriptor: int, parts: Sequence[Any], offset: int) -> int:
    """Writes all parts, though one call may write less, as on a full disk; returns the end."""
    views = [memoryview(part).cast("B") for part in parts]
    while views:
        written = os.pwritev(descriptor, views, offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
    return offset
