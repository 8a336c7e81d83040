"""Checks a forest whole: every tree, its arrays, and its experts against their hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from probex_jax.bucket_paths import BucketPath, as_path, sizes_below
from probex_jax.errors import ProbexError
from probex_jax.experts.verify import verify_hash
from probex_jax.forest.forest import check_format, trees_in
from probex_jax.forest.tree import Tree
from probex_jax.integrity import noted

# A tree that is replaced meanwhile is looked at again.
_TRIES = 3


def verify_forest(
    path: str | Path,
    *,
    on_total: Callable[[int], None] = lambda n: None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Iterator[str]:
    """Checks a forest, which may be being grown.

    Args:
      path: the forest's folder.
      on_total: called with the number of bytes that will be read.
      on_bytes: called with the number of bytes that were read since the last call.

    Yields:
      A line for each damage, which begins with the path of the file.

    Raises:
      ProbexError: if there is no forest.
    """
    path = as_path(path)
    sizes = sizes_below(path)
    if path / "forest.json" not in sizes and not any(path / "trees" in f.parents for f in sizes):
        raise ProbexError(f"{path}: no forest here; create one with probex grow_forest")
    damages: list[str] = []
    with noted(damages):
        if path / "forest.json" not in sizes:
            raise ProbexError(f"{path / 'forest.json'}: missing; grow the forest again")
        check_format(path)
    yield from damages
    folders = set(trees_in(path))
    if not isinstance(path, BucketPath):  # where a tree is put file by file, tree.json last
        folders |= {file for file in path.glob("trees/[!.]*") if file.is_dir()}
    of_tree = {
        folder: sum(size for file, size in sizes.items() if folder in file.parents)
        for folder in sorted(folders)
    }
    on_total(sum(of_tree.values()))
    for folder, size in of_tree.items():
        for _ in range(_TRIES):
            before = _content(folder)
            damages = list(_of_tree(folder))
            if not damages or _content(folder) == before:
                break
        yield from damages
        on_bytes(size)


def _content(folder: Path) -> bytes | None:
    try:
        return (folder / "tree.json").read_bytes()
    except OSError:
        return None


def _of_tree(folder: Path) -> Iterator[str]:
    damages: list[str] = []
    tree = None
    if not (folder / "tree.json").is_file():
        damages.append(f"{folder / 'tree.json'}: missing; grow the tree again")
    else:
        with noted(damages):
            tree = Tree(folder)
    yield from damages
    if tree is None:
        hashes = {place.name: "" for place in folder.glob("expert*") if place.is_dir()}
    else:
        hashes = {entry.folder: entry.hash for entry in tree.entries.values()}
    for name, known in hashes.items():
        yield from verify_hash(folder / name, known)
