"""Flax's msgpack files: maps of maps, and arrays as extensions of [shape, dtype, bytes].

`flax.serialization.msgpack_restore` needs all weights in memory. Here only what stands before the
bytes of each array is read.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.header import NUMPY_DTYPES, Contained, Cursor, dtype_name
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import MAX_AXES, MAX_INT, TensorInfo
from probex_jax.model_files.untrusted_text import quoted

_WINDOW = 4096
_NDARRAY, _SCALAR = 1, 3  # codes of Flax's extensions
_CHUNKED = "__msgpack_chunked_array__"
_MAX_KEY, _MAX_OTHERS = 1000, 20_000

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
        self._numbers: dict[tuple[str, ...], int] = {}
        self._arrays: dict[tuple[str, ...], TensorInfo] = {}

    def contained(self) -> Contained:
        kind, count = self._head()
        if kind != "map":
            raise ProbexError(
                f"{self._file.name}: no msgpack file of Flax, which begins with a map"
            )
        self._children((), kind, count)
        if self._cursor.at != self._file.size:
            raise self._refusal((), f"{self._file.size - self._cursor.at} bytes after the end")
        readers = dict(self._joined())
        return Contained(
            {"/".join(path): info for path, info in self._arrays.items()},
            size=self._cursor.taken,
            readers={"/".join(path): read for path, read in readers.items()},
            nested=True,
        )

    def _children(self, path: tuple[str, ...], kind: str, count: int) -> None:
        if len(path) >= self._limits.depth:
            raise self._refusal(path, f"nested too deeply, the limit is {self._limits.depth}")
        known = set()
        for number in range(count):
            key = self._key(path) if kind == "map" else str(number)
            if key in known:
                raise self._refusal(path, f"the key {quoted(key)} twice")
            known.add(key)
            self._value((*path, key))

    def _key(self, path: tuple[str, ...]) -> str:
        kind, size = self._head()
        if kind == "number":
            return str(size)
        if kind not in ("str", "bin") or size > _MAX_KEY:
            raise self._refusal(path, "a key that is no text")
        try:
            return self._cursor.take(size).decode()
        except UnicodeDecodeError as error:
            raise self._refusal(path, "a key that is no text") from error

    def _value(self, path: tuple[str, ...]) -> None:
        self._values += 1
        if self._values > _MAX_OTHERS + 8 * len(self._arrays):
            raise self._refusal(path, f"among over {_MAX_OTHERS} values that are no arrays")
        if len(self._arrays) > self._limits.tensors:
            raise self._refusal((), f"over {self._limits.tensors} tensors, the limit")
        kind, size = self._head()
        if kind in ("map", "array"):
            self._children(path, kind, size)
        elif kind in ("ext", "fixext"):
            code = self._cursor.take(1)[0]
            end = self._cursor.at + size
            if code in (_NDARRAY, _SCALAR):
                self._arrays[path] = self._array(path, end)
            self._cursor.skip(end - self._cursor.at)
        elif kind in ("str", "bin"):
            self._cursor.skip(size)
        elif kind == "number":
            self._numbers[path] = size

    def _array(self, path: tuple[str, ...], end: int) -> TensorInfo:
        """An array's own header; its bytes follow."""
        heads = [self._head()]
        heads += [self._head()]
        axes = heads[1][1]
        if heads[0] != ("array", 3) or heads[1][0] != "array" or axes > MAX_AXES:
            raise self._refusal(path, "no array of a shape, a dtype and bytes")
        sizes = [self._head() for _ in range(axes)]
        kind, length = self._head()
        if any(kind != "number" or size < 0 for kind, size in sizes) or kind != "str":
            raise self._refusal(path, "no array of a shape, a dtype and bytes")
        if length > _MAX_KEY or length > end - self._cursor.at:
            raise self._refusal(path, "no array of a shape, a dtype and bytes")
        dtype = self._cursor.take(length).decode("latin-1")
        kind, size = self._head()
        shape = tuple(size for _, size in sizes)
        try:
            name, width = dtype_name(np.dtype(dtype)), np.dtype(dtype).itemsize
        except (TypeError, ValueError):
            named = [n for n, known in NUMPY_DTYPES.items() if known.name == dtype]
            name = named[0] if named else quoted(dtype, 40)
            width = NUMPY_DTYPES[name].itemsize if named else 0
        if kind != "bin" or self._cursor.at + size != end:
            raise self._refusal(path, "no array of a shape, a dtype and bytes")
        if width and math.prod(shape) * width != size:
            raise self._refusal(path, f"{dtype} of shape {quoted(shape)}, in {size} bytes")
        return TensorInfo(name, shape, self._cursor.at, end)

    def _joined(self) -> Iterator[tuple[tuple[str, ...], Callable[[], np.ndarray]]]:
        """Puts the arrays together that are in chunks, since msgpack holds at most 2 GiB."""
        for path in [path[:-1] for path in self._numbers if path[-1] == _CHUNKED]:
            sizes, chunks = ((*path, part) for part in ("shape", "chunks"))
            inside = [p for p in self._numbers if p[:-1] == sizes]
            parts = [p for p in self._arrays if p[:-1] == chunks]
            try:
                shape = tuple(self._numbers[(*sizes, str(i))] for i in range(len(inside)))
                infos = [self._arrays.pop((*chunks, str(i))) for i in range(len(parts))]
            except KeyError as error:
                raise self._refusal(path, "an array whose chunks are not in order") from error
            count = sum(math.prod(info.shape) for info in infos)
            dtypes = {info.dtype for info in infos}
            if math.prod(shape) != count or len(dtypes) != 1 or not {*dtypes} <= {*NUMPY_DTYPES}:
                raise self._refusal(path, f"an array of shape {quoted(shape)} in other chunks")
            self._arrays[path] = TensorInfo(dtypes.pop(), shape)
            yield path, partial(self._read, [(info.begin, info.end) for info in infos])

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
            return kind, size
        number = int.from_bytes(self._cursor.take(size), "big", signed=code in range(0xD0, 0xD4))
        return kind, min(number, MAX_INT)

    def _refusal(self, path: tuple[str, ...], problem: str) -> ProbexError:
        place = f"{quoted('/'.join(path))}: " if path else ""
        return ProbexError(f"{self._file.name}: {place}{problem}")
