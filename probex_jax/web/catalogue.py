"""The content of the page: a forest, and indexes of documented models."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError, one_line
from probex_jax.forest import Description, Forest, Neighbour, Relatives, RelativesIn
from probex_jax.lineage import Lineage
from probex_jax.model_files import Remote, open_model
from probex_jax.reports import model_card
from probex_jax.reports.family_tree import family_tree_html
from probex_jax.reports.interactive_map import MapPoint, interactive_map
from probex_jax.reports.map_layout import position_among
from probex_jax.search import EVERY, Filter, Hit, Index, Snapshot
from probex_jax.search.conditions import Condition, conditions
from probex_jax.search.embedding import represented
from probex_jax.web.layouts import load_layout
from probex_jax.web.models import Model
from probex_jax.zoo.model_j import HELD_OUT_SPLITS

MAX_K = 100
MAX_QUERY = 1000  # characters
# A hub that sends nothing for so long is given up.
PATIENCE_S = 5.0
_NEIGHBOURS = 5
_DIRECTORIES = re.compile(r"(?<![\w:/.])/(?:[^/\s:'\"]+/)+")


@dataclass(frozen=True)
class Described:
    """The description of an uploaded model.

    Args:
      name: of the model.
      description: None if it cannot be read.
      error: why it cannot be read, or "".
      star: its position on the map of its tree; None without a map.
    """

    name: str
    description: Description | None
    error: str = ""
    star: tuple[float, float] | None = None


class Catalogue:
    """A forest and indexes, loaded once and safe for concurrent use.

    No answer contains a path of this machine.

    Args:
      forest: the trees and their experts.
      indexes: of documented models, at most one per tree.
      lineage: of some models; None for none.

    Attributes:
      forest: as given.
      family_tree: the page of the lineage; "" without one.
      snapshots: tree to its index in memory.

    Raises:
      ProbexError: if two indexes are of the same tree.
    """

    def __init__(
        self, forest: Forest, indexes: Sequence[Index] = (), lineage: Lineage | None = None
    ):
        self.forest = forest
        self._lineage, self.family_tree = lineage, ""
        found = [Snapshot(index) for index in indexes]
        self.snapshots: Mapping[str, Snapshot] = {one.tree: one for one in found}
        if len(self.snapshots) < len(found):
            raise ProbexError("two indexes are of the same tree; give at most one per tree")
        self._layouts = {tree: load_layout(one) for tree, one in self.snapshots.items()}
        roots = [forest.path, *(index.path for index in indexes), Path.cwd(), Path.home()]
        roots.append(Path(tempfile.gettempdir()))
        found_roots = {str(path) for given in roots for path in (given, given.resolve())}
        # The longest first: one may lie in another.
        self._roots = sorted(found_roots - {"/", "."}, key=len, reverse=True)
        if lineage is not None:
            self._relatives = RelativesIn(lineage)
            self._known = {node.id for node in lineage.nodes}
            self.family_tree = family_tree_html(self._without_paths(lineage), "Family tree")

    def warm_up(self) -> None:
        """Loads and compiles what the first search would otherwise wait for.

        Raises:
          ProbexError: if the expert of an index cannot be read.
        """
        for snapshot in self.snapshots.values():
            # An unreadable expert must fail now, not at the first search.
            _ = snapshot.index.expert
            if snapshot.knows_texts:
                with suppress(ProbexError):  # precomputed embeddings lack this text
                    snapshot.place("a model")

    def describe(self, models: Sequence[Model]) -> list[Described]:
        """Describes models, in order."""
        remote, whole = _remote(), [model for model in models if not model.fault]
        stars: dict[Path, tuple[float, float]] = {}

        def nearest(tree: str, paths: Sequence[Path]) -> list[Sequence[Neighbour] | ProbexError]:
            snapshot = self.snapshots.get(tree)
            if snapshot is None:
                return [() for _ in paths]
            found: list[Sequence[Neighbour] | ProbexError] = []
            vectors_T = represented(snapshot.index.expert, paths, remote)
            for path, vector_T in zip(paths, vectors_T, strict=True):
                if isinstance(vector_T, ProbexError):
                    found.append(vector_T)
                    continue
                layout = self._layouts[tree]
                if layout is not None and layout.models:
                    stars[path] = position_among(layout.points, layout.vectors, vector_T)
                found.append(
                    [_neighbour(hit) for hit in snapshot.near(vector_T, _NEIGHBOURS, but=str(path))]
                )
            return found

        paths, names = [model.path for model in whole], [model.name for model in whole]
        near = nearest if self.snapshots else None
        described = self.forest.describe_all(paths, names, nearest=near, remote=remote)
        return [
            Described(model.name, None, model.fault)
            if model.fault
            else self._described(model, next(described), stars.get(model.path))
            for model in models
        ]

    def _described(
        self, model: Model, found: Description | ProbexError, star: tuple[float, float] | None
    ) -> Described:
        if isinstance(found, ProbexError):
            return Described(model.name, None, self.shown(found, model))
        route = replace(found.route, reason=self.shown(found.route.reason, model))
        return Described(model.name, replace(found, path=model.name, route=route), star=star)

    def vector_of(self, model: Model, tree: str = "") -> tuple[str, np.ndarray]:
        """The representation of a model in an index.

        Args:
          model: an example to search by.
          tree: of the index; "" for that of the model's own tree.

        Returns:
          The tree and the vector [T].

        Raises:
          ProbexError: if the model cannot be read, or has no index.
        """
        remote = _remote()
        try:
            if model.fault:
                raise ProbexError(model.fault)
            if not tree:
                with open_model(model.path, remote=remote) as file:
                    route = self.forest.route(file)
                if not route.tree:
                    raise ProbexError(f"{model.name}: unknown tree: {route.reason}")
                tree = route.tree
            [vector_T] = represented(self.snapshot(tree).index.expert, [model.path], remote)
            if isinstance(vector_T, ProbexError):
                raise vector_T
        except ProbexError as error:
            raise ProbexError(self.shown(error, model)) from None
        return tree, vector_T

    def snapshot(self, tree: str = "", *, for_texts: bool = False) -> Snapshot:
        """The index of a tree; "" for the first one, or the first that can be searched by text."""
        fitting = [s for s in self.snapshots.values() if s.knows_texts or not for_texts]
        if tree and tree not in self.snapshots:
            raise ProbexError(f"no index of tree {tree!r}")
        if not tree and not fitting:
            what = "no index here has texts: search by an example"
            raise ProbexError(what if self.snapshots else "this server has no index of models")
        return self.snapshots[tree] if tree else fitting[0]

    def search(
        self, query: str, tree: str = "", k: int = 10, where: Filter = EVERY
    ) -> tuple[str, list[Hit]]:
        """The models that match a text.

        Returns:
          The tree of the index, and the models, most similar first.

        Raises:
          ProbexError: if the text is empty or too long, k is out of range, or no index can be
            searched by text.
        """
        _check_length(query)
        snapshot = self.snapshot(tree, for_texts=True)
        if not snapshot.knows_texts:
            raise ProbexError(f"the index of {tree} has no texts: search it by an example")
        return snapshot.tree, snapshot.near(snapshot.place(query), _checked(k, where), where)

    def like(
        self, tree: str, vector_T: np.ndarray, k: int = 10, where: Filter = EVERY, but: str = ""
    ) -> list[Hit]:
        """The models most similar to a vector [T] in the index of a tree."""
        return self.snapshot(tree).near(vector_T, _checked(k, where), where, but=but)

    def like_id(
        self, tree: str, id: str, k: int = 10, where: Filter = EVERY
    ) -> tuple[str, list[Hit]]:
        """The models most similar to one in the index, which is left out; returns as `search`.

        Without a tree, the first index that holds the model is searched.
        """
        snapshot, place = self._place_of(id, tree)
        but = snapshot.models[place].path
        return snapshot.tree, snapshot.near(
            snapshot.vectors_NT[place], _checked(k, where), where, but=but
        )

    def model(self, id: str, tree: str = "") -> Model:
        """A model of an index, to describe it; a ProbexError if its file is gone or not here."""
        snapshot, place = self._place_of(id, tree)
        path = Path(snapshot.models[place].path)
        if not path.exists():
            raise ProbexError(f"{id}: its file is not on this machine; send it")
        return Model(id, path)

    def _place_of(self, id: str, tree: str) -> tuple[Snapshot, int]:
        """Where a model is: in the index of a tree, or in the first that holds it."""
        _check_length(id)
        holding = [one for one in self.snapshots.values() if not tree and one.holds(id)]
        snapshot = holding[0] if holding else self.snapshot(tree)
        return snapshot, snapshot.place_of(id)

    def listed(self, tree: str, k: int, where: Filter) -> tuple[str, list[Hit]]:
        """The first models that a filter lets through, as it sorts them; returns as `search`."""
        snapshot = self.snapshot(tree)
        return snapshot.tree, snapshot.listed(_checked(k, where), where)

    def check(self, tree: str, k: int, where: Filter) -> None:
        """Raises a ProbexError for invalid options of a search; the tree may be ""."""
        if tree:
            self.snapshot(tree).check(where)
        _checked(k, where)

    def map(self, tree: str, name: str = "", star: tuple[float, float] | None = None) -> str:
        """A map of the models of an index as HTML, with a star for another model.

        Args:
          tree: of the index.
          name: of the other model.
          star: its position.

        Returns:
          The map; "" if there are no models, or they cannot be laid out.

        Raises:
          ProbexError: if there is no index of the tree, or the position is not finite.
        """
        snapshot = self.snapshot(tree)
        layout = self._layouts[snapshot.tree]
        if layout is None or not layout.models:
            return ""
        points = [
            MapPoint(float(x), float(y), _title(hit), _group(hit), _emphasis(hit))
            for hit, (x, y) in zip(layout.models, layout.points, strict=True)
        ]
        emphasised = {}
        if any(point.emphasis for point in points):
            emphasised["ring"] = "held out from training"
        if star is not None:
            points.append(MapPoint(*star, name, "this model", "star"))
            emphasised["star"] = "this model"
        held, shown = len(snapshot), len(layout.models)
        some = f"{shown:,} of {held:,}" if shown < held else f"{held:,}"
        caption = (
            f"{some} models of {snapshot.tree}, close together where their representations are "
            "similar."
        )
        return interactive_map(points, caption=caption, emphasised=emphasised)

    def relatives(self, id: str) -> Relatives:
        """The parents and copies of a model of the lineage.

        Raises:
          ProbexError: if there is no lineage, or no such model in it.
        """
        if self._lineage is None:
            raise ProbexError("this server has no lineage; start it with --lineage")
        _check_length(id)
        if id not in self._known:
            raise ProbexError(f"no model {id!r} in the lineage")
        return self._relatives.of(id)

    def _without_paths(self, lineage: Lineage) -> Lineage:
        nodes = tuple(replace(node, path="") for node in lineage.nodes)
        failed = {id: self.shown(reason) for id, reason in lineage.failed.items()}
        return replace(lineage, nodes=nodes, failed=failed)

    def shown(self, error: object, model: Model | None = None) -> str:
        """An error message without paths of this machine."""
        text = str(error)
        if model is not None:
            text = text.replace(one_line(model.path), model.name)
        for root in self._roots:
            # Whole names: /app is not in org/app-model.
            whole = rf"(?<![\w.-]){re.escape(one_line(root))}(?!\.?[\w-])"
            text = re.sub(whole, Path(root).name.replace("\\", r"\\"), text)
        return _DIRECTORIES.sub("", text)


def as_json(described: Described) -> dict[str, Any]:
    """A description as JSON with its card in Markdown, without paths of this machine."""
    if described.description is None:
        return {"id": described.name, "error": described.error}
    found = described.description.as_json()
    for neighbour in found["neighbours"] or ():
        del neighbour["path"]
    del found["path"]
    return {**found, "card": model_card(described.description)}


def told(text: str) -> tuple[Condition, ...]:
    """The conditions on attributes that somebody wrote; a ProbexError if they are none."""
    _check_length(text)
    return conditions(text)


def _remote() -> Remote:
    """How models of the hub that visitors name are read."""
    return Remote(patience_s=PATIENCE_S, own_hosts=True)


def _check_length(text: str) -> None:
    if len(text) > MAX_QUERY:
        raise ProbexError(f"a text of {len(text)} characters: expected at most {MAX_QUERY}")


def _checked(k: int, where: Filter) -> int:
    for text in (where.tree, where.split, where.text, where.sort):
        _check_length(text)
    if not 1 <= k <= MAX_K:
        raise ProbexError(f"k is {k}: expected 1 to {MAX_K}")
    return k


def _neighbour(hit: Hit) -> Neighbour:
    return Neighbour(hit.id, hit.similarity, hit.text, hit.path)


def _title(hit: Hit) -> str:
    return f"{hit.id}: {hit.text}" if hit.text else hit.id


def _group(hit: Hit) -> str:
    """The group of a point: models of several classes are hardly ever alike."""
    return hit.text or "no text" if len(hit.labels) <= 1 else "several classes"


def _emphasis(hit: Hit) -> str:
    return "ring" if hit.split in HELD_OUT_SPLITS else ""
