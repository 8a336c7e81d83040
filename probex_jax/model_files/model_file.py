"""One model: its matrices and vectors, read one by one from the files that hold it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from probex_jax.buckets import address_of
from probex_jax.errors import ProbexError
from probex_jax.matrices import LowRank
from probex_jax.model_files.adapters import Scales
from probex_jax.model_files.containers import open_containers
from probex_jax.model_files.contents import find_contents
from probex_jax.model_files.files_beside import FilesBeside
from probex_jax.model_files.finite import checked
from probex_jax.model_files.layers import LayerInfo, no_such_layer
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import locate
from probex_jax.model_files.parts import parts
from probex_jax.model_files.remote import Remote
from probex_jax.model_files.remote_folders import locate_remote
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.stored_tensors import StoredTensors
from probex_jax.model_files.untrusted_text import quoted

_DEFAULT_LIMITS = Limits()
_MAX_PARTS = 32


class ModelFile:
    """An open model; made by `open_model`, best used in a `with` statement.

    Attributes:
      path: what was opened; on a server, the address with a commit as its revision.
      files: the names of its files of weights.
      layers: name of every matrix to LayerInfo, sorted by name; the updates of LoRAs, too.
      vectors: the same of every vector: biases, norms, statistics, scalars.
      left_out: name of every tensor that is in neither, to the reason.
      tensors: name of every tensor to its dtype and shape; of JAX's and GGUF's, as in PyTorch.
      metadata: the header's free text, key to value, merged over shards.
      warnings: what is odd about the files, such as tensors of an index that no shard has.

    Example:
      >>> import tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> folder = tempfile.TemporaryDirectory()
      >>> weights = {"a.weight": np.ones((2, 3), "f4"), "a.bias": np.ones(2, "f4")}
      >>> save_file(weights, f"{folder.name}/model.safetensors", {"author": "me"})
      >>> with open_model(folder.name) as m:
      ...     print(*m.layers, *m.vectors, dict(m.metadata), m.matrix("a.weight").shape)
      a.weight a.bias {'author': 'me'} (2, 3)
      >>> folder.cleanup()
    """

    def __init__(self, path: Path | str, stored: StoredTensors, beside: FilesBeside):
        self.path, self._stored, self._beside = path, stored, beside
        self.metadata: Mapping[str, str] = MappingProxyType(stored.metadata)
        self.files, self.warnings = stored.files, stored.warnings
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(stored.infos)
        self._contents = find_contents(
            self._stored,
            self.metadata,
            lambda: self.config,
            lambda: self.beside("adapter_config.json"),
            str(path),
        )
        self._weights, self._updates = self._contents.weights, self._contents.updates
        self._scales = Scales(self._updates, self._stored, self._beside, self.metadata, str(path))
        self.layers: Mapping[str, LayerInfo] = MappingProxyType(self._contents.layers)
        self.vectors: Mapping[str, LayerInfo] = MappingProxyType(self._contents.vectors)
        self.left_out: Mapping[str, str] = MappingProxyType(self._contents.left_out)

    @cached_property
    def all_layers(self) -> Mapping[str, LayerInfo]:
        """Matrices and vectors, sorted by name."""
        return MappingProxyType(dict(sorted({**self.layers, **self.vectors}.items())))

    @cached_property
    def parts(self) -> Mapping[str, "ModelFile"]:
        """The models that a single-file checkpoint holds, by how the names of each begin.

        In a part the names lack that beginning. {} for a file that is one model, and for adapters.
        Parts are closed with the file, not by themselves.

        Raises:
          ProbexError: if a part cannot be read.
        """
        found = {} if self._updates else parts(self.tensors)
        return {
            begin: ModelFile(f"{self.path}: {begin}", self._stored.part(begin, names), self._beside)
            for begin, names in (found.items() if len(found) <= _MAX_PARTS else ())
        }

    @cached_property
    def config(self) -> dict[str, Any]:
        """The folder's `config.json`, or {} if there is none; read when first asked for.

        Raises:
          ProbexError: if the file is over 16 MiB or is no JSON object.
        """
        return self.beside("config.json")

    def beside(self, name: str) -> dict[str, Any]:
        """A JSON file in the model's folder, or {} if there is none.

        Args:
          name: of the file, such as "adapter_config.json".

        Raises:
          ProbexError: if the file is over 16 MiB, is no JSON object or is a link that leads out of
            the model's own folder.
        """
        return self._beside.json(name)

    @cached_property
    def is_alone(self) -> bool:
        """Whether README and configs beside it are its own, and not of many models in a folder."""
        return self._beside.are_of(self.files)

    def bytes_beside(self, name: str, limit: int) -> bytes | None:
        """A file in the model's folder, or None if there is none; read at most once.

        Args:
          name: of the file, such as "README.md".
          limit: of its size in bytes.

        Raises:
          ProbexError: as `beside`.
        """
        return self._beside.bytes(name, limit)

    def matrix(self, name: str) -> np.ndarray | LowRank:
        """Reads one layer and no other bytes of the file.

        Args:
          name: one of `layers` or `vectors`.

        Returns:
          float32 [H, W], a contiguous array of the caller's own; for a LoRA the factors, as a
          `LowRank` of such arrays [H, R] and [R, W].

        Raises:
          ProbexError: if there is no such layer, if values are NaN or infinite in float32, or if
            the file cannot be read.
          ValueError: if the model was closed.
        """
        shape = self._shape(name)
        if name in self._updates:
            found = self._updates[name].values(self._stored, self._scales.of(name))
            return found if isinstance(found, LowRank) else self._finite(name, found)
        weight = self._weights[name]
        matrix = weight.values(self._stored, lambda: self.config).reshape(shape)
        return self._finite(name, matrix) if weight.packed else matrix

    def matrices(self, names: Iterable[str]) -> dict[str, np.ndarray | LowRank]:
        """Reads several layers; from a server in few requests, several at a time.

        Args:
          names: of `layers` and `vectors`.

        Returns:
          Name to what `matrix` returns.

        Raises:
          ProbexError, ValueError: as `matrix`.
        """
        return dict(self.each_matrix(names))

    def each_matrix(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray | LowRank]]:
        """As `matrices`, one layer after the other; of a local file, one is in memory at a time."""
        names = list(names)
        with self.fetched(dict.fromkeys(names)):
            for name in names:
                yield name, self.matrix(name)

    @contextmanager
    def fetched(self, wanted: Mapping[str, Sequence[int] | None]) -> Iterator[None]:
        """While it lasts, layers are there to be read; they come from a server in few requests.

        Args:
          wanted: name of each layer to the rows that will be read; None for the whole layer.

        Raises:
          ProbexError: if there is no such layer, or the server does not answer.
        """
        whole: list[tuple[str, int | None]] = []
        some: list[tuple[str, Sequence[int], int]] = []
        for name, rows in wanted.items():
            _, width = self._shape(name)
            weight = self._weights.get(name)
            if rows is not None and weight is not None and weight.is_as_stored:
                some.append((weight.tensor, rows, width))
            else:
                expert = weight.expert if weight else None
                whole += [(tensor, expert) for tensor in self.tensors_of(name)]
        with self._stored.fetched(whole, some):
            yield

    def tensors_of(self, name: str) -> tuple[str, ...]:
        """Names of the tensors that a layer is read from.

        Raises:
          ProbexError: if there is no such layer.
        """
        self._shape(name)
        if name in self._updates:
            return self._updates[name].update.tensors
        return self._weights[name].tensors

    def tensor(self, name: str) -> np.ndarray:
        """Reads one tensor, layer or not, and no other bytes of the file.

        Args:
          name: one of `tensors`.

        Returns:
          float32 in the stored shape, a contiguous array of the caller's own.

        Raises:
          ProbexError: if there is no such tensor, if its dtype is not read, or as `matrix`
            does.
          ValueError: if the model was closed.
        """
        if name not in self.tensors:
            raise ProbexError(f"{self.path}: no tensor {quoted(name)}")
        return self._stored.read(name)

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Reads some rows of one layer and no other bytes of its tensor.

        Args:
          name: one of `layers` or `vectors`.
          rows: their numbers, from 0 to H - 1.

        Returns:
          float32 [len(rows), W]; for a LoRA, rows of the update, multiplied out.

        Raises:
          ProbexError: as `matrix`.
          ValueError: if the model was closed, or there is no such row.
        """
        height, width = self._shape(name)
        if not all(0 <= row < height for row in rows):
            raise ValueError(f"{name}: rows {rows} of {height}")
        if name in self._weights and self._weights[name].is_as_stored:
            return self._stored.rows(self._weights[name].tensor, rows, width)
        if name not in self._updates:
            return self.matrix(name)[list(rows)]  # type: ignore[return-value]
        found = self._updates[name].values(self._stored, self._scales.of(name), rows)
        with np.errstate(all="ignore"):
            wanted = found.up @ found.down if isinstance(found, LowRank) else found
            return self._finite(name, wanted)

    @cached_property
    def unscaled(self) -> tuple[str, ...]:
        """LoRA layers of PEFT or kohya for which nothing states alpha: their scale is 1."""
        names = (n for n, u in self._updates.items() if u.update.spelling.dialect != "diffusers")
        return tuple(
            name for name in names if name in self.layers and self._scales.of(name) is None
        )

    @property
    def unread(self) -> Mapping[str, str]:
        """Tensors of adapters that are in no layer, to the reason why."""
        return MappingProxyType(self._contents.unread)

    @property
    def unfit(self) -> Mapping[str, tuple[int, int]]:
        """Layers in which NaN or infinite values were read as zeros, to how many of how many."""
        return MappingProxyType(self._stored.unfit or {})

    @property
    def without_layers(self) -> str:
        """Why there are no matrices; "" if there are."""
        if self.layers:
            return ""
        if self.unread:
            return f"an adapter that could not be read: {next(iter(self.unread.values()))}"
        if self.left_out:
            return f"it has no layer; of its first tensor: {next(iter(self.left_out.values()))}"
        return "it has no layer of two dimensions, only vectors"

    def check_has_layers(self) -> None:
        """Raises a ProbexError if there are no matrices."""
        if self.without_layers:
            raise ProbexError(f"{self.path}: {self.without_layers}")

    @property
    def architecture_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors that tell architectures apart, by name without wrappers.

        Tensors of the dtypes that are read, with one axis or more; without factors of LoRAs and a
        quantiser's own tensors.
        """
        return self._contents.shapes

    def _finite(self, name: str, matrix: np.ndarray) -> np.ndarray:
        """A matrix that was computed, checked as what was read is."""
        return checked(str(self.path), name, matrix, self._stored.unfit)

    def check_unchanged(self) -> None:
        """Raises a ProbexError if a file was written to since the model was opened."""
        self._stored.check_unchanged()

    def _shape(self, name: str) -> tuple[int, int]:
        """The shape of a layer or vector; a ProbexError if there is none."""
        if name in self.all_layers:
            return self.all_layers[name].shape
        if name in self.left_out:
            raise ProbexError(f"{self.path}: tensor {quoted(name)} is {self.left_out[name]}")
        if not self.layers and self.unread:
            raise ProbexError(f"{self.path}: {self.without_layers}")
        raise ProbexError(f"{self.path}: {no_such_layer([*self.all_layers], name)}")

    def close(self) -> None:
        """Closes the files; what was read stays valid."""
        self._stored.close()

    def __enter__(self) -> "ModelFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_model(
    path: str | os.PathLike[str],
    limits: Limits = _DEFAULT_LIMITS,
    remote: Remote | None = None,
    *,
    unfit_as_zero: bool = False,
) -> ModelFile:
    """Opens a model without reading its weights.

    Args:
      path: a file: `.safetensors`, `.gguf`, Flax's `.msgpack`, `.npz`, or Keras's `.keras` and
        `.h5`; a folder with one, with shards, or with `model.safetensors` or another usual name
        among others; a checkpoint of Orbax; or a hub cache folder (`refs/main`,
        `snapshots/<revision>/`). What is named here may be a link; links found in a folder are
        refused if they lead out of it. Or an address: `hf://org/repo[@revision][/file or folder]`,
        `s3://bucket/file or folder`, `gs://…` or the `https://…` address of a file, of which only
        the byte ranges that are needed are read.
      limits: how large headers may be.
      remote: how a model on a server is read; None for no cache.
      unfit_as_zero: whether NaN and infinite values are read as zeros, noted in `unfit`.

    Returns:
      The open model, a context manager.

    Raises:
      ProbexError: if there is no model, or a file is damaged, of another format or no regular
        file; or if the server does not answer, or answers with something else. The message names
        the file, the tensor or field, and what was expected.

    Example:
      >>> import tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_file({"w": np.eye(2, dtype="f2")}, f"{folder}/model.safetensors")
      ...     with open_model(folder) as m:
      ...         m.layers["w"], m.matrix("w")
      (LayerInfo(shape=(2, 2), dtype='F16', kind='linear', rank=None), array([[1., 0.],
             [0., 1.]], dtype=float32))

    References:
      docs/formats.md, "Model files that are read".
    """
    url = address_of(path)
    where: Path | str = url or Path(path)
    if "\0" in str(path):
        raise ProbexError(f"{quoted(str(path))}: no such file or folder")
    try:
        if url:
            location, where = locate_remote(url, limits, remote or Remote())
        else:
            location = locate(Path(path), limits)
        files = open_containers(location, limits)
        try:
            stored = StoredTensors(location, files)
            stored.unfit = {} if unfit_as_zero else None
            return ModelFile(where, stored, FilesBeside(location.folder, limits.depth))
        except BaseException:
            for file in files:
                file.bytes.close()
            raise
    except OSError as error:
        raise ProbexError(f"{where}: cannot be read: {error.strerror}") from error
