"""A forest: known trees with their routers and experts.

    forest.json                        format and version
    trees/<tree>/tree.json             state of the router without its centres; the experts' hashes
    trees/<tree>/arrays.safetensors    the centres; what is usual; embedded texts of classes
    trees/<tree>/expert/               the expert or committee; expert-1/ of another label set

Every tree has its own folder, which adding other trees does not touch.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from probex_jax.bucket_paths import as_path
from probex_jax.buckets import address_of, shown_path
from probex_jax.engine import HERE, Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.experts import Read, sized
from probex_jax.files import disk_errors, read_json
from probex_jax.forest.description import Answer, Description, Neighbour
from probex_jax.forest.inspection import inspect
from probex_jax.forest.router import Route, route
from probex_jax.forest.soundness import Soundness
from probex_jax.forest.stated_facts import StatedFacts, read_stated_facts
from probex_jax.forest.tree import VERSION, Tree
from probex_jax.model_files import ModelFile, Remote, open_model
from probex_jax.model_files.hub import hub_address

FORMAT = "probex_jax forest"

# Finds the nearest documented models of models of a tree, or says why there are none.
Nearest = Callable[[str, Sequence[Path]], Sequence[Sequence[Neighbour] | ProbexError]]


@dataclass(frozen=True)
class _Seen:
    """What is read of a model for its description."""

    stated: StatedFacts
    route: Route
    matrices: Mapping[str, Read] | None  # by label set; None if some are not finite
    soundness: Soundness | None


class Forest:
    """Known trees and their experts; created by `grow`, opened by `Forest.load`.

    Attributes:
      path: the forest's folder.
      trees: the trees by name.

    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import pack, scan
      >>> from probex_jax.forest import grow
      >>> folder, rng = pathlib.Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> root = rng.normal(size=(8, 8))
      >>> (folder / "zoo" / "train").mkdir(parents=True)
      >>> for number in range(5):
      ...     weights = {"fc1.weight": (root + 0.1 * rng.normal(size=(8, 8))).astype("f4")}
      ...     save_file(weights, folder / "zoo" / "train" / f"{number}.safetensors",
      ...               {"dataset_chosen_targets": "['cat']"})
      >>> _ = grow(folder / "forest", pack(scan(folder / "zoo"), folder / "store").store)
      >>> forest = Forest.load(folder / "forest")
      >>> forest.describe(folder / "zoo" / "train" / "3.safetensors").tree
      'zoo'
      >>> save_file({"fc1.weight": rng.normal(size=(8, 8)).astype("f4")}, folder / "x.safetensors")
      >>> forest.describe(folder / "x.safetensors").tree
      ''
    """

    def __init__(self, path: Path, trees: Mapping[str, Tree]):
        self.path, self.trees = path, trees

    def __repr__(self) -> str:
        return f"Forest({str(self.path)!r}: {', '.join(self.trees)})"

    @classmethod
    def load(cls, path: str | Path) -> Forest:
        """Opens a forest; experts are read when the first model of their tree comes.

        Raises:
          ProbexError: if there is no forest, or a damaged one.
        """
        path = as_path(path)
        trees = [Tree(folder) for folder in tree_folders(path)]
        return cls(path, {tree.router.tree: tree for tree in trees})

    def route(self, model: ModelFile, base: str | None = None) -> Route:
        """Finds the tree of an open model; arguments and errors as those of `forest.route`."""
        return route(model, [tree.router for tree in self.trees.values()], base)

    def tree_of(self, name: str) -> Tree | None:
        """The tree of this name, also by that of a store that brought one of its experts."""
        named = (tree for tree in self.trees.values() if name in tree.names)
        return next(named, self.trees.get(name))

    def check_tree(self, model: ModelFile, tree: str) -> None:
        """Raises a ProbexError if an open model is not of a tree of the forest."""
        known = self.tree_of(tree)
        if known is None:
            raise ProbexError(
                f"{self.path}: no tree {tree}; the forest has {', '.join(self.trees)}"
            )
        found, tree = self.route(model), known.router.tree
        if found.tree != tree:
            what = f"of tree {found.tree}" if found.tree else f"of unknown tree ({found.reason})"
            raise ProbexError(f"{model.path}: {what}, not of {tree}")

    def describe(self, path: str | Path, *, nearest: Nearest | None = None) -> Description:
        """Describes one model.

        Args:
          path: as for `open_model`.
          nearest: finds its nearest documented models.

        Raises:
          ProbexError: if it cannot be read, or its layers do not fit the expert of its tree.
        """
        [found] = self.describe_all([path], nearest=nearest)
        if isinstance(found, ProbexError):
            raise found
        return found

    def describe_all(
        self,
        paths: Iterable[str | Path],
        ids: Iterable[str] | None = None,
        *,
        nearest: Nearest | None = None,
        engine: Engine = HERE,
        readers: int = 4,
        remote: Remote | None = None,
    ) -> Iterator[Description | ProbexError]:
        """Describes models in batches, with one compiled call per tree.

        Args:
          paths: as for `open_model`; there may be any number of them.
          ids: their names; None to derive them from the paths.
          nearest: finds the nearest documented models of models of a known tree.
          engine: who reads and describes them.
          readers: threads of each worker that read models.
          remote: how models on servers are read, by this process; None for no cache.

        Yields:
          A description or an error for each path, in order.
        """
        if ids is None:
            models: Iterable[tuple[Path, str]] = ((Path(p), model_name(Path(p))) for p in paths)
        else:
            models = zip(map(Path, paths), ids, strict=True)
        size, models = sized([tree.layers for tree in self.trees.values() if tree.layers], models)
        make = partial(self._work, size, nearest, remote)
        done = engine.map(make, in_parts(models, size), readers=readers)
        return (description for _, description in flattened(done))

    def __reduce__(self) -> tuple[Any, ...]:
        return Forest.load, (self.path,)

    def _work(self, size: int, nearest: Nearest | None, remote: Remote | None) -> Work:
        stopped = threading.Event()
        reading = dataclasses.replace(remote or Remote(), stopped=stopped)

        def described(
            part: Sequence[tuple[Path, str]], seen: Sequence[_Seen | ProbexError]
        ) -> list[Description | ProbexError]:
            return list(self._described(part, seen, size, nearest))

        def read(model: tuple[Path, str]) -> _Seen | ProbexError:
            return self._see(model[0], reading)

        return Work(read, described, stopped.set)

    def _see(self, path: Path, remote: Remote) -> _Seen | ProbexError:
        """Reads what a description needs, opening the file once."""
        try:
            with open_model(path, remote=remote, unfit_as_zero=True) as model:
                said = read_stated_facts(model)
                where, one = self.route(model, said.base), model
                if not where.tree:  # a single-file checkpoint may have a part of a known tree
                    routed = ((self.route(p, said.base), p) for p in model.parts.values())
                    known = (found for found in routed if found[0].tree)
                    where, one = next(known, (where, model))
                experts = self.trees[where.tree].experts if where.tree else {}
                matrices = {label_set: expert.read(one) for label_set, expert in experts.items()}
                sound = self._inspect(one, where, matrices, is_remote=bool(address_of(path)))
                model.check_unchanged()
                return _Seen(said, where, None if one.unfit else matrices, sound)
        except ProbexError as error:
            return error
        except (OSError, MemoryError) as error:
            return ProbexError(f"{path}: cannot be read: {error}")

    def _inspect(
        self, model: ModelFile, where: Route, matrices: Mapping[str, Read], *, is_remote: bool
    ) -> Soundness | None:
        """What is unusual about a model, also beside a tree that most of its layers are of."""
        usual = self.trees[where.nearest].usual if where.nearest else None
        read = {name: matrix for each in matrices.values() for name, matrix in each.items()}
        return inspect(model, where, usual, read, is_remote=is_remote)

    def _described(
        self,
        batch: Sequence[tuple[Path, str]],
        seen: Sequence[_Seen | ProbexError],
        size: int,
        nearest: Nearest | None,
    ) -> Iterator[Description | ProbexError]:
        answers: dict[int, tuple[Answer, ...] | ProbexError] = {}
        neighbours: dict[int, Sequence[Neighbour] | ProbexError] = {}
        for name, tree in self.trees.items():
            of_tree = {
                place: one
                for place, one in enumerate(seen)
                if isinstance(one, _Seen) and one.route.tree == name and one.matrices is not None
            }
            if not of_tree:
                continue
            read = [one.matrices or {} for one in of_tree.values()]
            answers |= zip(of_tree, tree.answers(read, size), strict=True)
            if nearest is not None:
                try:
                    found = nearest(name, [batch[place][0] for place in of_tree])
                except ProbexError as error:
                    found = [error] * len(of_tree)
                neighbours |= zip(of_tree, found, strict=True)
        for place, ((path, name), one) in enumerate(zip(batch, seen, strict=True)):
            said, near = answers.get(place, ()), neighbours.get(place)
            if isinstance(one, ProbexError):
                yield one
            elif isinstance(said, ProbexError):
                yield ProbexError(f"{path}: {said}")
            elif isinstance(near, ProbexError):
                yield near
            else:
                about = Description(
                    name, shown_path(path), one.stated, one.route, soundness=one.soundness
                )
                yield about if not about.tree else self._of_tree(about, said, near)

    def _of_tree(
        self,
        about: Description,
        answers: tuple[Answer, ...],
        neighbours: Sequence[Neighbour] | None,
    ) -> Description:
        tree = self.trees[about.tree]
        return dataclasses.replace(
            about,
            root=tree.router.root,
            stated_root=tree.router.stated_root,
            answers=answers,
            untold=tree.untold,
            neighbours=None if neighbours is None else tuple(neighbours),
        )


def tree_folders(path: Path) -> list[Path]:
    """The folders of the trees of a forest; a ProbexError if there is no forest."""
    check_format(path)
    return trees_in(path)


def check_format(path: Path) -> None:
    """Raises a ProbexError if there is no forest, or one of another version."""
    try:
        about = read_json(path / "forest.json")
    except (FileNotFoundError, NotADirectoryError):
        raise ProbexError(f"{path}: no forest here; create one with probex grow_forest") from None
    version = about.get("version") if isinstance(about, dict) else None
    if not isinstance(about, dict) or (about.get("format"), version) != (FORMAT, VERSION):
        raise ProbexError(
            f"{path / 'forest.json'}: forest of version {version!r}, expected {VERSION}; grow it "
            "again in a new folder"
        )


def trees_in(path: Path) -> list[Path]:
    """The folders in a forest's that have a `tree.json`."""
    with disk_errors(path):
        found = {file.parent.name: file.parent for file in path.glob("trees/[!.]*/tree.json")}
        # Trees whose replacement was interrupted before the new one was in place.
        for file in path.glob("trees/.*.old/tree.json"):
            found.setdefault(file.parent.name[1 : -len(".old")], file.parent)
    return [found[name] for name in sorted(found)]


def model_name(path: Path) -> str:
    """The name of a model, from its path."""
    if url := address_of(path):
        address, parts = hub_address(url), urlsplit(shown_path(url))
        path = Path(
            "/", *((address.id, address.path) if address else (parts.netloc, parts.path[1:]))
        )
    path = Path(os.path.abspath(path))  # not resolved: links in a hub cache lead to hashes
    if path.name in ("model.safetensors", "pytorch_lora_weights.safetensors"):
        path = path.parent
    if path.parent.name == "snapshots":
        path = path.parent.parent
    return path.name.removesuffix(".safetensors")
