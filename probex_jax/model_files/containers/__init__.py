"""The containers of tensors: one file each, or a folder, in any format that is read.

A module a format turns what stands before the weights into `Contained`; mostly a tensor is then a
range of bytes of the file, and only that is read.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.gguf import read_gguf
from probex_jax.model_files.containers.header import NUMPY_DTYPES, Contained
from probex_jax.model_files.containers.keras import read_hdf5, read_keras
from probex_jax.model_files.containers.msgpack import read_msgpack
from probex_jax.model_files.containers.npz import read_npz
from probex_jax.model_files.containers.orbax import Checkpoint, read_checkpoint
from probex_jax.model_files.containers.safetensors import read_safetensors
from probex_jax.model_files.containers.tree import InMemory, read_tree
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes, Location, format_of
from probex_jax.model_files.safetensors_header import MAX_AXES, MAX_INT, TensorInfo
from probex_jax.model_files.untrusted_text import is_unicode, leads_out, quoted

_FORMATS: Mapping[str, Callable[[Bytes, Limits], Contained]] = {
    ".safetensors": read_safetensors,
    ".sft": read_safetensors,
    ".msgpack": read_msgpack,
    ".npz": read_npz,
    ".gguf": read_gguf,
    ".keras": read_keras,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}


class Container:
    """One open container.

    Args:
      name: of the file in the model's folder.
      file: its bytes.
      contained: what they say.
    """

    def __init__(self, name: str, file: Bytes, contained: Contained):
        self.name, self.bytes, self.contained = name, file, contained
        self._is_fetched = False

    @property
    def where(self) -> str:
        """The file, for messages."""
        return self.bytes.name

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, as stored."""
        return self.contained.tensors

    def raw(self, name: str) -> np.ndarray:
        """A tensor in its stored dtype and shape; rows of bytes where values share them."""
        if name in self.contained.readers:
            values = self.contained.readers[name]()
        else:
            begin, end = self._range(name)
            values = self.bytes.read(begin, end)
        info = self.tensors[name]
        dtype = NUMPY_DTYPES.get(info.dtype)
        if dtype is not None:
            return values.view(dtype).reshape(info.shape)
        rows = math.prod(info.shape[:-1])
        is_whole = info.shape and rows and values.size % rows == 0
        return values.reshape(*info.shape[:-1], -1) if is_whole else values

    def rows(self, name: str, rows: Sequence[int], width: int) -> np.ndarray | None:
        """Some rows of a tensor, taken as [H, width]; None if it must be read whole."""
        dtype = NUMPY_DTYPES.get(self.tensors[name].dtype)
        if dtype is None or name in self.contained.readers:
            return None
        parts = self._row_ranges(name, rows, width)
        fetches = len(parts) > 1 and not self._is_fetched
        if fetches:
            self.bytes.fetch(parts)
        read = [self.bytes.read(*part) for part in parts]
        if fetches:
            self.bytes.forget()
        data = np.concatenate(read) if len(read) > 1 else read[0]
        return data.view(dtype).reshape(len(rows), width)

    def fetch(
        self,
        wanted: Iterable[tuple[str, int | None]],
        rows: Iterable[tuple[str, Sequence[int], int]] = (),
    ) -> None:
        """Announces what will be read, until `forget`.

        Args:
          wanted: tensors, or one of the matrices that are stacked in them.
          rows: tensors, their rows and the width of these.
        """
        ranges = [self._range(name, number) for name, number in wanted]
        for name, some, width in rows:
            ranges += self._row_ranges(name, some, width)
        self._is_fetched = True
        self.bytes.fetch([(begin, end) for begin, end in ranges if begin < end])

    def forget(self) -> None:
        """Drops what was fetched."""
        self._is_fetched = False
        self.bytes.forget()

    def _row_ranges(self, name: str, rows: Sequence[int], width: int) -> list[tuple[int, int]]:
        dtype = NUMPY_DTYPES.get(self.tensors[name].dtype)
        if dtype is None or name in self.contained.readers:
            return [self._range(name)]
        begin, size = self._range(name)[0], width * dtype.itemsize
        return [(begin + row * size, begin + (row + 1) * size) for row in rows]

    def _range(self, name: str, number: int | None = None) -> tuple[int, int]:
        info, begin = self.tensors[name], self.contained.data_begin
        if number is None or info.shape[0] <= number or (info.end - info.begin) % info.shape[0]:
            return begin + info.begin, begin + info.end
        size = (info.end - info.begin) // info.shape[0]
        return begin + info.begin + number * size, begin + info.begin + (number + 1) * size


def open_containers(location: Location, limits: Limits) -> tuple[Container, ...]:
    """Opens all files of a model or none."""
    if location.checkpoint:
        files = [location.folder.path_of(name) for name in location.names]
        folder = Checkpoint(location.checkpoint, files)
        contained = _checked(read_checkpoint(folder, limits), folder.name, limits)
        return (Container(folder.name, folder, contained),)
    found: list[Container] = []
    with ExitStack() as on_error:
        for name in location.names:
            file = location.folder.open(name)
            on_error.callback(file.close)
            read = _FORMATS[format_of(name)]
            found.append(Container(name, file, _checked(read(file, limits), file.name, limits)))
            _check_sums(found, limits)
        on_error.pop_all()
    return tuple(found)


def tree_container(tree: Any, metadata: Mapping[str, str], limits: Limits) -> Container:
    """A tree of parameters in memory."""
    memory = InMemory()
    return Container(memory.name, memory, _checked(read_tree(tree, metadata), memory.name, limits))


def _checked(contained: Contained, where: str, limits: Limits) -> Contained:
    """Checks what a format's own reader may not have."""
    if not contained.tensors:
        raise ProbexError(f"{where}: no tensors in it")
    metadata = contained.metadata
    characters = sum(len(key) + len(text) for key, text in metadata.items())
    for what, count, limit in (
        ("tensors", len(contained.tensors), limits.tensors),
        ("characters of metadata", characters, limits.metadata_characters),
    ):
        if count > limit:
            raise ProbexError(f"{where}: {count} {what}, the limit is {limit}")
    for name, info in contained.tensors.items():
        if not name or not is_unicode(name) or leads_out(name):
            problem = "is no Unicode" if not is_unicode(name) else "leads out of a folder"
            raise ProbexError(f"{where}: tensor {quoted(name)}: the name {problem}")
        elements = math.prod(size or 1 for size in info.shape)
        if min((0, *info.shape)) < 0 or len(info.shape) > MAX_AXES or elements > MAX_INT // 8:
            raise ProbexError(f"{where}: tensor {quoted(name)}: a shape of {quoted(info.shape)}")
    return contained


def _check_sums(containers: Sequence[Container], limits: Limits) -> None:
    """Checks the limits for all files together."""
    contained = [container.contained for container in containers]
    sums = {
        "bytes of headers": (sum(each.size for each in contained), limits.header_bytes),
        "tensors": (sum(len(each.tensors) for each in contained), limits.tensors),
    }
    for what, (count, limit) in sums.items():
        if len(containers) > 1 and count > limit:
            raise ProbexError(
                f"{containers[-1].where}: with the shards before it {count} {what}, the limit is "
                f"{limit}"
            )
