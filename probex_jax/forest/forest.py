"""A forest: known trees with their routers and experts.

    forest.json                        format and version
    trees/<tree>/tree.json             state of the router without its centres; the expert's hash
    trees/<tree>/arrays.safetensors    the centres; embedded texts of the expert's classes
    trees/<tree>/expert/               the expert or committee

Every tree has its own folder, which adding other trees does not touch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, Read, batch_size, in_batches
from probex_jax.files import disk_errors, read_json
from probex_jax.forest.description import Description, ExpertFacts, Neighbour, Prediction
from probex_jax.forest.router import Route, TreeRouter, route
from probex_jax.forest.stated_facts import StatedFacts, read_stated_facts
from probex_jax.model_files import ModelFile, open_model
from probex_jax.model_files.hub import hub_address, remote_url, shown_path, shown_url

FORMAT = "probex_jax forest"
VERSION = 2

_READERS = 4

# Finds the nearest documented models of models of a tree, or says why there are none.
Nearest = Callable[[str, Sequence[Path]], Sequence[Sequence[Neighbour] | ProbexError]]


@dataclass(frozen=True)
class _Seen:
    """What is read of a model for its description."""

    stated: StatedFacts
    route: Route
    matrices: Read | None


class Tree:
    """One tree of a forest.

    Attributes:
      path: its folder.
      router: recognises its models.
      about: the content of tree.json.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about = read_json(path / "tree.json")
            if (version := self.about["version"]) != VERSION:
                raise ProbexError(
                    f"{path}: tree of version {version!r}, expected {VERSION}; grow it again"
                )
            self._arrays = _arrays(path / "arrays.safetensors", self.about["arrays_sha256"])
            self.router = TreeRouter.from_json(self.about["router"], self._arrays["centres"])
            shapes = self.about["expert"]["layers"] if self.about["expert"] else {}
            self.layers = {name: (int(h), int(w)) for name, (h, w) in shapes.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise ProbexError(f"{path}: damaged tree ({error!r}); grow it again") from error
        self._lock = threading.Lock()
        self._expert: Expert | None = None

    @property
    def expert(self) -> Expert | None:
        """The expert; None for a tree without one.

        Raises:
          ProbexError: if it is damaged, or not the one that the tree was grown with.
        """
        with self._lock:
            if self._expert is None and self.about["expert"]:
                self._expert = Expert.load(self.path / "expert")
                if self._expert.hash != self.about["expert"]["hash"]:
                    raise ProbexError(f"{self.path}: holds a different expert; grow the tree again")
        return self._expert

    def predict(
        self, models: Sequence[Read], size: int
    ) -> list[tuple[Prediction, ...] | ProbexError]:
        """Predictions for models, in compiled calls of `size` models."""
        expert = self.expert
        assert expert is not None
        classes, texts = expert.card.classes, expert.card.words
        found: dict[int, tuple[Prediction, ...] | ProbexError] = {}
        for places, batch in in_batches(expert, models, size):
            p_NY = np.asarray(expert.probabilities(batch, self._arrays.get("texts")))
            for place, p_Y in zip(places, p_NY, strict=False):
                if not np.isfinite(p_Y).all():
                    found[place] = ProbexError("its weights are too large for finite probabilities")
                    continue
                found[place] = tuple(
                    Prediction(classes[y], texts.get(classes[y], classes[y]), float(p_Y[y]))
                    for y in np.argsort(-p_Y, kind="stable")
                )
        return [found[place] for place in range(len(models))]

    def facts(self) -> ExpertFacts:
        """The facts about the expert for descriptions."""
        expert = self.expert
        assert expert is not None
        card = expert.card
        return ExpertFacts(
            hash=expert.hash,
            layers=tuple(expert.layers),
            encoder=(card.common("encoder") or {"name": "committee"})["name"],
            n_train=card.n_train,
            accuracy=card.figures.get("test_accuracy"),
            calibration_error=(card.calibration and card.calibration.after) or {},
            chosen="one" if card.task.exclusive else "several",
            auc=card.figures.get("test_auc"),
        )


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
        trees = [Tree(folder) for folder in tree_folders(Path(path))]
        return cls(Path(path), {tree.router.tree: tree for tree in trees})

    def route(self, model: ModelFile, base: str | None = None) -> Route:
        """Finds the tree of an open model; arguments and errors as those of `forest.route`."""
        return route(model, [tree.router for tree in self.trees.values()], base)

    def check_tree(self, model: ModelFile, tree: str) -> None:
        """Raises a ProbexError if an open model is not of a tree of the forest."""
        if tree not in self.trees:
            raise ProbexError(
                f"{self.path}: no tree {tree}; the forest has {', '.join(self.trees)}"
            )
        found = self.route(model)
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
        paths: Sequence[str | Path],
        ids: Sequence[str] | None = None,
        *,
        nearest: Nearest | None = None,
    ) -> Iterator[Description | ProbexError]:
        """Describes models in batches, with one compiled call per tree.

        Args:
          paths: as for `open_model`.
          ids: their names; None to derive them from the paths.
          nearest: finds the nearest documented models of models of a known tree.

        Yields:
          A description or an error for each path, in order.
        """
        names = list(ids) if ids is not None else [model_name(Path(path)) for path in paths]
        shapes = [tree.layers for tree in self.trees.values() if tree.layers]
        size = min((batch_size(layers, len(paths)) for layers in shapes), default=1)
        waiting = iter(zip(map(Path, paths), names, strict=True))
        with ThreadPoolExecutor(_READERS) as readers:

            def read(batch: list[tuple[Path, str]]) -> list[Future[_Seen | ProbexError]]:
                return [readers.submit(self._see, path) for path, _ in batch]

            batch = list(islice(waiting, size))
            futures = read(batch)
            while batch:
                # Reads the next batch while this one is described.
                following = list(islice(waiting, size))
                ahead = read(following)
                seen = [future.result() for future in futures]
                yield from self._described(batch, seen, size, nearest)
                batch, futures = following, ahead

    def _see(self, path: Path) -> _Seen | ProbexError:
        """Reads what a description needs, opening the file once."""
        try:
            with open_model(path) as model:
                said = read_stated_facts(model)
                where = self.route(model, said.base)
                expert = self.trees[where.tree].expert if where.tree else None
                matrices = None if expert is None else expert.read(model)
                model.check_unchanged()
                return _Seen(said, where, matrices)
        except ProbexError as error:
            return error
        except (OSError, MemoryError) as error:
            return ProbexError(f"{path}: cannot be read: {error}")

    def _described(
        self,
        batch: Sequence[tuple[Path, str]],
        seen: Sequence[_Seen | ProbexError],
        size: int,
        nearest: Nearest | None,
    ) -> Iterator[Description | ProbexError]:
        predictions: dict[int, tuple[Prediction, ...] | ProbexError] = {}
        neighbours: dict[int, Sequence[Neighbour] | ProbexError] = {}
        for name, tree in self.trees.items():
            of_tree = {
                place: one
                for place, one in enumerate(seen)
                if isinstance(one, _Seen) and one.route.tree == name
            }
            if not of_tree:
                continue
            read = {p: one.matrices for p, one in of_tree.items() if one.matrices is not None}
            if read:
                predictions |= zip(read, tree.predict(list(read.values()), size), strict=True)
            if nearest is not None:
                try:
                    found = nearest(name, [batch[place][0] for place in of_tree])
                except ProbexError as error:
                    found = [error] * len(of_tree)
                neighbours |= zip(of_tree, found, strict=True)
        for place, ((path, name), one) in enumerate(zip(batch, seen, strict=True)):
            said, near = predictions.get(place), neighbours.get(place)
            if isinstance(one, ProbexError):
                yield one
            elif isinstance(said, ProbexError):
                yield ProbexError(f"{path}: {said}")
            elif isinstance(near, ProbexError):
                yield near
            else:
                about = Description(name, shown_path(path), one.stated, one.route)
                yield about if not about.tree else self._of_tree(about, said, near)

    def _of_tree(
        self,
        about: Description,
        predictions: tuple[Prediction, ...] | None,
        neighbours: Sequence[Neighbour] | None,
    ) -> Description:
        tree = self.trees[about.tree]
        return dataclasses.replace(
            about,
            root=tree.router.root,
            stated_root=tree.router.stated_root,
            predictions=predictions or (),
            expert=None if predictions is None else tree.facts(),
            neighbours=None if neighbours is None else tuple(neighbours),
        )


