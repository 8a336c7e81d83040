"""Finding the models in a folder: a zoo, several zoos, or any other folder of models."""

import dataclasses
import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from probex_jax.buckets import is_address
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors
from probex_jax.model_files.checkpoint_folders import checkpoint_in
from probex_jax.model_files.locate import format_of, local_files
from probex_jax.zoo import ZooModel, scan
from probex_jax.zoo.flat import is_weights, stem_of
from probex_jax.zoo.label_files import Labels
from probex_jax.zoo.listed_path import ListedPath, zoo_path
from probex_jax.zoo.model_j import SPLITS, checked_id
from probex_jax.zoo.tables import LABEL_FILES, Names, Tables, find_labels

# A folder with one of these is one model.
_WHOLE = ("model.safetensors", "model.safetensors.index.json", "snapshots")


@dataclass(frozen=True)
class FoundModel(ZooModel):
    """A model in a folder; `split` is "" outside a zoo.

    Args:
      tree: the tree of the zoo, "" outside a zoo.
      texts: class to its text, where that is not the class name.
      attributes: what the zoo's tables say of it: column to its number or classes.
    """

    tree: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, float | tuple[str, ...]] = field(default_factory=dict)


def find_models(folder: str | Path, *, may_be_empty: bool = False) -> tuple[FoundModel, ...]:
    """Lists the models under a folder, at any depth, without opening them.

    A folder with `train/`, `val/` or another split is a zoo. A folder with `model.safetensors`, a
    shard index or `snapshots/`, an Orbax checkpoint, or a folder with a single file of a format
    that is read and no folder is a model. Elsewhere every such file is a model. Hidden files and
    folders are skipped. If the folder is a split of a zoo, its models are those that the zoo lists.

    Args:
      folder: to search.
      may_be_empty: whether to return () instead of raising if there are no models.

    Returns:
      The models, sorted by path. An id is the path relative to `folder` without its suffix; in
      a zoo, the path of the zoo and the id in the zoo. If a folder has a single file, the id is the
      folder's and the path is the file's.

    Raises:
      ProbexError: if there is no such folder, it holds no models, or is a malformed zoo. A
        malformed zoo further down is listed as one model, with its `fault`.

    Example:
      >>> import pathlib, tempfile
      >>> root = pathlib.Path(tempfile.mkdtemp())
      >>> (root / "mine" / "vit").mkdir(parents=True)
      >>> (root / "mine" / "vit" / "model.safetensors").touch()
      >>> (root / "mine" / "lora.safetensors").touch()
      >>> [model.id for model in find_models(root)]
      ['mine/lora', 'mine/vit']
    """
    root = zoo_path(folder)
    models = tuple(each_model(root))
    if not models and not may_be_empty:
        raise ProbexError(
            f"{root}: no models in it; expected folders or files such as .safetensors"
        )
    return models


def each_model(folder: str | Path) -> Iterator[FoundModel]:
    """As `find_models`, one after the other: of plain folders no more is kept than names."""
    root = zoo_path(folder)
    if not root.is_dir():
        raise ProbexError(f"{root}: no such folder; expected one with models in it")
    with disk_errors(root):
        for model in _of_split(root) or _models(root, root, set()):
            id, fault = checked_id(model.id, model.path)
            yield dataclasses.replace(model, id=id, fault=model.fault or fault)


def with_tables(folder: str | Path, models: Iterable[FoundModel]) -> Iterator[FoundModel]:
    """The models of a folder with the attributes that tables of labels in it name.

    Args:
      folder: that was searched; a zoo's models have their attributes already.
      models: found in it, with ids relative to it.

    Raises:
      ProbexError: if a table is malformed.
    """
    root = zoo_path(folder)
    if not any((root / name).exists() for name in LABEL_FILES):
        yield from models
        return
    found = list(models)
    tables, _ = find_labels(root, Names(model.id for model in found))
    for model in found:
        told = {**attributes_of(tables, model.id), **model.attributes}
        yield dataclasses.replace(model, attributes=told)


