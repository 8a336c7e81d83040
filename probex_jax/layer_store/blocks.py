"""Writes the matrices of models into the shards of a store, block by block, wherever that is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from probex_jax.bucket_paths import BucketPath
from probex_jax.engine import Work
from probex_jax.errors import ProbexError
from probex_jax.files import writer_of
from probex_jax.layer_store.arrays import Place, part_folder, parts, vectors_folder
from probex_jax.layer_store.common_layers import StoredLayer, layer_faults
from probex_jax.layer_store.shard_writer import LayerWriter, UnwritableError
from probex_jax.layer_store.store import LayerStore
from probex_jax.matrices import LowRank, stack
from probex_jax.prefetch import prefetch
from probex_jax.zoo import ZooModel

# Of an array: a layer's name and part; or "" and the number of an array of vectors.
Key = tuple[str, str | int]

# Arrays whose shards are ended at a time: in a bucket each waits for answers.
ARRAYS_AT_ONCE = 8


class Slot(NamedTuple):
    """A model, and the place in the arrays where its matrices go first."""

    model: ZooModel
    number: int


class Stored(NamedTuple):
    """What became of a model: the hash of what was stored, or the reason why nothing was."""

    content: str
    fault: str = ""


class ArrayForm(NamedTuple):
    """An array [rows, a, b] of a store: where it is, (a, b), and what stands for it in hashes."""

    key: Key
    folder: Path
    shape: tuple[int, int]
    hashed: bytes


@dataclass(frozen=True)
class Form:
    """What is to be known of a store to write matrices into it.

    Args:
      path: of the store.
      layers: name to form.
      places: of vectors in their arrays.
      vector_arrays: number of each array of vectors to its number of entries.
      block: rows of a shard.
      writer: as whose workers they are written, by `files.writer_of`; "" for whoever it is.
    """

    path: Path
    layers: Mapping[str, StoredLayer]
    places: Mapping[str, Place]
    vector_arrays: Mapping[int, int]
    block: int
    writer: str = ""

    @classmethod
    def of(cls, store: LayerStore, writer: str = "") -> Form:
        """That of a store."""
        layers = {
            name: StoredLayer(shape, store.ranks.get(name)) for name, shape in store.layers.items()
        }
        reader = store.reader
        return cls(store.path, layers, reader.places, reader.vector_arrays, store.block, writer)

    def arrays(self) -> Iterator[ArrayForm]:
        """The arrays, in the order in which their checksums go into a model's hash."""
        held: dict[int, list[tuple[str, tuple[int, int]]]] = {}
        for name, layer in self.layers.items():
            if name in self.places:
                held.setdefault(self.places[name].array, []).append((name, layer.shape))
                continue
            for part, shape in parts(*layer[:2]).items():
                folder = part_folder(self.path, name, part)
                hashed = json.dumps([name, part, shape]).encode()
                yield ArrayForm((name, part), folder, shape, hashed)
        for number, size in self.vector_arrays.items():
            folder = vectors_folder(self.path, number)
            yield ArrayForm(("", number), folder, (1, size), json.dumps(held[number]).encode())

    def writers(self, made: str | None = None) -> dict[Key, LayerWriter]:
        """A writer of each array; `made`: where shards of a store in a bucket are made."""
        found = {}
        for array in self.arrays():
            here = Path(made, *array.folder.parts[len(self.path.parts) :]) if made else None
            found[array.key] = LayerWriter(array.folder, array.shape, self.block, here)
        return found


def writing(form: Form) -> Work:
    """What writes a part, models of one block of a store: their matrices, and the shards' ends.

    A model that turns out to be faulty leaves its slot unused, and the models after it get lower
    rows. Whatever is not in the table of the store does not count.

    Args:
      form: of the store.

    Returns:
      Work on `Slot`, all of a part in one block; its results are `Stored`.
    """
    is_put = isinstance(form.path, BucketPath)
    made = TemporaryDirectory(prefix="probex-jax-") if is_put else None
    writers = form.writers(made.name if made else None)
    hashed = {array.key: array.hashed for array in form.arrays()}

    def written(slot: Slot) -> Iterator[tuple[Key, bytes]]:
        """Writes the arrays of a model; yields each with its checksum."""
        vectors = {number: np.empty([1, n], "<f4") for number, n in form.vector_arrays.items()}
        with slot.model.open() as file:
            if layer_faults(file.all_layers, form.layers):
                raise ProbexError(f"{slot.model.where}: changed while it was packed")
            for name, matrix in file.each_matrix(form.layers):
                if name in form.places:
                    number, start = form.places[name]
                    values = np.ravel(matrix)
                    vectors[number][0, start : start + len(values)] = values
                    continue
                for part, array in _arrays(matrix, form.layers[name].rank).items():
                    data = np.ascontiguousarray(array, "<f4")
                    yield (name, part), writers[name, part].put(slot.number, data)
                # So that the next matrix reuses their memory, still in the cache.
                del matrix, array, data
            for number, values in vectors.items():
                yield ("", number), writers["", number].put(slot.number, values)
            file.check_unchanged()

    def check() -> None:
        """A worker may outlive its writer for a moment, and another one be there."""
        if form.writer and writer_of(form.path) != form.writer:
            raise UnwritableError(f"{form.path}: another process is the writer by now")

    def read(slot: Slot) -> Stored:
        if made is None:
            check()
        content = hashlib.sha256()
        try:
            for key, checksum in written(slot):
                content.update(hashed[key] + checksum)
        except UnwritableError:
            raise
        except ProbexError as error:
            return Stored("", str(error))
        return Stored(content.hexdigest())

    def end(part: Sequence[Slot], stored: Sequence[Stored]) -> Sequence[Stored]:
        check()
        first = part[0].number // form.block * form.block
        used = [slot.number for slot, one in zip(part, stored, strict=True) if not one.fault]

        def finish(writer: LayerWriter) -> None:
            writer.finish(first, used) if used else writer.drop(first)

        for _ in prefetch(finish, writers.values(), ARRAYS_AT_ONCE):
            pass
        return stored

    return Work(read, end, made.cleanup if made else lambda: None)


def _arrays(matrix: np.ndarray | LowRank, rank: int | None) -> dict[str, np.ndarray]:
    """The arrays that hold a matrix; factors are padded to a rank."""
    if isinstance(matrix, LowRank):
        padded = stack([matrix], rank)
        return {"up": padded.up[0], "down": padded.down[0]}
    return {"matrices": matrix}
