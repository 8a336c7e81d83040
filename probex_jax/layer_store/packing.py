"""Packing: model files into a layer store, resumable, each file's weights read once."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.ahead import ahead
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, layer_folder, write_json
from probex_jax.layer_store.arrays import LayerArray, parts
from probex_jax.layer_store.common_layers import (
    StoredLayer,
    common_layers,
    layer_faults,
    rarer_layers,
)
from probex_jax.layer_store.store import FORMAT, VERSION, LayerStore, check_held_out
from probex_jax.matrices import LowRank, stack
from probex_jax.model_files import (
    LayerInfo,
    fingerprint,
    select_layers,
    stated_base,
)
from probex_jax.zoo import Zoo, ZooModel
from probex_jax.zoo.model_j import HELD_OUT_SPLITS

# A block is read into memory before it is written, and is one file a layer.
_BLOCK_BYTES = 512 * 2**20
_BLOCK_MODELS = 64

Matrix = np.ndarray | LowRank


@dataclass(frozen=True)
class PackSummary:
    """What a run of `pack` did.

    Args:
      store: the store, opened.
      added: how many models this run packed.
      skipped: id of every model that this run could not pack, to the reason.
      left_out: layers that a new store does not hold since at most half of the models have them
        in one shape, to the reason.
      unscaled: how many of the models that this run read are LoRAs in PEFT's or kohya's dialect for
        some of whose layers nothing says alpha, so that their scale is taken to be 1.
      unread: how many of them have tensors of adapters that are in no layer (`ModelFile.unread`).
    """

    store: LayerStore
    added: int
    skipped: Mapping[str, str]
    left_out: Mapping[str, str]
    unscaled: int = 0
    unread: int = 0


@dataclass(frozen=True)
class _Header:
    """What the headers of one model say, or why they could not be read."""

    model: ZooModel
    layers: Mapping[str, LayerInfo]
    labels: tuple[str, ...]
    fingerprint: str = ""
    base: str = ""
    is_unscaled: bool = False
    is_unread: bool = False
    fault: str = ""


def pack(
    zoo: Zoo,
    path: str | Path,
    layers: int | str | Sequence[int | str] | None = None,
    *,
    workers: int = 2,
    on_models: Callable[[int], None] = lambda total: None,
    on_model: Callable[[str], None] = lambda reason: None,
    on_packed: Callable[[Sequence[ZooModel]], None] = lambda models: None,
) -> PackSummary:
    """Packs the models of a zoo that a store does not hold yet.

    The layers and shapes are those that most of the models have; a model that lacks one, has one
    in another shape, holds NaN, has no label or a label outside the class list, or cannot be read,
    is listed with its reason and skipped, and tried again by the next run. The class list is the
    zoo's own, or else all classes of its training and held-out models. LoRA updates are kept as
    factors of the highest rank that a model of a new store has.

    Args:
      zoo: the models.
      path: folder of the store; made if there is none, continued if there is one.
      layers: which layers, as `select_layers` takes them; None for all of them.
      workers: how many models are read at a time.
      on_models: called once with the number of models to pack.
      on_model: called after each model with the reason why it was skipped, or "".
      on_packed: called with models once they are in the store for good.

    Returns:
      The store, and what was added, skipped and left out.

    Raises:
      ProbexError: if no model can be packed, no model has the layers asked for, a held-out class
        occurs in another split, or the store there belongs to another tree or other layers, or
        holds a model in another split or with other labels than the zoo now says.

    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import scan
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / "zoo" / "train").mkdir(parents=True)
      >>> for name in ("a", "b"):
      ...     save_file({"fc.weight": np.ones((2, 3), np.float32)},
      ...               folder / "zoo" / "train" / f"{name}.safetensors",
      ...               {"dataset_chosen_targets": "['cat']"})
      >>> pack(scan(folder / "zoo"), folder / "store").added
      2
    """
    path = Path(path)
    store = LayerStore.open(path) if (path / "store.json").exists() else None
    known = {model.id: model for model in store.models} if store else {}
    todo = [model for model in zoo.models if model.id not in known]
    on_models(len(todo))
    headers = [header for _, header in ahead(_header, todo, workers)]
    packed_before = [(model.id, model.split, model.labels) for model in known.values()]
    new = [(header.model.id, header.model.split, header.labels) for header in headers]
    check_held_out(path, packed_before + new)
    left_out: Mapping[str, str] = {}
    if store is None:
        store, left_out = _create(path, zoo, headers, layers)
    else:
        _check_same(store, zoo, layers)
    packer = _Packer(store, workers, on_packed)
    for header, fault in packer.run(headers):
        on_model(f"{header.model.id}: {fault}" if fault else "")
    packed = LayerStore.open(path)
    if not packed.models:
        first = next(iter(packed.skipped.values()), "the zoo has no models")
        raise ProbexError(f"{path}: no model could be packed; the first: {first}")
    return PackSummary(
        packed,
        added=len(packed.models) - len(known),
        skipped=packer.skipped,
        left_out=left_out,
        unscaled=sum(header.is_unscaled for header in headers),
        unread=sum(header.is_unread for header in headers),
    )


def _header(model: ZooModel) -> _Header:
    try:
        with model.open() as file:
            labels = model.labels_in(file)
            about = fingerprint(file), stated_base(file)
            # Of a server at the commit that was read, and no other.
            pinned = replace(model, path=Path(file.path))
            return _Header(
                pinned, file.layers, labels, *about, bool(file.unscaled), bool(file.unread)
            )
    except ProbexError as error:
        return _Header(model, {}, (), fault=str(error))


def _create(
    path: Path,
    zoo: Zoo,
    headers: Sequence[_Header],
    layers: int | str | Sequence[int | str] | None,
) -> tuple[LayerStore, Mapping[str, str]]:
    readable = {header.model.id: header for header in headers if not header.fault}
    if not readable:
        raise ProbexError(f"{zoo.tree}: no model can be packed; the first: {headers[0].fault}")
    common = common_layers([header.layers for header in readable.values()])
    rarer = rarer_layers({id: header.layers for id, header in readable.items()}, common)
    try:
        chosen = select_layers(common, layers)
    except ProbexError as error:
        hint = f"; in few models only: {', '.join([*rarer][:5])}" if rarer else ""
        raise ProbexError(f"{zoo.tree}: {error}{hint}") from None
    for name in chosen:
        layer_folder(path, name)
    if not chosen:
        raise ProbexError(f"{zoo.tree}: its models have no layer in common")
    classes = zoo.classes or _all_classes(readable.values())
    if not classes:
        raise ProbexError(f"{zoo.tree}: no training model, hence no classes; expected train/")
    sizes = [math.prod(shape) for name in chosen for shape in parts(*common[name]).values()]
    about = {
        "format": FORMAT,
        "version": VERSION,
        "tree": zoo.tree,
        "classes": classes,
        "texts": {name: zoo.texts[name] for name in classes if name in zoo.texts},
        "layers": {name: common[name].shape for name in chosen},
        "ranks": {name: rank for name in chosen if (rank := common[name].rank) is not None},
        "selection": _selection(layers),
        "block": max(1, min(_BLOCK_MODELS, _BLOCK_BYTES // (4 * sum(sizes)))),
    }
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    write_json(path / "store.json", about)
    return LayerStore.open(path), rarer if layers is None else {}


def _selection(layers: int | str | Sequence[int | str] | None) -> list[str] | None:
    """What was asked for, in one form however it was written."""
    if layers is None:
        return None
    asked = [layers] if isinstance(layers, int | str) else layers
    return sorted(part.strip() for each in asked for part in str(each).split(","))


def _all_classes(headers: Iterable[_Header]) -> tuple[str, ...]:
    """The classes of the training and the held-out models, sorted; none without training ones."""
    labels = {
        split: {name for h in headers if h.model.split == split for name in h.labels}
        for split in ("train", *HELD_OUT_SPLITS)
    }
    return tuple(sorted(set().union(*labels.values()))) if labels["train"] else ()


def _check_same(
    store: LayerStore, zoo: Zoo, layers: int | str | Sequence[int | str] | None
) -> None:
    if store.tree != zoo.tree:
        raise ProbexError(f"{store.path}: holds models of {store.tree}, not of {zoo.tree}")
    if zoo.classes is not None and zoo.classes != store.classes:
        raise ProbexError(f"{store.path}: holds another class list than {zoo.tree}'s zoo.json")
    if store.texts != {name: zoo.texts[name] for name in store.classes if name in zoo.texts}:
        raise ProbexError(
            f"{store.path}: holds other texts for classes than {zoo.tree}'s zoo.json; use another "
            "folder for the store"
        )
    packed = {model.id: model for model in store.models}
    for model in zoo.models:
        was = packed.get(model.id)
        if was and (was.split != model.split or model.stated not in (None, list(was.labels))):
            raise ProbexError(
                f"{store.path}: {model.id} was packed as {was.split} of {list(was.labels)}, the "
                f"zoo now says {model.split} of {model.stated or 'the same'}; use another "
                "folder for the store"
            )
    if layers is None or _selection(layers) == store.selection:
        return
    # A number or an expression means other layers among those of a store than among a model's.
    same = _selection(layers) == sorted(store.layers)
    if store.selection is None:
        try:
            same = select_layers(store.layers, layers) == sorted(store.layers)
        except ProbexError:
            same = False
    if not same:
        some = ", ".join([*store.layers][:3]) + (", …" if len(store.layers) > 3 else "")
        raise ProbexError(
            f"{store.path}: already holds {len(store.layers)} layers, {some}, not the ones asked "
            "for; choose another folder for the store"
        )


class _Packer:
    """Writes models block by block; a block counts once its lines are in models.jsonl."""

    def __init__(
        self, store: LayerStore, workers: int, on_packed: Callable[[Sequence[ZooModel]], None]
    ):
        self._store, self._workers, self._on_packed = store, workers, on_packed
        self._table = store.path / "models.jsonl"
        rows = max((model.row for model in store.models), default=-1) + 1
        self._next_row = -(-rows // store.block) * store.block
        self._layers = {
            name: StoredLayer(shape, store.ranks.get(name)) for name, shape in store.layers.items()
        }
        self._arrays = {
            name: {
                part: LayerArray.create(store.path, name, part, shape, store.block)
                for part, shape in parts(*layer).items()
            }
            for name, layer in self._layers.items()
        }
        self.skipped: dict[str, str] = {}

    def run(self, headers: Sequence[_Header]) -> Iterator[tuple[_Header, str]]:
        """Packs the models in order; yields each with the reason why it was skipped, or ""."""
        self._drop_torn_line()
        block: list[tuple[_Header, dict[str, Matrix]]] = []
        lines: list[dict[str, Any]] = []
        for header, matrices in ahead(self._matrices, headers, self._workers):
            if isinstance(matrices, str):
                self.skipped[header.model.id] = matrices
                if self._store.skipped.get(header.model.id) != matrices:
                    lines.append(self._skipped_line(header, matrices))
            else:
                lines.append(self._packed_line(header, matrices, self._next_row + len(block)))
                block.append((header, matrices))
            if len(block) == self._store.block:
                self._commit(block, lines)
                block, lines = [], []
            yield header, matrices if isinstance(matrices, str) else ""
        self._commit(block, lines)

    def _matrices(self, header: _Header) -> dict[str, Matrix] | str:
        fault = header.fault or self._unfit(header)
        if fault:
            return fault
        try:
            with header.model.open() as file:
                if layer_faults(file.layers, self._layers):
                    raise ProbexError(f"{header.model.where}: changed while it was packed")
                matrices = file.matrices(self._layers)
                file.check_unchanged()
                return matrices
        except ProbexError as error:
            return str(error)

    def _unfit(self, header: _Header) -> str:
        """Why a readable model does not fit the store, or ""."""
        for name, fault in layer_faults(header.layers, self._layers).items():
            return f"{header.model.where}: layer {name}: {fault}"
        unknown = [label for label in header.labels if label not in self._store.classes]
        if unknown:
            return (
                f"{header.model.where}: label {unknown[0]!r} is not among the "
                f"{len(self._store.classes)} classes of the store, which are those of the "
                "models that it was made from"
            )
        return ""

    def _packed_line(
        self, header: _Header, matrices: Mapping[str, Matrix], row: int
    ) -> dict[str, Any]:
        content = hashlib.sha256()
        for name, matrix in matrices.items():
            for array in _arrays(matrix).values():
                content.update(json.dumps([name, array.shape]).encode())
                content.update(np.ascontiguousarray(array).data)
        return {
            **self._line(header, "packed"),
            "row": row,
            "labels": header.labels,
            "fingerprint": header.fingerprint,
            "base": header.base,
            "content_hash": content.hexdigest(),
            "layers": dict.fromkeys(matrices, "packed"),
        }

    def _skipped_line(self, header: _Header, reason: str) -> dict[str, Any]:
        faults = {} if header.fault else layer_faults(header.layers, self._layers)
        return {**self._line(header, "skipped"), "reason": reason, "layers": faults}

    def _line(self, header: _Header, status: str) -> dict[str, Any]:
        model = header.model
        return {
            "id": model.id,
            "status": status,
            "tree": self._store.tree,
            "split": model.split,
            "source": model.where,
        }

    def _commit(
        self,
        block: Sequence[tuple[_Header, Mapping[str, Matrix]]],
        lines: Sequence[Mapping[str, Any]],
    ) -> None:
        if block:
            for name, arrays in self._arrays.items():
                rank = self._layers[name].rank
                batch = _arrays(stack([matrices[name] for _, matrices in block], rank))
                for part, array in arrays.items():
                    array.write(self._next_row, batch[part])
            self._next_row += self._store.block
        with disk_errors(self._table), self._table.open("a") as table:
            table.write("".join(json.dumps(line) + "\n" for line in lines))
            table.flush()
            os.fsync(table.fileno())
        self._on_packed([header.model for header, _ in block])

    def _drop_torn_line(self) -> None:
        """A kill may have cut the last line short."""
        if self._table.exists():
            whole = self._table.read_bytes().rfind(b"\n") + 1
            os.truncate(self._table, whole)


def _arrays(matrix: Matrix) -> dict[str, np.ndarray]:
    """A matrix, or a batch of them, as the arrays that hold it."""
    if isinstance(matrix, LowRank):
        return {"up": matrix.up, "down": matrix.down}
    return {"matrices": matrix}