def attributes_of(tables: Labels | Tables, id: str) -> dict[str, float | tuple[str, ...]]:
    """What tables say of a model in columns that have a name."""
    columns: dict[str, Mapping[str, Any]] = {**tables.columns, **tables.numbers}
    return {name: column[id] for name, column in columns.items() if name and id in column}


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of the model at a path; () if there is no model."""
    if isinstance(path, ListedPath):
        return tuple(path / name for name, _ in path.files() if format_of(name))
    try:
        return local_files(path)
    except (ProbexError, OSError):
        return ()


def model_path(folder: Path) -> Path:
    """The single file of a folder, or the folder if that is the model."""
    if is_address(folder) or any(os.path.lexists(folder / name) for name in _WHOLE):
        return folder
    files = files_of(folder)
    return folder if checkpoint_in(folder, 0) else next(iter(files), folder)


def _models(folder: Path, root: Path, seen: set[int]) -> Iterator[FoundModel]:
    if not isinstance(folder, ListedPath):
        place = folder.stat()
        if (known := hash((place.st_dev, place.st_ino))) in seen:  # a link back
            return
        seen.add(known)
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = {name for name in names if (folder / name).is_dir()}
    files = [name for name in names if format_of(name) and name not in folders]
    # A folder with nothing else is listed, so that the reason is shown.
    unread = any(is_weights(folder / name) for name in names if name not in folders)
    if set(_WHOLE) & set(names) or _is_one(folder, files, folders):
        yield FoundModel(_id(folder, root), "", model_path(folder))
    elif folders & set(SPLITS):
        try:
            yield from list(_of_zoo(folder, root))
        except ProbexError as error:
            if folder == root:
                raise
            yield FoundModel(_id(folder, root), "", folder, fault=str(error))
    elif unread and not files:
        yield FoundModel(_id(folder, root), "", folder)
    else:
        taken: set[str] = set()
        for name in names:
            if name in folders:
                models = _models(folder / name, root, seen)
            elif format_of(name):
                models = iter([FoundModel(_id(folder / name, root), "", folder / name)])
            else:
                continue
            for model in models:
                if _has_twin(name, names):  # a file and a folder, or two files, of one name
                    model = _distinct(model, taken)
                    taken.add(model.id)
                yield model


def _has_twin(name: str, names: Sequence[str]) -> bool:
    """Whether other names, of those sorted, differ in the suffix alone."""
    stem = stem_of(name)
    place = bisect_left(names, stem + ".")
    alike = takewhile(
        lambda other: other.startswith(stem + "."), (names[n] for n in range(place, len(names)))
    )
    at = bisect_left(names, stem)
    bare = [stem] if names[at : at + 1] == [stem] else []
    return any(stem_of(other) == stem and other != name for other in chain(bare, alike))


def _distinct(model: FoundModel, taken: Collection[str]) -> FoundModel:
    if model.id not in taken:
        return model
    return dataclasses.replace(model, id=model.id + model.path.suffix)


def _is_one(folder: Path, files: Sequence[str], folders: Collection[str]) -> bool:
    """Whether a folder is one model: a file, an Orbax checkpoint, shards, Flax's numbered files."""
    if checkpoint_in(folder, 0) is not None:
        return True
    formats = set(map(format_of, files))
    # Of `.safetensors` files without an index each is a model.
    together = len(formats) == 1 and formats <= {".gguf", ".msgpack"} and files_of(folder)
    return not folders and (len(files) == 1 or bool(together and not is_address(folder)))


def _of_zoo(folder: Path, root: Path) -> Iterator[FoundModel]:
    splits = [entry for entry in folder.iterdir() if entry.name in SPLITS and entry.is_dir()]
    if not any(any(split.iterdir()) for split in splits):
        return  # an emptied zoo, which `scan` would reject
    zoo = scan(folder)
    prefix = "" if folder == root else _id(folder, root) + "/"
    for model in zoo.models:
        yield FoundModel(
            prefix + model.id,
            model.split,
            model.path,
            model.stated,
            fault=model.fault,
            tree=zoo.tree,
            texts=zoo.texts,
            attributes=attributes_of(zoo.tables, model.id),
        )


def _of_split(root: Path) -> list[FoundModel]:
    """The models of the split `root` of a zoo; [] if it is not a split."""
    for folder in [root] if is_address(root) else [Path(os.path.abspath(root)), root.resolve()]:
        if folder.name not in SPLITS:
            continue
        try:
            parent = zoo_path(str(folder.parent))
            zoo = list(_of_zoo(parent, parent))
        except (ProbexError, OSError):
            continue
        models = [model for model in zoo if model.split == folder.name]
        # Otherwise its folders are not models, but contain some.
        if any(files_of(model.path) for model in models):
            return models
    return []


def _id(path: Path, root: Path) -> str:
    relative = os.path.relpath(path, root) if path != root else path.resolve().name
    return stem_of(Path(relative).as_posix())
