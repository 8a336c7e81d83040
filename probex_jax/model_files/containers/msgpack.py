"""Flax's msgpack files: maps of maps, and arrays as extensions of [shape, dtype, bytes].

`flax.serialization.msgpack_restore` needs all weights in memory. Here only what stands before the
bytes of each array is read.
"""

import math
from collections.abc import Callable
from functools import partial

import msgpack
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.header import NUMPY_DTYPES, Contained, Cursor, dtype_name
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import MAX_AXES, MAX_INT, TensorInfo
from probex_jax.model_files.untrusted_text import quoted

_WINDOW = 4096
_NDARRAY, _SCALAR = 1, 3  # codes of Flax's extensions
_ARRAY_BYTES = 96  # at most, of what stands before an array's own
_BIN_BYTES = (2, 3, 5)  # of these, the last: the length
_CHUNKED = "__msgpack_chunked_array__"
_MAX_KEY, _MAX_OTHERS = 1000, 20_000
_NO_ARRAY = "no array of a shape, a dtype and bytes"

_DTYPES = {dtype.name: dtype for dtype in NUMPY_DTYPES.values()}

Path = tuple[str, ...]

# The kind of value that a first byte begins, and how many bytes its length, or a number, has.
_CODES = (
    {0xC0: ("nil", 0), 0xC2: ("number", 0), 0xC3: ("number", 0)}
    | {0xC4 + i: ("bin", 1 << i) for i in range(3)}
    | {0xC7 + i: ("ext", 1 << i) for i in range(3)}
    | {0xCA: ("number", 4), 0xCB: ("number", 8)}
    | {0xCC + i: ("number", 1 << i) for i in range(4)}
    | {0xD0 + i: ("number", 1 << i) for i in range(4)}
    | {0xD4 + i: ("fixext", 1 << i) for i in range(5)}
    | {0xD9 + i: ("str", 1 << i) for i in range(3)}
    | {0xDC + i: ("array", 2 << i) for i in range(2)}
    | {0xDE + i: ("map", 2 << i) for i in range(2)}
)
_FIXED = {0x8: ("map", 0x0F), 0x9: ("array", 0x0F), 0xA: ("str", 0x1F), 0xB: ("str", 0x1F)}


def read_msgpack(file: Bytes, limits: Limits) -> Contained:
    """The arrays of a msgpack file, by the keys that lead to them."""
    return _Walk(file, limits).contained()


