"""Writes models into a store, several at a time, block by block."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from probex_jax.bucket_paths import BucketPath
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, write_text
from probex_jax.integrity import sealed
from probex_jax.layer_store.arrays import part_folder, parts, vectors_folder
from probex_jax.layer_store.common_layers import StoredLayer, layer_faults
from probex_jax.layer_store.headers import ModelHeader
from probex_jax.layer_store.shard_writer import LayerWriter, UnwritableError
from probex_jax.layer_store.store import LayerStore
from probex_jax.matrices import LowRank, stack
from probex_jax.prefetch import prefetch
from probex_jax.zoo import ZooModel

# Of an array: a layer's name and part; or "" and the number of an array of vectors.
_Key = tuple[str, str | int]


# Arrays that are opened, or whose shards are ended, at a time: in a bucket each waits for answers.
_ARRAYS_AT_ONCE = 8


class _Task(NamedTuple):
    """A model to write and its slot, or the reason why it is skipped."""

    header: ModelHeader
    slot: int
    fault: str


class Packer:
    """Writes models block by block; a block counts once its lines are in models.jsonl.

    Every model whose header fits gets a slot before its weights are read, so that threads can
    write the next models, even of the next block, while earlier ones are unfinished. If weights
    turn out to be faulty, the slot stays unused, and the models after it get lower rows.
    """

    def __init__(
        self,
        store: LayerStore,
        workers: int,
        on_packed: Callable[[Sequence[ZooModel]], None],
        made: str | None,
    ):
        """`made`: where shards are made that are put into a bucket; None for a store on a disk."""
        self._store, self._workers, self._on_packed = store, workers, on_packed
        self._table = store.path / "models.jsonl"
        rows = max((model.row for model in store.models), default=-1) + 1
        self._first = -(-rows // store.block) * store.block
        self._layers = {
            name: StoredLayer(shape, store.ranks.get(name)) for name, shape in store.layers.items()
        }
        self._places = store.reader.places
        # What each array holds, names and shapes, goes into a model's hash with its checksum.
        arrays: dict[_Key, tuple[Path, tuple[int, int]]] = {}
        self._hashed: dict[_Key, bytes] = {}
        for name, layer in self._layers.items():
            for part, shape in parts(*layer[:2]).items() if name not in self._places else ():
                folder = part_folder(store.path, name, part)
                arrays[name, part] = folder, shape
                self._hashed[name, part] = json.dumps([name, part, shape]).encode()
        held: dict[int, list[tuple[str, tuple[int, int]]]] = {}
        for name, place in self._places.items():
            held.setdefault(place.array, []).append((name, store.layers[name]))
        for number, size in store.reader.vector_arrays.items():
            folder = vectors_folder(store.path, number)
            arrays["", number] = folder, (1, size)
            self._hashed["", number] = json.dumps(held[number]).encode()

        def writer_of(item: tuple[_Key, tuple[Path, tuple[int, int]]]) -> LayerWriter:
            folder, shape = item[1]
            inside = folder.parts[len(store.path.parts) :]
            here = Path(made, *inside) if made else None
            return LayerWriter(folder, shape, store.block, here)

        found = prefetch(writer_of, arrays.items(), _ARRAYS_AT_ONCE)
        self._writers = {key: writer for (key, _), writer in found}
        for number, count in Counter(model.row // store.block for model in store.models).items():
            for writer in self._writers.values():
                writer.check(number * store.block, count)
        self.skipped: dict[str, str] = {}

    def run(self, headers: Sequence[ModelHeader]) -> Iterator[tuple[ModelHeader, str]]:
        """Packs the models in order; yields each with the reason why it was skipped, or ""."""
        self._drop_torn_line()
        slots: list[int] = []
        packed: list[ZooModel] = []
        lines: list[dict[str, Any]] = []
        for task, (content, fault) in prefetch(self._pack, self._tasks(headers), self._workers):
            header = task.header
            if fault:
                self.skipped[header.model.id] = fault
                if self._store.skipped.get(header.model.id) != fault:
                    lines.append(self._skipped_line(header, fault))
            else:
                lines.append(self._packed_line(header, content, self._first + len(slots)))
                slots.append(task.slot)
                packed.append(header.model)
            if not task.fault and (task.slot + 1) % self._store.block == 0:
                self._commit(slots, lines, packed)
                slots, lines, packed = [], [], []
            yield header, fault
        self._commit(slots, lines, packed)

    def _tasks(self, headers: Iterable[ModelHeader]) -> Iterator[_Task]:
        slot = self._first
        for header in headers:
            fault = header.fault or self._unfit(header)
            yield _Task(header, slot, fault)
            slot += not fault

    def _pack(self, task: _Task) -> tuple[str, str]:
        """Writes the matrices of a model to its slot; returns their hash, or "" and the fault."""
        if task.fault:
            return "", task.fault
        content = hashlib.sha256()
        try:
            for key, checksum in self._written(task):
                content.update(self._hashed[key] + checksum)
        except UnwritableError:
            raise
        except ProbexError as error:
            return "", str(error)
        return content.hexdigest(), ""

    def _written(self, task: _Task) -> Iterator[tuple[_Key, bytes]]:
        """Writes the arrays of a model; yields each with its checksum."""
        model = task.header.model
        sizes = self._store.reader.vector_arrays
        vectors = {number: np.empty([1, size], "<f4") for number, size in sizes.items()}
        with model.open() as file:
            if layer_faults(file.all_layers, self._layers):
                raise ProbexError(f"{model.where}: changed while it was packed")
            for name, matrix in file.each_matrix(self._layers):
                if name in self._places:
                    number, start = self._places[name]
                    values = np.ravel(matrix)
                    vectors[number][0, start : start + len(values)] = values
                    continue
                for part, array in _arrays(matrix, self._layers[name].rank).items():
                    data = np.ascontiguousarray(array, "<f4")
                    yield (name, part), self._writers[name, part].put(task.slot, data)
                del (
                    matrix,
                    array,
                    data,
                )  # so that the next matrix reuses their memory, still in the cache
            for number, values in vectors.items():
                yield ("", number), self._writers["", number].put(task.slot, values)
            file.check_unchanged()

    def _unfit(self, header: ModelHeader) -> str:
        """Why a readable model does not fit the store, or ""."""
        for name, fault in layer_faults(header.layers, self._layers).items():
            return f"{header.model.where}: layer {name}: {fault}"
        labels = header.labels if header.model.split and header.labels else ()
        unknown = [label for label in labels if label not in self._store.classes]
        if unknown:
            return (
                f"{header.model.where}: label {unknown[0]!r} is not among the "
                f"{len(self._store.classes)} classes of the store, which are those of the "
                "models that it was made from"
            )
        return ""

    def _packed_line(self, header: ModelHeader, content: str, row: int) -> dict[str, Any]:
        return {
            **self._line(header, "packed"),
            "row": row,
            # Of a model in no split folder they are a column of `tables.json`.
            "labels": header.labels if header.model.split else None,
            "fingerprint": header.fingerprint,
            "base": header.base,
            "content_hash": content,
        }

    def _skipped_line(self, header: ModelHeader, reason: str) -> dict[str, Any]:
        faults = {} if header.fault else layer_faults(header.layers, self._layers)
        return {**self._line(header, "skipped"), "reason": reason, "layers": faults}

    def _line(self, header: ModelHeader, status: str) -> dict[str, Any]:
        model = header.model
        return {
            "id": model.id,
            "status": status,
            "tree": self._store.tree,
            "split": model.split,
            # A path may hold bytes that are not text.
            "source": model.where.encode(errors="backslashreplace").decode(),
        }

    def _commit(
        self,
        slots: Sequence[int],
        lines: Sequence[Mapping[str, Any]],
        models: Sequence[ZooModel],
    ) -> None:

        def end(writer: LayerWriter) -> None:
            writer.finish(self._first, slots) if slots else writer.drop(self._first)

        for _ in prefetch(end, self._writers.values(), _ARRAYS_AT_ONCE):
            pass
        self._first += self._store.block
        self._append("".join(json.dumps(sealed(dict(line))) + "\n" for line in lines))
        self._on_packed(models)

    def _append(self, lines: str) -> None:
        if isinstance(self._table, BucketPath):  # whose objects are written whole
            before = self._table.read_text() if self._table.exists() else ""
            return write_text(self._table, before + lines)
        with disk_errors(self._table), self._table.open("a") as table:
            table.write(lines)

    def _drop_torn_line(self) -> None:
        """A kill may have cut the last line short, on a disk."""
        if self._table.exists() and not isinstance(self._table, BucketPath):
            whole = self._table.read_bytes().rfind(b"\n") + 1
            os.truncate(self._table, whole)


def _arrays(matrix: np.ndarray | LowRank, rank: int | None) -> dict[str, np.ndarray]:
    """The arrays that hold a matrix; factors are padded to a rank."""
    if isinstance(matrix, LowRank):
        padded = stack([matrix], rank)
        return {"up": padded.up[0], "down": padded.down[0]}
    return {"matrices": matrix}
