"""Checks a store whole: its tables, every row of every array, and the hash of each model."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from probex_jax.bucket_paths import as_path
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, parse_json, read_json
from probex_jax.integrity import unsealed
from probex_jax.layer_store import fields
from probex_jax.layer_store.about import read_about
from probex_jax.layer_store.arrays import (
    LayerArray,
    array_metadata,
)
from probex_jax.layer_store.blocks import Form
from probex_jax.layer_store.store import LayerStore
from probex_jax.layer_store.stored_model import StoredModel
from probex_jax.layer_store.tables import read_tables
from probex_jax.model_files.untrusted_text import quoted
from probex_jax.prefetch import prefetch
from probex_jax.zoo.model_j import SPLITS
from probex_jax.zoo.tables import Tables

# Bytes that are read at a time, and how many such pieces.
_PIECE_BYTES = 32 * 2**20
_READERS = 2
# How long a writer may take to end the last line of models.jsonl.
_TRIES, _PAUSE_S = 5, 0.2
_NAMED = 3


def verify_store(
    path: str | Path,
    *,
    on_total: Callable[[int], None] = lambda n: None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Iterator[str]:
    """Checks a store, which may be being written: what is committed is read.

    Args:
      path: the store's folder.
      on_total: called with the number of bytes of matrices that will be read.
      on_bytes: called with the number of bytes that were read since the last call.

    Yields:
      A line for each damage, which begins with the path of the file.

    Raises:
      ProbexError: if there is no store, or it holds no models yet.

    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import pack, scan
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / "zoo" / "train").mkdir(parents=True)
      >>> save_file({"fc.weight": np.ones((2, 3), np.float32)},
      ...           folder / "zoo" / "train" / "a.safetensors",
      ...           {"dataset_chosen_targets": "['cat']"})
      >>> _ = pack(scan(folder / "zoo"), folder / "store")
      >>> list(verify_store(folder / "store"))
      []
    """
    path = as_path(path)
    table = path / "models.jsonl"
    if not ((path / "store.json").is_file() or table.is_file()):
        raise ProbexError(f"{path}: no layer store here; make one with probex pack")
    try:
        read_tables(path)
    except ProbexError as error:
        yield str(error)
    problems: list[str] = []
    try:
        if not (path / "store.json").is_file():
            raise ProbexError(f"{path / 'store.json'}: missing; pack the models again")
        store = LayerStore(path, read_about(path), (), Tables())
    except ProbexError as error:
        problems.append(str(error))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{path / 'store.json'}: damaged ({error!r})")
    if problems:
        for _ in _lines(table, problems):
            pass
        return (yield from problems)
    models = _models(table, store, problems)
    yield from problems
    if not (models or problems):
        raise ProbexError(f"{path}: the store holds no models yet; nothing to check")
    arrays = [_Array(*form[1:]) for form in Form.of(store).arrays()]
    on_total(len(models) * sum(array.row_bytes for array in arrays))
    for array in arrays:
        yield from array.open(store.block, models)
    yield from _surplus(arrays, models)
    yield from _Rows(store, arrays, on_bytes).verify(models)


class _Model(NamedTuple):
    """What is kept of a line; the hash is "" if it is not of the form that is known."""

    row: int
    id: str
    content_hash: str


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """The lines of models.jsonl with their numbers; what is no JSON is a problem."""
    if not path.exists():
        return
    with disk_errors(path), path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline()
            for _ in range(_TRIES):  # it may be being written
                if not line or line.endswith(b"\n"):
                    break
                time.sleep(_PAUSE_S)
                line += file.readline()
            if not line:
                return
            where = f"{path}: line {number}"
            if not line.endswith(b"\n"):
                problems.append(f"{where}, the last, is cut short; packing again writes it anew")
                return
            try:
                yield number, unsealed(parse_json(line, where), where)
            except ProbexError as error:
                problems.append(str(error))


def _models(path: Path, store: LayerStore, problems: list[str]) -> list[_Model]:
    """The packed models by row, without those whose line is damaged or whose row is taken."""
    ids: dict[str, int] = {}
    rows: dict[int, tuple[int, _Model]] = {}
    for number, line in _lines(path, problems):
        where = f"{path}: line {number}"
        try:
            model = _model(line, store)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{where}: damaged ({error!r})")
            continue
        if model is None:
            continue
        if (before := ids.setdefault(model.id, number)) != number:
            problems.append(f"{where}: model {quoted(model.id)} is in line {before}, too")
        if (before := rows.setdefault(model.row, (number, model))[0]) != number:
            problems.append(f"{where}: row {model.row} is that of line {before}, too")
    return [rows[row][1] for row in sorted(rows)]


def _model(line: dict[str, Any], store: LayerStore) -> _Model | None:
    """The packed model of a line; None for one that was skipped."""
    if line["status"] not in ("packed", "skipped"):
        raise ValueError(f"status {line['status']!r:.50}")
    if line["tree"] != store.tree:
        raise ValueError(f"tree {line['tree']!r:.50}, not {store.tree!r:.50}")
    if line["split"] not in ("", *SPLITS):
        raise ValueError(f"split {line['split']!r:.50}")
    if line["status"] == "packed":
        model = StoredModel.from_json(line, store.classes)
        # Early lines, which list layers, have another hash: of factors that were not padded yet.
        return _Model(model.row, model.id, "" if "layers" in line else model.content_hash)
    fields.text(line["id"])
    fields.text(line["reason"])
    return None


@dataclass
class _Array:
    """An array of a store; `hashed` is what of it goes into a model's hash, beside the checksum."""

    folder: Path
    shape: tuple[int, int]
    hashed: bytes
    opened: LayerArray | None = field(default=None, init=False)

    @property
    def row_bytes(self) -> int:
        return 4 * prod(self.shape)

    @property
    def metadata(self) -> Path:
        return self.folder / "zarr.json"

    def open(self, block: int, models: Sequence[_Model]) -> Iterator[str]:
        """Opens it, if it is what store.json says."""
        try:
            found = read_json(self.metadata)
            rows = found["shape"][0]
            if found != json.loads(array_metadata(self.shape, block, rows)):
                raise ValueError("it does not fit store.json")
            if type(rows) is not int or (models and rows <= models[-1].row):
                raise ValueError(f"{rows!r:.50} rows, models.jsonl has a row {models[-1].row}")
            self.opened = LayerArray.open(self.folder, self.shape)
        except FileNotFoundError:
            yield f"{self.metadata}: missing"
        except ProbexError as error:
            yield str(error)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            yield f"{self.metadata}: damaged ({error})"

    def has(self, row: int) -> bool:
        try:
            return self.opened is not None and self.opened.read(np.array([row])) is not None
        except ProbexError:
            return False

    def shard(self, number: int) -> Path:
        return self.folder / "c" / str(number) / "0" / "0"


