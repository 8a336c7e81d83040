"""The paths of a zoo in a bucket. Its objects are listed once: each question would be a request."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from probex_jax.buckets import address_of, is_address, names_below

# More objects are no zoo, but a bucket.
_MAX_OBJECTS = 1_000_000


class ListedPath(type(Path())):  # type: ignore[misc]
    """A path in a bucket, which knows what there was when it was made by `zoo_path`."""

    __slots__ = ("tree",)
    # The parts of each folder to the names in it.
    tree: Mapping[tuple[str, ...], set[str]]

    def __str__(self) -> str:
        return address_of(super().__str__())

    def __truediv__(self, name: str | os.PathLike[str]) -> "ListedPath":
        found = super().__truediv__(name)
        found.tree = self.tree
        return found

    def is_dir(self, **_: bool) -> bool:
        return self.parts in self.tree

    def exists(self, **_: bool) -> bool:
        return self.is_dir() or self.name in self.tree.get(self.parts[:-1], ())

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["ListedPath"]:
        return (self / name for name in self.tree.get(self.parts, ()))

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
    tree: dict[tuple[str, ...], set[str]] = {}
    for name in names_below(url, _MAX_OBJECTS):
        folder = path.parts
        for part in name.split("/"):
            tree.setdefault(folder, set()).add(part)
            folder += (part,)
    path.tree = tree
    return path
