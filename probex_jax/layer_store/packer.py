"""Packs models into a store, block by block: others write them, here a block is committed."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from probex_jax.bucket_paths import BucketPath
from probex_jax.engine import Engine
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, encoded, write_text, writer_of
from probex_jax.integrity import sealed
from probex_jax.layer_store.blocks import ARRAYS_AT_ONCE, Form, Slot, Stored, writing
from probex_jax.layer_store.common_layers import layer_faults
from probex_jax.layer_store.headers import ModelHeader
from probex_jax.layer_store.store import LayerStore
from probex_jax.prefetch import prefetch
from probex_jax.zoo import ZooModel

# A header, and the fault that is known before the weights are read, or "".
_Block = list[tuple[ModelHeader, str]]


class Packer:
    """Packs models block by block; a block counts once its lines are in models.jsonl.

    Every model whose header fits gets a slot before its weights are read, so that blocks are
    independent of one another.

    Args:
      store: whose table is as it is on the disk.
      readers: models that are read at a time, by each worker of the engine.
      engine: who writes the matrices.
      on_packed: called with models once they are in the store for good.

    Attributes:
      skipped: id of every model that was not packed to the reason.
    """

    def __init__(
        self,
        store: LayerStore,
        readers: int,
        engine: Engine,
        on_packed: Callable[[Sequence[ZooModel]], None],
    ):
        self._store, self._readers, self._engine = store, readers, engine
        self._on_packed = on_packed
        self._table, self._form = store.path / "models.jsonl", Form.of(store)
        rows = max((model.row for model in store.models), default=-1) + 1
        self._first = -(-rows // store.block) * store.block
        self._writers = list(self._form.writers().values())
        blocks = Counter(model.row // store.block for model in store.models)
        for _ in prefetch(lambda writer: writer.check(blocks), self._writers, ARRAYS_AT_ONCE):
            pass
        self.skipped: dict[str, str] = {}

    def run(self, headers: Iterable[ModelHeader]) -> Iterator[tuple[ModelHeader, str]]:
        """Packs the models in order; yields each with the reason why it was skipped, or ""."""
        self._drop_torn_line()
        begun: deque[_Block] = deque()

        def parts() -> Iterator[list[Slot]]:
            slot = self._first
            for block in self._blocks(headers):
                begun.append(block)
                fit = [header.model for header, fault in block if not fault]
                yield [Slot(model, slot + place) for place, model in enumerate(fit)]
                slot += self._store.block

        writer = "" if self._engine.is_here else writer_of(self._store.path)
        make = partial(writing, Form.of(self._store, writer))
        for _, stored in self._engine.map(make, parts(), readers=self._readers, computes=False):
            yield from self._commit(begun.popleft(), stored)

    def _blocks(self, headers: Iterable[ModelHeader]) -> Iterator[_Block]:
        """The headers by block: as many that fit as a block has rows, and those between."""
        block: _Block = []
        n_fit = 0
        for header in headers:
            block.append((header, header.fault or self._unfit(header)))
            n_fit += not block[-1][1]
            if n_fit == self._store.block:
                yield block
                block, n_fit = [], 0
        if block:
            yield block

    def _unfit(self, header: ModelHeader) -> str:
        """Why a readable model does not fit the store, or ""."""
        for name, fault in layer_faults(header.layers, self._form.layers).items():
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

    def _commit(
        self, block: _Block, stored: Sequence[Stored | ProbexError]
    ) -> list[tuple[ModelHeader, str]]:
        """Notes what became of the models of a block; returns each with its fault, or ""."""
        results = iter(stored)
        packed: list[ZooModel] = []
        lines, told = [], []
        for header, known in block:
            found = Stored("", known) if known else next(results)
            if isinstance(found, ProbexError):
                found = Stored("", f"{header.model.where}: {found}")
            if found.fault:
                self.skipped[header.model.id] = found.fault
                if self._store.skipped.get(header.model.id) != found.fault:
                    lines.append(self._skipped_line(header, found.fault))
            else:
                row = self._first + len(packed)
                lines.append(self._packed_line(header, found.content, row))
                packed.append(header.model)
            told.append((header, found.fault))
        if packed:
            rows = self._first + len(packed)
            for _ in prefetch(lambda writer: writer.grow(rows), self._writers, ARRAYS_AT_ONCE):
                pass
        self._first += self._store.block
        self._append("".join(json.dumps(sealed(line), ensure_ascii=False) + "\n" for line in lines))
        self._on_packed(packed)
        return told

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
        faults = {} if header.fault else layer_faults(header.layers, self._form.layers)
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

    def _append(self, lines: str) -> None:
        if isinstance(self._table, BucketPath):  # whose objects are written whole
            before = self._table.read_text() if self._table.exists() else ""
            return write_text(self._table, before + lines)
        with disk_errors(self._table), self._table.open("ab") as table:
            table.write(encoded(lines, self._table))

    def _drop_torn_line(self) -> None:
        """A kill may have cut the last line short, on a disk."""
        if self._table.exists() and not isinstance(self._table, BucketPath):
            whole = self._table.read_bytes().rfind(b"\n") + 1
            os.truncate(self._table, whole)
