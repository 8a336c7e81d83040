"""The tensors of a model's files, as PyTorch would have stored them: where each is, its values."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers import Container
from probex_jax.model_files.containers.gguf import dequantised
from probex_jax.model_files.containers.header import NUMPY_DTYPES, foreign
from probex_jax.model_files.finite import checked
from probex_jax.model_files.flax_names import Form, torch_forms
from probex_jax.model_files.layers import GGML, MATRIX_DTYPES
from probex_jax.model_files.locate import Location
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

_WHOLE = tuple(f"{kind}{8 * size}" for kind in "IU" for size in (1, 2, 4, 8))


class StoredTensors:
    """Reads tensors, layers or not, and no other bytes of their files.

    Names and axes of JAX's parameters, and of GGUF, are those of PyTorch here.

    Args:
      location: of the files.
      containers: the files, open; closed by `close`.

    Attributes:
      infos: name of every tensor to its dtype and shape, sorted by name.
      left_out: those that are no part of the model, or whose axes are not known, to the reason.
      metadata: free text of all files; of several texts under one key, the first.
      files: names of the files in their folder.
      warnings: what is odd about the files.
      unfit: takes the names of tensors with NaN or infinite values, which are read as zeros; None
        to refuse them.
    """

    unfit: dict[str, tuple[int, int]] | None = None

    def __init__(self, location: Location, containers: Sequence[Container]):
        self._shards, self.files = tuple(containers), location.names
        holders: dict[str, Container] = {}
        indexed = location.weight_map or {}
        self.metadata: dict[str, str] = {}
        for container in containers:
            for name in container.tensors:
                first, meant = holders.setdefault(name, container).name, indexed.get(name)
                if first != container.name and meant not in (first, container.name):
                    raise ProbexError(
                        f"{container.where}: tensor {quoted(name)} is also in {first}"
                    )
                if meant == container.name:
                    holders[name] = container
            self.metadata = {**container.contained.metadata, **self.metadata}
        forms: dict[str, Form] = {}
        for each in containers:
            forms |= each.contained.forms or {}
        others = {name: c.tensors[name] for name, c in holders.items() if name not in forms}
        forms |= torch_forms(others, any(each.contained.nested for each in containers))
        self._of: dict[str, tuple[Container, str, Form]] = {}
        for stored, form in sorted(forms.items(), key=lambda item: item[1].name):
            if form.name in self._of:
                raise ProbexError(f"{holders[stored].where}: {quoted(form.name)} is there twice")
            self._of[form.name] = holders[stored], stored, form
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(container.tensors[stored], shape=form.shape)
            for name, (container, stored, form) in self._of.items()
        }
        self.left_out = {name: f.reason for name, (_, _, f) in self._of.items() if f.reason}
        self.warnings = (
            *location.warnings(holders),
            *(text for each in containers for text in each.contained.warnings),
        )

    def part(self, begin: str, names: Iterable[str]) -> "StoredTensors":
        """Some tensors, by what follows `begin` in their names; closing it does nothing."""
        part = copy.copy(self)
        short = {name.removeprefix(begin): name for name in names}
        part._shards = ()
        part._of = {name: self._of[whole] for name, whole in short.items()}
        part.infos = {name: self.infos[whole] for name, whole in short.items()}
        part.left_out = {n: self.left_out[w] for n, w in short.items() if w in self.left_out}
        return part

    def raw(self, name: str) -> np.ndarray:
        """A tensor in its stored dtype and PyTorch's shape; of shared bytes, their rows as stored.

        Raises:
          ProbexError: if the file cannot be read.
          ValueError: if the files were closed.
        """
        container, stored, form = self._of[name]
        values = container.raw(stored)
        is_packed = self.infos[name].dtype not in NUMPY_DTYPES
        return values if form.turn is None or is_packed or not values.size else form.turn(values)

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor: float32 in its shape, a contiguous array of the caller's own.

        Raises:
          ProbexError: if values are NaN or infinite in float32, the dtype is not read, or the file
            cannot be read.
          ValueError: if the files were closed.
        """
        self._check_dtype(name)
        container, stored, form = self._of[name]
        dtype, values = self.infos[name].dtype, container.raw(stored)
        if not values.size:
            return np.zeros(form.shape, np.float32)
        if dtype in GGML:
            with foreign(container.where, f"tensor {quoted(name)} of {dtype}"):
                values = dequantised(values, dtype)
        if form.turn is not None:
            values = form.turn(values)
        return self._floats(name, values)

    def rows(self, name: str, rows: Sequence[int], width: int) -> np.ndarray:
        """Some rows of a tensor, taken as [H, width], in float32; errors as `read`."""
        self._check_dtype(name)
        container, stored, form = self._of[name]
        found = None if form.turn else container.rows(stored, rows, width)
        if found is None:
            return self.read(name).reshape(-1, width)[list(rows)]
        return self._floats(name, found)

    def number(self, name: str) -> float:
        """The value of a tensor with one element, float or integer.

        Raises:
          ProbexError: as `read`, or if it does not have exactly one element.
        """
        info = self.infos[name]
        if math.prod(info.shape) != 1:
            raise ProbexError(f"{self._of[name][0].where}: {quoted(name)} is not a single number")
        values = self.raw(name) if info.dtype in _WHOLE else self.read(name)
        return float(values.ravel()[0])

    @contextmanager
    def fetched(
        self,
        wanted: Iterable[tuple[str, int | None]],
        rows: Iterable[tuple[str, Sequence[int], int]] = (),
    ) -> Iterator[None]:
        """Fetches several tensors from a server in few requests; drops them at the end.

        Args:
          wanted: their names, each with which of the stacked matrices is wanted; None for all.
          rows: names of others, some rows of each taken as [H, width], and the width.
        """
        parts: dict[Container, list[tuple[str, int | None]]] = {}
        some: dict[Container, list[tuple[str, Sequence[int], int]]] = {}
        for name, number in wanted:
            container, stored, form = self._of[name]
            parts.setdefault(container, []).append((stored, None if form.turn else number))
        for name, picked, width in rows:
            container, stored, form = self._of[name]
            if form.turn:
                parts.setdefault(container, []).append((stored, None))
            else:
                some.setdefault(container, []).append((stored, picked, width))
        containers = {**parts, **some}
        try:
            for container in containers:
                container.fetch(parts.get(container, ()), some.get(container, ()))
            yield
        finally:
            for container in containers:
                container.forget()

    def place(self, name: str) -> tuple[Container, int]:
        """The file that holds a tensor, and the tensor's offset in it."""
        container = self._of[name][0]
        return container, container.contained.data_begin + self.infos[name].begin

    def check_unchanged(self) -> None:
        """Raises a ProbexError if a file was written to since it was opened."""
        for container in self._shards:
            container.bytes.check_unchanged()

    def close(self) -> None:
        """Closes the files; what was read stays valid."""
        for container in self._shards:
            container.bytes.close()

    def _floats(self, name: str, values: np.ndarray) -> np.ndarray:
        # Values too large for float32 become infinite here and are counted below.
        with np.errstate(all="ignore"):
            array = np.ascontiguousarray(values).astype(np.float32, copy=False)
        array = checked(self._of[name][0].where, name, array, self.unfit)
        return array.reshape(values.shape)  # which ascontiguousarray makes of no axes one

    def _check_dtype(self, name: str) -> None:
        dtype = self.infos[name].dtype
        if dtype not in MATRIX_DTYPES:
            raise ProbexError(
                f"{self._of[name][0].where}: tensor {quoted(name)} is of {dtype}, expected one "
                f"of {', '.join(MATRIX_DTYPES)}"
            )
