"""Packs model files into a layer store; resumable, and reads each file's weights once."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probex_jax.bucket_paths import as_path
from probex_jax.engine import HERE, Engine
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, layer_folder, one_writer, write_json
from probex_jax.integrity import sealed
from probex_jax.layer_store.about import FORMAT, VERSION
from probex_jax.layer_store.arrays import parts, places
from probex_jax.layer_store.common_layers import common_layers, left_out
from probex_jax.layer_store.headers import ModelHeader, read_headers
from probex_jax.layer_store.packer import Packer
from probex_jax.layer_store.store import LayerStore
from probex_jax.layer_store.tables import check_held_out, take_over
from probex_jax.model_files import select_layers
from probex_jax.model_files.untrusted_text import quoted
from probex_jax.zoo import Zoo, ZooModel
from probex_jax.zoo.model_j import HELD_OUT_SPLITS

# A block is one file per layer, and the most that a kill loses.
_BLOCK_BYTES = 512 * 2**20
_BLOCK_MODELS = 64


@dataclass(frozen=True)
class PackSummary:
    """What a run of `pack` did.

    Args:
      store: the store, opened.
      added: how many models this run packed.
      skipped: id of every model that this run could not pack, to the reason.
      left_out: what models have and a new store of all layers does not hold, to the reason: layers
        that at most half of the models have in one shape, and tensors that are no layers.
      unscaled: how many of the models that this run read are LoRAs of PEFT or kohya with layers for
        which nothing states alpha, so that their scale is taken to be 1.
      unread: how many of them have adapter tensors that are in no layer (`ModelFile.unread`).
    """

    store: LayerStore
    added: int
    skipped: Mapping[str, str]
    left_out: Mapping[str, str]
    unscaled: int = 0
    unread: int = 0


def pack(
    zoo: Zoo,
    path: str | Path,
    layers: int | str | Sequence[int | str] | None = None,
    *,
    readers: int = 2,
    engine: Engine = HERE,
    on_models: Callable[[int], None] = lambda total: None,
    on_model: Callable[[str], None] = lambda reason: None,
    on_packed: Callable[[Sequence[ZooModel]], None] = lambda models: None,
) -> PackSummary:
    """Packs those models of a zoo that a store does not hold yet.

    The layers and shapes are those that most of the models have. A model is skipped, listed with
    the reason and tried again by the next run if it lacks one of them or has it in another shape,
    holds NaN, has no label or one outside the class list, or cannot be read. The class list is the
    zoo's own, or else all classes of its training and held-out models. LoRA updates are kept as
    factors, of the highest rank that a model of a new store has.

    Label columns and splits of the zoo are taken over, also for models that the store holds
    already. Models of a zoo that has columns, or no split folders, need no label of their own.

    Args:
      zoo: the models.
      path: folder of the store, which is made or continued.
      layers: which layers, as `select_layers` takes them; None for all, matrices and vectors.
      readers: how many models are read at a time, by each worker of the engine.
      engine: who reads them and writes their matrices; here the store's table is written.
      on_models: called once with the number of models to pack.
      on_model: called after each model with the reason why it was skipped, or "".
      on_packed: called with models once they are in the store for good.

    Returns:
      The store, and what was added, skipped and left out.

    Raises:
      ProbexError: if no model can be packed, no model has the layers asked for, or a held-out class
        occurs in another split; or if the store at `path` is of another tree or other layers, holds
        a model with another split or other labels than the zoo now states, or is being written.

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
    path = as_path(path)
    with one_writer(path):
        store = LayerStore.open(path) if (path / "store.json").exists() else None
        known = {model.id: model for model in store.models} if store else {}
        todo = [model for model in zoo.models if model.id not in known]
        on_models(len(todo))
        headers = [*read_headers(todo, engine, readers)]
        packed_before = [(model.id, model.split, model.labels) for model in known.values()]
        new = [(header.model.id, header.model.split, header.labels or ()) for header in headers]
        check_held_out(path, packed_before + new)
        lacking: Mapping[str, str] = {}
        if store is None:
            store, lacking = _create(path, zoo, headers, layers)
        else:
            _check_same(store, zoo, layers)
        take_over(path, zoo, headers)
        packer = Packer(store, readers, engine, on_packed)
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
            left_out=lacking,
            unscaled=sum(header.is_unscaled for header in headers),
            unread=sum(header.is_unread for header in headers),
        )


