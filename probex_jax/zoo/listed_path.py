"""The paths of a zoo in a bucket. Its objects are listed once: each question would be a request."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from probex_jax.buckets import Entry, address_of, all_below, is_address
from probex_jax.model_files.stated import files_of_labels

# More objects are no zoo, but a bucket.
_MAX_OBJECTS = 1_000_000


class ListedPath(type(Path())):  # type: ignore[misc]
    """A path in a bucket, which knows what there was when it was made by `zoo_path`."""

    # The parts of each folder to what is in it; a folder is None.
    tree: Mapping[tuple[str, ...], Mapping[str, Entry | None]] = MappingProxyType({})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with what lies below it, and beside it under its own name or as a label file."""
        there, parent = self.tree.get(self.parts[:-1], {}), self.parts[:-1]
        told = (self.name, *files_of_labels(self.stem))
        beside = {name: there[name] for name in told if name in there}
        return _restored, (str(self), {parent: beside, **dict(self._below(self.parts))})

    def _below(self, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if (inside := self.tree.get(at)) is not None:
            yield at, inside
            for name in inside:
                yield from self._below((*at, name))

    def __str__(self) -> str:
        return address_of(super().__str__())

    def __truediv__(self, name: str | os.PathLike[str]) -> "ListedPath":
        found = super().__truediv__(name)
        found.tree = self.tree
        return found

    def is_dir(self, **_: bool) -> bool:
        return self.parts in self.tree

    def exists(self, **_: bool) -> bool:
        return self.name in self.tree.get(self.parts[:-1], ()) or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["ListedPath"]:
        return (self / name for name in self.tree.get(self.parts, ()))

    def files(self) -> list[tuple[str, Entry]]:
        """What the file or folder holds: the name and entry of each file."""
        entry = self.tree.get(self.parts[:-1], {}).get(self.name)
        return (
            [(self.name, entry)] if entry else [f for path in self.iterdir() for f in path.files()]
        )

    def resolve(self, strict: bool = False) -> "ListedPath":
        return self


def zoo_path(root: str | os.PathLike[str]) -> Path:
    """The path of a zoo's folder, on this machine or in a bucket.

    Raises:
      ProbexError: if there is no such bucket, or the server does not answer.
    """
    if isinstance(root, ListedPath):
        return root
    if not is_address(root):
        return Path(root)
    url = address_of(root).rstrip("/")
    path = ListedPath(url)
    tree: dict[tuple[str, ...], dict[str, Entry | None]] = {}
    for name, entry in all_below(url, _MAX_OBJECTS).items():
        *folders, file = name.split("/")
        at = path.parts
        for part in folders:
            tree.setdefault(at, {}).setdefault(part, None)
            at += (part,)
        tree.setdefault(at, {})[file] = entry
    path.tree = tree
    return path


def _restored(url: str, tree: Mapping[tuple[str, ...], Mapping[str, Entry | None]]) -> ListedPath:
    path = ListedPath(url)
    path.tree = tree
    return path
