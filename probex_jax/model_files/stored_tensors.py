"""The tensors of a model's files: the place of each, and its values."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import ml_dtypes
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.finite import count_unfit, unfit
from probex_jax.model_files.locate import Location
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.shards import Shard, shard_of_tensors
from probex_jax.model_files.untrusted_text import quoted

_NUMPY_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_WHOLE_DTYPES = {f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)}
_RAW_DTYPES = (
    _NUMPY_DTYPES
    | _WHOLE_DTYPES
    | {f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
    | {
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
        "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    }
)


class StoredTensors:
    """Reads tensors, layers or not, and no other bytes of their files.

    Args:
      location: of the files.
      shards: the files, open; closed by `close`.

    Attributes:
      infos: name of every tensor to its dtype and shape, sorted by name.
    """

    def __init__(self, location: Location, shards: Sequence[Shard]):
        self._shards = tuple(shards)
        self._shard_of = shard_of_tensors(location, shards)
        self.infos: Mapping[str, TensorInfo] = {
            name: self._shard_of[name].header.tensors[name] for name in sorted(self._shard_of)
        }

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor: float32 in its shape, a contiguous array of the caller's own.

        Raises:
          ProbexError: if values are NaN or infinite in float32, the dtype is not read, or the file
            cannot be read.
          ValueError: if the files were closed.
        """
        info = self.infos[name]
        return self._values(name, [(0, info.end - info.begin)]).reshape(info.shape)

    def raw(self, name: str) -> np.ndarray:
        """A tensor in its stored dtype and shape; of two values a byte, the bytes [n]."""
        info, (shard, begin) = self.infos[name], self.place(name)
        data = shard.bytes.read(begin, begin + info.end - info.begin)
        if info.dtype not in _RAW_DTYPES:
            return data
        return data.view(_RAW_DTYPES[info.dtype]).reshape(info.shape)

    def rows(self, name: str, rows: Sequence[int], width: int) -> np.ndarray:
        """Some rows of a tensor, taken as [H, width], in float32; errors as `read`."""
        size = width * self._dtype(name).itemsize
        parts = [(row * size, (row + 1) * size) for row in rows]
        return self._values(name, parts).reshape(len(rows), width)

    def number(self, name: str) -> float:
        """The value of a tensor with one element, float or integer.

        Raises:
          ProbexError: as `read`, or if it does not have exactly one element.
        """
        info, (shard, begin) = self.infos[name], self.place(name)
        if math.prod(info.shape) != 1:
            raise ProbexError(f"{shard.where}: {quoted(name)} is no single number")
        if info.dtype not in _WHOLE_DTYPES:
            return float(self.read(name).ravel()[0])
        data = shard.bytes.read(begin, begin + info.end - info.begin)
        return float(data.view(_WHOLE_DTYPES[info.dtype])[0])

    @contextmanager
    def fetched(self, names: Iterable[str]) -> Iterator[None]:
        """Fetches several tensors from a server in few requests; drops them at the end."""
        ranges: dict[Shard, list[tuple[int, int]]] = {}
        for name in names:
            shard, begin = self.place(name)
            size = self.infos[name].end - self.infos[name].begin
            ranges.setdefault(shard, []).append((begin, begin + size))
        try:
            for shard, wanted in ranges.items():
                shard.bytes.fetch(wanted)
            yield
        finally:
            for shard in ranges:
                shard.bytes.forget()

    def place(self, name: str) -> tuple[Shard, int]:
        """The file that holds a tensor, and the tensor's offset in it."""
        shard = self._shard_of[name]
        return shard, shard.data_begin + self.infos[name].begin

    def check_unchanged(self) -> None:
        """Raises a ProbexError if a file was written to since it was opened."""
        for shard in self._shards:
            shard.bytes.check_unchanged()

    def close(self) -> None:
        """Closes the files; what was read stays valid."""
        for shard in self._shards:
            shard.bytes.close()

    def _values(self, name: str, parts: Sequence[tuple[int, int]]) -> np.ndarray:
        """Ranges of bytes of a tensor as one vector of float32."""
        shard, begin = self.place(name)
        dtype = self._dtype(name)
        if len(parts) > 1:
            shard.bytes.fetch((begin + first, begin + last) for first, last in parts)
        read = [shard.bytes.read(begin + first, begin + last) for first, last in parts]
        if len(parts) > 1:
            shard.bytes.forget()
        data = read[0] if len(read) == 1 else np.concatenate(read)
        # Values too large for float32 become infinite here and are counted below.
        with np.errstate(all="ignore"):
            array = data.view(dtype).astype(np.float32, copy=False)
        if bad := count_unfit(array):
            raise unfit(shard.where, name, bad, array.size)
        return array

    def _dtype(self, name: str) -> np.dtype:
        dtype = self.infos[name].dtype
        if dtype not in _NUMPY_DTYPES:
            raise ProbexError(
                f"{self._shard_of[name].where}: tensor {quoted(name)} is of {dtype}, expected one "
                f"of {', '.join(_NUMPY_DTYPES)}"
            )
        return _NUMPY_DTYPES[dtype]