def _surplus(arrays: Sequence[_Array], models: Sequence[_Model]) -> Iterator[str]:
    """More rows than there are models are those of a writer that was killed or is at work.

    It writes them to all arrays: what one array alone says, and cannot give, is no such row.
    """
    if not models:
        return
    last = models[-1].row
    counts = Counter(array.opened.rows for array in arrays if array.opened)
    for array in arrays:
        rows = array.opened.rows if array.opened else 0
        if rows > last + 1 and counts[rows] == 1 and not array.has(rows - 1):
            yield f"{array.metadata}: damaged ({rows} rows, models.jsonl has {last + 1})"


class _Piece(NamedTuple):
    """Models of one block whose rows of an array are read at once."""

    block: int
    array: _Array
    models: Sequence[_Model]


class _Rows:
    """Reads all rows of models, a few at a time."""

    def __init__(
        self, store: LayerStore, arrays: Sequence[_Array], on_bytes: Callable[[int], None]
    ):
        self._table, self._size = store.path / "models.jsonl", store.block
        self._arrays, self._on_bytes = arrays, on_bytes

    def verify(self, models: Sequence[_Model]) -> Iterator[str]:
        """Checks models, which are sorted by their rows."""
        blocks: dict[int, list[_Model]] = {}
        for model in models:
            blocks.setdefault(model.row // self._size, []).append(model)
        for number, block in blocks.items():
            rows = {model.row for model in block}
            for row in sorted(set(range(number * self._size, max(rows))) - rows):
                yield f"{self._table}: no line has row {row}"
        yield from self._read(blocks)

    def _read(self, blocks: dict[int, list[_Model]]) -> Iterator[str]:
        read = prefetch(self._checksums, self._pieces(blocks), _READERS)
        for number, pieces in itertools.groupby(read, lambda found: found[0].block):
            hashes = {model.id: hashlib.sha256() for model in blocks[number]}
            unread: set[str] = set()
            damaged: dict[Path, list[tuple[str, ProbexError]]] = {}
            for piece, checksums in pieces:
                for model, checksum in zip(piece.models, checksums, strict=True):
                    if isinstance(checksum, bytes):
                        hashes[model.id].update(piece.array.hashed + checksum)
                        continue
                    unread.add(model.id)
                    if checksum is not None:
                        shard = piece.array.shard(number)
                        damaged.setdefault(shard, []).append((model.id, checksum))
                self._on_bytes(len(piece.models) * piece.array.row_bytes)
            for shard, found in damaged.items():
                yield _of_shard(shard, found)
            for model in blocks[number]:
                wrong = hashes[model.id].hexdigest() != model.content_hash
                if wrong and model.content_hash and model.id not in unread:
                    yield (
                        f"{self._table}: model {quoted(model.id)}: its content_hash is not that of "
                        f"the matrices in row {model.row}"
                    )

    def _pieces(self, blocks: dict[int, list[_Model]]) -> Iterator[_Piece]:
        for number, models in blocks.items():
            for array in self._arrays:
                size = max(1, _PIECE_BYTES // array.row_bytes)
                for start in range(0, len(models), size):
                    yield _Piece(number, array, models[start : start + size])

    def _checksums(self, piece: _Piece) -> list[bytes | ProbexError | None]:
        """CRC-32C of the models' matrices; why one cannot be read, or None if the array cannot."""
        if piece.array.opened is None:
            return [None] * len(piece.models)
        try:
            matrices = piece.array.opened.read(np.array([model.row for model in piece.models]))
        except ProbexError as error:
            if len(piece.models) == 1:
                return [error]
            alone = (self._checksums(piece._replace(models=[model])) for model in piece.models)
            return [checksum for [checksum] in alone]
        return [
            google_crc32c.value(np.ascontiguousarray(matrix)).to_bytes(4, "little")
            for matrix in matrices
        ]


def _of_shard(shard: Path, found: Sequence[tuple[str, ProbexError]]) -> str:
    """A line for a shard with rows that cannot be read."""
    names = ", ".join(quoted(id) for id, _ in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    reason = str(found[0][1]).removeprefix(f"{shard.parents[3]}: ")
    return f"{shard}: of {names}{more}: {reason}"
