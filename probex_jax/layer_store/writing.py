"""Writing the arrays of a layer store, matrix by matrix, from several threads at once.

The files are those that TensorStore would write, to the bit: zarr3 shards (`sharding_indexed`, the
index at the end) of one chunk a row, each chunk followed by its CRC-32C. TensorStore wants a whole
shard in memory, copies it three times and computes checksums without the processor's instruction
for them; here a matrix goes from the reader's buffer to its place in the file.

    shard   chunk, crc, chunk, crc, …, index, crc of the index
    index   for each row of the shard: where its chunk begins, its bytes with the crc; little-endian
            uint64, all bits set for a row that has none
"""

import errno
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, layer_folder
from probex_jax.layer_store.arrays import FULL, LayerArray, described

_CRC_BYTES = 4
_NONE = 2**64 - 1


class UnwritableError(ProbexError):
    """The store cannot be written, which is no model's fault."""


class LayerWriter:
    """Writes one array of a layer, [rows, a, b] float32.

    A place is a row of the array and a part of its shard's file. Matrices are written to places
    first; `finish` then says which rows they are, since some may turn out to belong to no model.

    Args:
      store: the store's folder.
      layer: name of the layer.
      part: which of its `arrays.parts`.
      shape: of a matrix.
      block: rows of one shard, which is one file.
    """

    def __init__(self, store: Path, layer: str, part: str, shape: tuple[int, int], block: int):
        folder = layer_folder(store / "layers", layer) / part
        self._description, self._shape, self._block = folder / "zarr.json", shape, block
        self._folder = folder / "c"
        is_there = self._description.exists()
        self._rows = LayerArray.open(store, layer, part, shape).rows if is_there else 0
        self._chunk_bytes = 4 * math.prod(shape) + _CRC_BYTES

    def offset(self, place: int) -> int:
        """Where in a file a matrix lies."""
        return place % self._block * self._chunk_bytes

    def put(self, place: int, pieces: Iterable[np.ndarray]) -> bytes:
        """Writes a matrix to a place, in any order and from any thread.

        Args:
          place: where.
          pieces: its values one after the other, contiguous float32; each piece may take the
            memory of the one before. A ProbexError of theirs leaves zeros in the place.

        Returns:
          Its CRC-32C.
        """
        offset = self.offset(place)
        end = offset + self._chunk_bytes - _CRC_BYTES
        checksum = 0
        try:
            descriptor = self._open(place // self._block)
            try:
                for piece in pieces:
                    checksum = google_crc32c.extend(checksum, piece)
                    is_last = offset + piece.nbytes == end
                    parts = [piece, _as_bytes(checksum)] if is_last else [piece]
                    offset = _write_all(descriptor, parts, offset)
            except ProbexError:  # the values are unfit: the place is to be as if never written
                begin = self.offset(place)
                _write_all(descriptor, [bytes(offset - begin)], begin)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unwritable(place // self._block, error) from error
        return _as_bytes(checksum)

    def finish(self, first: int, places: Sequence[int]) -> None:
        """Ends a shard, and the array with its last row.

        Args:
          first: the first row of the shard.
          places: of the matrices that are the rows from `first` on; the others count for nothing.
        """
        index = np.full([self._block, 2], _NONE, "<u8")
        index[: len(places), 0] = (np.asarray(places) - first) * self._chunk_bytes
        index[: len(places), 1] = self._chunk_bytes
        begin = (max(places) + 1 - first) * self._chunk_bytes
        checksum = _as_bytes(google_crc32c.value(index))
        try:
            descriptor = self._open(first // self._block)
            try:
                end = _write_all(descriptor, [index, checksum], begin)
                if os.fstat(descriptor).st_size > end:  # a killed run left more
                    os.ftruncate(descriptor, end)
            finally:
                os.close(descriptor)
            self._rows = max(self._rows, first + len(places))
            self._describe()
        except OSError as error:
            raise self._unwritable(first // self._block, error) from error

    def drop(self, first: int) -> None:
        """Removes a shard of no rows, of which matrices may have been written."""
        with disk_errors(self._folder):
            self._file(first // self._block).unlink(missing_ok=True)

    def check(self, first: int, rows: int) -> None:
        """Checks that a finished shard is as long as it was: nothing is flushed to the disk here.

        Raises:
          ProbexError: if it is not, as where the power failed.
        """
        path = self._file(first // self._block)
        with disk_errors(path):
            size = path.stat().st_size
        if size < rows * self._chunk_bytes + 16 * self._block + _CRC_BYTES:
            raise ProbexError(f"{path}: cut short; remove the store and pack it again")

    def _file(self, number: int) -> Path:
        return Path(f"{self._folder}/{number}/0/0")

    def _describe(self) -> None:
        """Writes how many rows there are: whole or not at all."""
        path = str(self._description)
        with open(f"{path}.partial", "w") as file:
            file.write(described(self._shape, self._block, self._rows))
        os.replace(f"{path}.partial", path)

    def _open(self, number: int) -> int:
        # Not kept open: a LoRA's hundreds of factors would be more files than a process may have.
        path, flags = f"{self._folder}/{number}/0/0", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return os.open(path, flags, 0o666)

    def _unwritable(self, number: int, error: OSError) -> UnwritableError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return UnwritableError(f"{self._file(number)}: {FULL if full else error.strerror}")


def _as_bytes(checksum: int) -> bytes:
    return checksum.to_bytes(_CRC_BYTES, "little")


def _write_all(descriptor: int, parts: Sequence[Any], offset: int) -> int:
    """Writes all, where one call may write less, as on a disk that is nearly full; the end."""
    views = [memoryview(part).cast("B") for part in parts]
    while views:
        written = os.pwritev(descriptor, views, offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
    return offset
