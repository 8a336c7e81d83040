"""The models that a command is given: files, folders of them, addresses, and lists of all these."""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from probex_jax.bucket_paths import as_path
from probex_jax.buckets import address_of, shown_path
from probex_jax.errors import ProbexError
from probex_jax.forest.forest import model_name
from probex_jax.model_files.hub import hub_address
from probex_jax.search import FoundModel
from probex_jax.search.folders import each_model, with_tables
from probex_jax.zoo.listed_path import zoo_path

# So many are kept in memory; of more, only their ids' hashes.
_KEPT = 10_000


class Models:
    """The models that paths mean: files, model folders, and folders of such at any depth.

    They are found again for each pass, unless they are few. A path that means none stands for
    itself, so that what is wrong with it is reported there.

    Args:
      paths: of models.
      list: a file with a path a line, or "".
      whole: whether the paths are folders, and what is wrong with one of them is raised.
      tables: whether to read what tables of labels in these folders say of their models.

    Raises:
      ProbexError: if there is no such file, or a table is malformed.
    """

    def __init__(
        self, paths: Sequence[str], list: str = "", *, whole: bool = False, tables: bool = False
    ):
        self._tables = tables
        self._list, self._whole = as_path(list) if list else None, whole
        if self._list is not None and not self._list.is_file():
            raise ProbexError(f"{list}: no file; expected one with a model a line")
        self._roots: Sequence[Any] = [(zoo_path if whole else self._root)(path) for path in paths]
        self._first: Sequence[FoundModel] = ()
        self._count = -1

    def __len__(self) -> int:
        if self._count < 0:
            found = self._found()
            self._first = tuple(islice(found, _KEPT))
            self._count = len(self._first) + sum(1 for _ in found)
        return self._count

    def __iter__(self) -> Iterator[FoundModel]:
        return iter(self._first) if len(self) == len(self._first) else self._found()

    def _found(self) -> Iterator[FoundModel]:
        counts: dict[int, int] = {}
        given = map(self._in, self._roots)
        listed = map(_models, map(self._root, self._lines()))
        for model in chain.from_iterable(chain(given, listed)):
            id, number = model.id, 1
            while hash(id) in counts:
                number = counts[hash(model.id)] = counts[hash(model.id)] + 1
                id = f"{model.id}-{number}"
            counts[hash(id)] = 1
            yield model if id == model.id else dataclasses.replace(model, id=id)

    def _in(self, root: Any) -> Iterator[FoundModel]:
        models = (each_model if self._whole else _models)(root)
        has_tables = self._tables and isinstance(root, Path) and root.is_dir()
        return with_tables(root, models) if has_tables else models

    @staticmethod
    def _root(path: str) -> Path | FoundModel:
        try:
            return zoo_path(path)
        except ProbexError as error:
            return FoundModel(Path(path).name, "", Path(path), fault=str(error))

    def _lines(self) -> Iterator[str]:
        if self._list is None:
            return
        try:
            with self._list.open(encoding="utf-8") as lines:
                yield from (line for line in map(str.rstrip, lines) if line.strip())
        except UnicodeDecodeError as error:
            raise ProbexError(f"{self._list} is not UTF-8 text (byte {error.start})") from error


def _models(root: Path | FoundModel) -> Iterator[FoundModel]:
    if isinstance(root, FoundModel):
        yield root
        return
    try:
        is_empty = True
        if root.is_dir():
            for model in each_model(root):
                is_empty = False
                yield model
            if is_empty:
                fault = f"{root}: no models in it; expected folders or files such as .safetensors"
                yield FoundModel(root.name, "", root, fault=fault)
        else:
            yield FoundModel(_name(root), "", root)
    except ProbexError as error:
        yield FoundModel(root.name, "", root, fault=str(error))


def _name(path: Path) -> str:
    url = address_of(path)
    if url and (found := hub_address(url)):
        return "/".join(filter(None, (found.id, found.path)))
    return model_name(path) or shown_path(path)
