"""What every container says before its weights are read: tensors, metadata, how to read them."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.flax_names import Form
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

# The names that safetensors has for NumPy's dtypes.
NUMPY_DTYPES: Mapping[str, np.dtype] = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
    "C64": np.dtype("<c8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}

# What is decompressed may be this many times as long; trained weights are hardly compressible.
_RATIO = 100
_SMALL = 16 * 2**20
_WINDOW = 4096  # bytes that are read at once, at least


@dataclass(frozen=True)
class Contained:
    """What a container holds.

    Args:
      tensors: by name, as stored.
      metadata: free text.
      data_begin: where the bytes of tensors are counted from.
      size: bytes that were read to know all this.
      readers: of the tensors that are not simply bytes of the file.
      forms: what the tensors are in PyTorch; None to tell by their names.
      nested: whether names are paths in a tree of parameters.
      warnings: for the user.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_begin: int = 0
    size: int = 0
    readers: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    forms: Mapping[str, Form] | None = None
    nested: bool = False
    warnings: tuple[str, ...] = ()


def dtype_name(dtype: np.dtype) -> str:
    """The name of a dtype in safetensors, in either order of bytes; else NumPy's own."""
    if not isinstance(dtype, np.dtype):
        return str(dtype)  # of keys, which JAX alone knows
    if dtype == np.dtype("V2"):
        return "BF16"  # NumPy's files forget what it was
    return _NAMES.get(dtype.newbyteorder("<"), str(dtype))


def as_native(values: np.ndarray) -> np.ndarray:
    """Values in this machine's order of bytes."""
    if values.dtype == np.dtype("V2"):
        return values.view(ml_dtypes.bfloat16)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def check_unpacked(where: str, name: str, unpacked: int, packed: int) -> None:
    """Raises a ProbexError if a tensor would be far longer than what it is unpacked from."""
    if unpacked > max(_SMALL, _RATIO * packed):
        raise ProbexError(
            f"{where}: tensor {quoted(name)}: {packed} bytes would be unpacked to {unpacked}"
        )


@contextmanager
def foreign(where: str, what: str) -> Iterator[None]:
    """Makes one line of whatever a library raises about a stranger's file."""
    try:
        yield
    except ProbexError:
        raise
    except Exception as error:
        reason = quoted(" ".join(str(error).split()), 200)
        raise ProbexError(f"{where}: no {what}, or damaged: {reason}") from error


class NoBytes:
    """A `Bytes` without bytes, since all tensors have readers.

    Args:
      name: for messages.
    """

    size = 0

    def __init__(self, name: str):
        self.name = name

    def read(self, begin: int, end: int) -> np.ndarray:
        """Is never asked."""
        raise NotImplementedError

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Does nothing."""

    def forget(self) -> None:
        """Does nothing."""

    def check_unchanged(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Cursor:
    """Reads the structure of a file from its beginning, at most `limit` bytes of it.

    Args:
      file: what is read.
      limit: of the bytes that are taken, not skipped.
      window: bytes that are read at once.
    """

    def __init__(self, file: Bytes, limit: int, window: int):
        self.at = self.taken = 0
        self._file, self._limit, self._window = file, limit, window
        self._held, self._begin = b"", 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        at = self.at - self._begin
        if at < 0 or at + size > len(self._held):
            self._read(size)
            at = 0
        self.at += size
        self.taken += size
        if self.taken > self._limit:
            raise ProbexError(
                f"{self._file.name}: over {self._limit} bytes describe the tensors, the limit"
            )
        return self._held[at : at + size]

    def _read(self, size: int) -> None:
        self._check_there(size)
        if self.taken + size > self._limit:
            size = 0  # which `take` refuses
        last = min(self._file.size, self.at + max(size, self._window))
        self._begin, self._held = self.at, self._file.read(self.at, last).tobytes()

    def skip(self, size: int) -> None:
        """Moves on without reading."""
        self._check_there(size)
        self.at += size

    def _check_there(self, size: int) -> None:
        if (missing := self.at + size - self._file.size) > 0:
            raise ProbexError(f"{self._file.name}: truncated: {missing} bytes are missing")


class Stream(io.RawIOBase):
    """A file, or some bytes of it, as libraries read files; until `opened`, at most `limit` bytes.

    Args:
      file: what is read.
      limit: of bytes.
      begin, end: of the part.
    """

    def __init__(self, file: Bytes, limit: int, begin: int = 0, end: int | None = None):
        self._file, self._left, self._begin = file, limit, begin
        self._size = (file.size if end is None else end) - begin
        self._at, self.opened, self.read_bytes = 0, False, 0
        self._held, self._from = b"", 0

    def readable(self) -> bool:
        """That it can be read."""
        return True

    def seekable(self) -> bool:
        """That any place in it can be read."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes to another place."""
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise ValueError("a place before the beginning")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        """As many bytes as there are, or as are asked for."""
        left = max(0, self._size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        self.read_bytes += count
        if self.read_bytes > self._left and not self.opened:
            raise ProbexError(
                f"{self._file.name}: over {self._left} bytes describe the tensors, the limit"
            )
        begin = self._begin + self._at
        self._at += count
        if begin < self._from or begin + count > self._from + len(self._held):
            last = min(self._file.size, begin + max(count, _WINDOW))
            self._from, self._held = begin, self._file.read(begin, last).tobytes()
        return self._held[begin - self._from : begin - self._from + count]
