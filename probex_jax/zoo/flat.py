"""The models of a folder without splits: in it, in its `models/`, or named by its `zoo.json`."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from probex_jax.bucket_paths import as_path
from probex_jax.buckets import is_address
from probex_jax.errors import ProbexError
from probex_jax.model_files.checkpoint_folders import checkpoint_in
from probex_jax.model_files.locate import FORMATS
from probex_jax.model_files.untrusted_text import is_text, quoted

# Files that may be meant as a model: listed, so that none is ignored silently.
_WEIGHTS = {*FORMATS, ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".onnx"}


def is_weights(path: Path) -> bool:
    """Whether a file may be meant as a model, even as one that is not read."""
    return path.suffix.lower() in _WEIGHTS


def stem_of(name: str) -> str:
    """The name of a file of a model without the suffix of its format."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in FORMATS else name


def by_name(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Models with their names: without suffixes, but for those that differ in nothing else.

    There a `.safetensors` file is called as without one.
    """
    paths = sorted(paths)
    stems = Counter(stem_of(path.name) for path in paths)
    for path in paths:
        stem = stem_of(path.name)
        alone = stems[stem] == 1 or path.suffix == ".safetensors"
        yield stem if alone else path.name, path


def flat_models(root: Path, named: Any, where: str) -> Iterator[tuple[str, Path]]:
    """The models of a folder without splits, by name.

    Args:
      root: the folder.
      named: of `zoo.json`, {name: path, …}; a path is that of a file or folder here, relative to
        `root` or absolute, or an address in a bucket. None to list what is in `models/`, or else in
        the folder itself.
      where: what errors about `named` name.

    Raises:
      ProbexError: if `named` is malformed.
    """
    if named is not None:
        yield from _named(root, named, where)
        return
    folder = root / "models" if (root / "models").is_dir() else root
    yield from by_name(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (_is_model(path) if path.is_dir() else is_weights(path))
    )


def _named(root: Path, named: Any, where: str) -> Iterator[tuple[str, Path]]:
    if not isinstance(named, dict):
        raise ProbexError(f"{where}: expected an object, name to path, found {quoted(named)}")
    for name, path in named.items():
        if not (is_text(name) and name.strip()):
            raise ProbexError(f"{where}: {quoted(name)} is not a valid model name")
        if is_text(path) and is_address(path):
            yield name, as_path(path)
        elif is_text(path) and path and "://" not in path:
            yield name, root / path
        else:
            raise ProbexError(f"{where}: {quoted(name)}: expected a path, found {quoted(path)}")


def _is_model(folder: Path) -> bool:
    """Whether a folder is one model: with weights, a checkpoint, or a cache folder of the hub."""
    is_cache = (folder / "snapshots").is_dir()
    return is_cache or any(map(is_weights, folder.iterdir())) or checkpoint_in(folder) is not None