def _create(
    path: Path,
    zoo: Zoo,
    headers: Sequence[ModelHeader],
    layers: int | str | Sequence[int | str] | None,
) -> tuple[LayerStore, Mapping[str, str]]:
    readable = {header.model.id: header for header in headers if not header.fault}
    if not readable:
        raise ProbexError(f"{zoo.tree}: no model can be packed; the first: {headers[0].fault}")
    tables = [header.layers for header in readable.values()]
    common = common_layers(tables)
    lacking = left_out(tables, [header.left_out for header in readable.values()], common)
    vectors = [name for name, layer in common.items() if layer.is_vector]
    try:
        chosen = select_layers(common, layers, vectors)
    except ProbexError as error:
        hint = f"; left out: {', '.join([*lacking][:5])}" if lacking else ""
        raise ProbexError(f"{zoo.tree}: {error}{hint}") from None
    for name in chosen:
        layer_folder(path, name)
    if not chosen:
        raise ProbexError(f"{zoo.tree}: its models have no layer in common")
    classes = zoo.classes or _all_classes(readable.values())
    if not (classes or zoo.is_flat or zoo.tables.columns or zoo.tables.numbers):
        raise ProbexError(f"{zoo.tree}: no training model, hence no classes; expected train/")
    sizes = [math.prod(shape) for name in chosen for shape in parts(*common[name][:2]).values()]
    vector_sizes = {n: math.prod(common[n].shape) for n in chosen if common[n].is_vector}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "tree": zoo.tree,
        "classes": classes,
        "texts": {name: zoo.texts[name] for name in classes if name in zoo.texts},
        "layers": {name: common[name].shape for name in chosen},
        "ranks": {name: rank for name in chosen if (rank := common[name].rank) is not None},
        "vectors": places(vector_sizes),
        "selection": _selection(layers),
        "block": max(1, min(_BLOCK_MODELS, _BLOCK_BYTES // (4 * sum(sizes)))),
    }
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    write_json(path / "store.json", sealed(about))
    return LayerStore.open(path), lacking if layers is None else {}


def _selection(layers: int | str | Sequence[int | str] | None) -> list[str] | None:
    """The layers asked for, in one form however they were written."""
    if layers is None:
        return None
    asked = [layers] if isinstance(layers, int | str) else layers
    return sorted(part.strip() for each in asked for part in str(each).split(","))


def _all_classes(headers: Iterable[ModelHeader]) -> tuple[str, ...]:
    """The classes of the training and held-out models, sorted; none without training models."""
    labels = {
        split: {name for h in headers if h.model.split == split for name in h.labels or ()}
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
        if was is None:
            continue
        split, said = store.folders[model.id], model.stated_labels() if model.split else ()
        if split != model.split or said not in ((), was.labels):
            now = quoted(model.stated) if said else "the same"
            raise ProbexError(
                f"{store.path}: {model.id} was packed as {split or 'in no split'} of "
                f"{list(was.labels)}, the zoo now says {model.split or 'in no split'} of {now}; "
                "use another folder for the store"
            )
    if layers is None or _selection(layers) == store.selection:
        return
    # A number or pattern may select other layers from a store than from a model.
    same = _selection(layers) == sorted(store.layers)
    if store.selection is None:
        try:
            same = select_layers(store.layers, layers, store.vectors) == sorted(store.layers)
        except ProbexError:
            same = False
    if not same:
        some = ", ".join([*store.layers][:3]) + (", …" if len(store.layers) > 3 else "")
        raise ProbexError(
            f"{store.path}: already holds {len(store.layers)} layers, {some}, not the ones asked "
            "for; choose another folder for the store"
        )