def tree_folders(path: Path) -> list[Path]:
    """The folders of the trees of a forest; a ProbexError if there is no forest."""
    try:
        about = read_json(path / "forest.json")
    except (FileNotFoundError, NotADirectoryError):
        raise ProbexError(
            f"{path}: no forest here; create one with experiments.grow_forest"
        ) from None
    version = about.get("version") if isinstance(about, dict) else None
    if not isinstance(about, dict) or (about.get("format"), version) != (FORMAT, VERSION):
        raise ProbexError(
            f"{path}: forest of version {version!r}, expected {VERSION}; grow it again "
            "in a new folder"
        )
    with disk_errors(path):
        found = {file.parent.name: file.parent for file in path.glob("trees/[!.]*/tree.json")}
        # Trees whose replacement was interrupted before the new one was in place.
        for file in path.glob("trees/.*.old/tree.json"):
            found.setdefault(file.parent.name[1 : -len(".old")], file.parent)
    return [found[name] for name in sorted(found)]


def _arrays(path: Path, sha256: str) -> dict[str, np.ndarray]:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ProbexError(f"{path}: damaged: its content does not match its hash")
    with open_model(path) as file:
        return {name: file.tensor(name) for name in file.tensors}


def model_name(path: Path) -> str:
    """The name of a model, from its path."""
    if url := remote_url(path):
        address, parts = hub_address(url), urlsplit(shown_url(url))
        path = Path(
            "/", *((address.id, address.path) if address else (parts.netloc, parts.path[1:]))
        )
    path = Path(os.path.abspath(path))  # not resolved: links in a hub cache lead to hashes
    if path.name in ("model.safetensors", "pytorch_lora_weights.safetensors"):
        path = path.parent
    if path.parent.name == "snapshots":
        path = path.parent.parent
    return path.name.removesuffix(".safetensors")
