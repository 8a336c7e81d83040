"""Finds the arrays of a checkpoint of Orbax: in a folder, its items or the newest of its steps."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from probex_jax.errors import ProbexError

_MAX_FILES = 100_000
_MARKERS = ("_METADATA", "manifest.ocdbt")
# Of several items, the one that is the model.
_ITEMS = ("params", "model", "default", "state", "train_state", "items")
_STEP = re.compile(r"(?!.*orbax-checkpoint-tmp)(?:.*\D)?(\d{1,15})")


def checkpoint_in(path: Path, depth: int = 3) -> Path | None:
    """The folder of Orbax's arrays in a checkpoint, or in the newest one of several."""
    if any((path / marker).is_file() for marker in _MARKERS):
        return path
    inside = [child for child in path.iterdir() if child.is_dir()] if depth else []
    by_name = {child.name: child for child in inside}
    items = [by_name[name] for name in _ITEMS if name in by_name]
    steps = [(int(found[1]), child) for child in inside if (found := _STEP.fullmatch(child.name))]
    for child in (*items, *(child for _, child in sorted(steps, reverse=True))):
        if item := checkpoint_in(child, depth - 1):
            return item
    return None


def may_be_checkpoint(names: Iterable[str]) -> bool:
    """Whether files and folders that are called so are of a checkpoint, or of several steps."""
    return any(name in (*_MARKERS, *_ITEMS) or name.isdecimal() for name in names)


def walked(folder: Path) -> Iterator[Path]:
    """All files and folders in a folder; a ProbexError if they are too many."""
    count = 0
    for parent, folders, names in os.walk(folder):
        count += len(folders) + len(names)
        if count > _MAX_FILES:
            raise ProbexError(f"{folder}: over {_MAX_FILES} files, the limit")
        yield from (Path(parent) / name for name in (*folders, *names))