class _Walk:
    def __init__(self, file: Bytes, limits: Limits):
        self._file, self._limits, self._values = file, limits, 0
        self._cursor = Cursor(file, limits.header_bytes, _WINDOW)
        self._numbers: dict[Path, int] = {}
        self._arrays: dict[Path, TensorInfo] = {}
        self._readers: dict[Path, Callable[[], np.ndarray]] = {}

    def contained(self) -> Contained:
        kind, count = self._head()
        if kind != "map":
            raise self._refusal((), "no msgpack file of Flax, which begins with a map")
        self._children((), kind, count)
        if self._cursor.at != self._file.size:
            raise self._refusal((), f"{self._file.size - self._cursor.at} bytes after the end")
        return Contained(
            {"/".join(path): info for path, info in self._arrays.items()},
            size=self._cursor.taken,
            readers={"/".join(path): read for path, read in self._readers.items()},
            nested=True,
        )

    def _children(self, path: Path, kind: str, count: int) -> int:
        if len(path) >= self._limits.depth:
            raise self._refusal(path, f"nested too deeply, the limit is {self._limits.depth}")
        known: dict[str, int] = {}
        for number in range(count):
            key = self._key(path) if kind == "map" else str(number)
            if key in known:
                raise self._refusal(path, f"the key {quoted(key)} twice")
            known[key] = self._value((*path, key))
        if _CHUNKED in known:
            self._join(path, known.get("shape", 0), known.get("chunks", 0))
        return count

    def _key(self, path: Path) -> str:
        kind, size = self._head()
        if kind == "number":
            return str(size)
        if kind not in ("str", "bin") or size > _MAX_KEY:
            raise self._refusal(path, "a key that is not a string")
        try:
            return self._cursor.take(size).decode()
        except UnicodeDecodeError as error:
            raise self._refusal(path, "a key that is not a string") from error

    def _value(self, path: Path) -> int:
        """Notes what is there; returns how many values are in it."""
        self._values += 1
        if self._values > _MAX_OTHERS + 8 * len(self._arrays):
            raise self._refusal(path, f"among over {_MAX_OTHERS} values that are not arrays")
        if len(self._arrays) > self._limits.tensors:
            raise self._refusal((), f"over {self._limits.tensors} tensors, the limit")
        kind, size = self._head()
        if kind in ("map", "array"):
            return self._children(path, kind, size)
        if kind == "number":
            self._numbers[path] = size
            return 0
        code = self._cursor.take(1)[0] if kind == "ext" else None
        end = self._cursor.at + size
        if code in (_NDARRAY, _SCALAR):
            self._arrays[path] = self._array(path, end)
        self._cursor.skip(end - self._cursor.at)
        return 0

    def _array(self, path: Path, end: int) -> TensorInfo:
        """An array, of which the bytes stand last."""
        begin, unpacker = self._cursor.at, msgpack.Unpacker()
        try:
            unpacker.feed(self._cursor.take(min(_ARRAY_BYTES, end - begin)))
            parts, shape, name = unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()
        except (msgpack.UnpackException, ValueError) as error:
            raise self._refusal(path, _NO_ARRAY) from error
        is_shape = isinstance(shape, list) and len(shape) <= MAX_AXES
        if not (
            parts == 3
            and is_shape
            and all(type(size) is int and size >= 0 for size in shape)
            and isinstance(name, str)
        ):
            raise self._refusal(path, _NO_ARRAY)
        dtype = _DTYPES.get(name)
        if dtype is None:
            return TensorInfo(quoted(name, 40), tuple(shape))
        data = end - math.prod(shape) * dtype.itemsize
        if data - begin - unpacker.tell() not in _BIN_BYTES:
            raise self._refusal(
                path, f"{dtype} of shape {quoted(shape)}, in {end - begin - unpacker.tell()} bytes"
            )
        return TensorInfo(dtype_name(dtype), tuple(shape), data, end)

    def _join(self, path: Path, axes: int, count: int) -> None:
        """Puts an array together that is in chunks, since msgpack holds at most 2 GiB."""
        try:
            shape = tuple(self._numbers[(*path, "shape", str(i))] for i in range(axes))
            infos = [self._arrays.pop((*path, "chunks", str(i))) for i in range(count)]
        except KeyError as error:
            raise self._refusal(path, "an array whose chunks are not in order") from error
        dtypes = {info.dtype for info in infos}
        elements = sum(math.prod(info.shape) for info in infos)
        if math.prod(shape) != elements or len(dtypes) != 1 or not all(i.end for i in infos):
            raise self._refusal(path, f"an array of shape {quoted(shape)} in other chunks")
        self._arrays[path] = TensorInfo(dtypes.pop(), shape)
        self._readers[path] = partial(self._read, [(info.begin, info.end) for info in infos])

    def _read(self, ranges: list[tuple[int, int]]) -> np.ndarray:
        self._file.fetch(ranges)
        return np.concatenate([self._file.read(begin, end) for begin, end in ranges])

    def _head(self) -> tuple[str, int]:
        """The kind of the next value, and its length or, of a whole number, the number."""
        code = self._cursor.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return "number", code - 256 * (code >= 0xE0)
        if code >> 4 in _FIXED:
            kind, mask = _FIXED[code >> 4]
            return kind, code & mask
        if code not in _CODES:
            raise self._refusal((), f"byte {self._cursor.at - 1} begins no value of msgpack")
        kind, size = _CODES[code]
        if kind == "fixext":
            return "ext", size
        number = int.from_bytes(self._cursor.take(size), "big", signed=code in range(0xD0, 0xD4))
        return kind, min(number, MAX_INT)

    def _refusal(self, path: Path, problem: str) -> ProbexError:
        place = f"{quoted('/'.join(path))}: " if path else ""
        return ProbexError(f"{self._file.name}: {place}{problem}")
