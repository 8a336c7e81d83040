"""The family tree of many models.

A first pass sketches each model. Sketches tell which models may be copies, which are kin, whose
neighbours they are and what was merged; only neighbours are then compared in full.

Letters: N models, D sampled entries, K anchors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from probex_jax.engine import HERE, Died, Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.lineage.copies import Mark, confirmed, find_copies, mark
from probex_jax.lineage.difference import rounding_of
from probex_jax.lineage.kinship import kinship
from probex_jax.lineage.lineage import Copies, Edge, Lineage, Node
from probex_jax.lineage.merges import Merge, find_merges
from probex_jax.lineage.pairs import pair_layers, pair_sketched
from probex_jax.lineage.relation import Relation, relate
from probex_jax.lineage.sketch import Sketch, sketch
from probex_jax.lineage.tree import arborescence, cost, misplaced
from probex_jax.model_files import fingerprint, open_model
from probex_jax.model_files.architecture import are_positions, are_statistics, backbone

Progress = Callable[[str, int, int], None]

_KIN = 0.3  # cosine of the matrices of two models from which they are taken for kin untested
_SIGNIFICANT = 1e-3
_NEIGHBOURS, _OF_MANY, _MANY = 8, 4, 1000  # models that each is compared with in full
_ANCHORS = 256
_DENSE = 4096  # models of which all distances are kept
_TRIED = 64  # kin in which the origin of a permuted model is looked for
_GROUPS = 16  # families that a model without kin is tested against
_FARTHEST = 5
_NEARER = 0.5  # squared distance from a merge to a child of it, to that from its next best parent
_FAR = 0.3  # distance, as a share of the length, from which units may be in another order


@dataclass(frozen=True, eq=False)
class _Seen:
    architecture: str
    sketch: Sketch
    mark: Mark | None
    is_adapter: bool


@dataclass(frozen=True, eq=False)
class _Family:
    """Models of one architecture, their samples in one order of layers."""

    members: list[int]
    samples_ND: np.ndarray
    weights_D: np.ndarray
    layers: list[slice]
    is_matrix_D: np.ndarray
    rounding: list[float]
    are_adapters: bool

    def of(self, places: Sequence[int]) -> _Family:
        return replace(
            self,
            members=[self.members[place] for place in places],
            samples_ND=self.samples_ND[list(places)],
            rounding=[self.rounding[place] for place in places],
        )


def trace(
    paths: Iterable[str | Path],
    ids: Sequence[str] | None = None,
    *,
    engine: Engine = HERE,
    readers: int = 4,
    on_progress: Progress = lambda what, done, total: None,
) -> Lineage:
    """Finds who descends from whom among models, which are copies, and which are merges.

    Args:
      paths: of the models, as for `open_model`.
      ids: their names, each once; None for the paths.
      engine: who reads and compares them.
      readers: threads of each worker that read.
      on_progress: called with what is done, how much of it is, and how much there is.

    Returns:
      The family tree.

    Example:
      >>> import tempfile
      >>> from safetensors.numpy import save_file
      >>> folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> root = rng.normal(size=(64, 48))
      >>> child, other = (root + 0.1 * rng.normal(size=root.shape) for _ in range(2))
      >>> grandchild = child + 0.1 * rng.normal(size=root.shape)
      >>> models = {"root": root, "child": child, "other": other, "grandchild": grandchild}
      >>> for name, weights in models.items():
      ...     save_file({"body.weight": weights.astype("f4")}, folder / f"{name}.safetensors")
      >>> found = trace([folder / f"{name}.safetensors" for name in models], [*models])
      >>> sorted((edge.parent, edge.child) for edge in found.edges)
      [('child', 'grandchild'), ('root', 'child'), ('root', 'other')]

    References:
      docs/lineage.md.
    """
    paths = [Path(path) for path in paths]
    ids = [str(path) for path in paths] if ids is None else list(ids)
    if len(ids) != len(paths) or len(set(ids)) < len(ids):
        raise ValueError("ids: expected one for each path, each once")
    seen: dict[int, _Seen] = {}
    failed: dict[str, str] = {}
    read = engine.map(_sketching, in_parts(paths), readers=readers, computes=False)
    for number, (path, found) in enumerate(flattened(read)):
        if isinstance(found, ProbexError):
            failed[ids[number]] = f"{path}: {found}" if isinstance(found, Died) else str(found)
        else:
            seen[number] = found
        on_progress("reading", number + 1, len(paths))
    copies = _copies(seen, paths, ids, engine)
    copy_of = {copy: group.models[0] for group in copies for copy in group.models[1:]}
    traced = _Trace(paths, ids, engine, readers, on_progress)
    heads = [number for number in seen if ids[number] not in copy_of]
    for family in _families(heads, seen):
        traced.add(family)
    return _lineage(seen, paths, ids, traced, copies, copy_of, failed)


def _lineage(
    seen: Mapping[int, _Seen],
    paths: Sequence[Path],
    ids: Sequence[str],
    traced: _Trace,
    copies: tuple[Copies, ...],
    copy_of: Mapping[str, str],
    failed: Mapping[str, str],
) -> Lineage:
    parents = {edge.child for edge in traced.edges}
    children = {edge.parent for edge in traced.edges}

    def origin(number: int) -> str:
        id = ids[number]
        if id in copy_of:
            return "copy"
        if id in parents:
            return "derived"
        if number in traced.orphans:
            return "unknown parent"
        return "root" if id in children else "alone"

    nodes = [
        Node(
            ids[number],
            str(paths[number]),
            found.architecture,
            origin(number),
            copy_of.get(ids[number], ""),
        )
        for number, found in seen.items()
    ]
    order = {id: place for place, id in enumerate(ids)}
    edges = sorted(traced.edges, key=lambda edge: (order[edge.child], order[edge.parent]))
    return Lineage(tuple(nodes), tuple(edges), copies, dict(failed))


class _Trace:
    """Collects the edges of one architecture after the other."""

    def __init__(
        self,
        paths: Sequence[Path],
        ids: Sequence[str],
        engine: Engine,
        readers: int,
        on_progress: Progress,
    ):
        self._paths, self._ids, self._engine, self._readers = paths, ids, engine, readers
        self._on_progress = on_progress
        self.edges: list[Edge] = []
        self.orphans: set[int] = set()

    def add(self, family: _Family) -> None:
        """Finds the edges of the models of one architecture."""
        near, apart, groups = _neighbours(family)
        for group in groups if not family.are_adapters else ():
            far = [member for member in group if apart[member] > _FAR]
            if len(group) > 1 and 2 * len(far) < len(group):
                rest = [member for member in group if member not in far]
                found = {one for one in far if self._attach(family, one, rest, None)}
                group[:] = [member for member in group if member not in found]
        for group in groups:
            if len(group) > 1:
                place = {member: at for at, member in enumerate(group)}
                own = [[place[k] for k in near[member] if k in place] for member in group]
                self._grow(family.of(group), own)
        if not family.are_adapters:
            self._find_permuted(family, groups)

    def _grow(self, family: _Family, near: Sequence[Sequence[int]]) -> None:
        """The edges of models that are kin."""
        count = len(family.members)
        merges = find_merges(
            family.samples_ND, family.layers, family.weights_D, near, family.rounding
        )
        arcs = {(a, b) for b, others in enumerate(near) for a in others[: _most(count)]}
        pairs = sorted({(min(pair), max(pair)) for pair in arcs})
        pairs = [pair for pair in pairs if not (pair[0] in merges and pair[1] in merges)]
        relations = self._related([(family.members[a], family.members[b]) for a, b in pairs])
        both: dict[tuple[int, int], tuple[Relation, float]] = {}
        for (a, b), relation in zip(pairs, relations, strict=True):
            if isinstance(relation, Relation):
                both[a, b], both[b, a] = (relation, 1.0), (relation, -1.0)
        costs = {
            arc: cost(float(relation.squared.sum()), sign * relation.direction)
            for arc, (relation, sign) in both.items()
        }
        parents = _with_merges(count, costs, merges, both)
        anchors = _Anchors(family, [n for n in range(count) if n not in merges])
        found: list[Edge] = []
        for child, parent in parents.items():
            if child in merges:
                found += self._merge_edges(family, child, merges[child])
                continue
            relation, sign = both[parent, child]
            off = anchors.misplaced(parent, child)
            margin = _margin(costs, parent, child)
            sure = confidence(sign * relation.direction, off, margin)
            is_certain = bool(relation.pruned or relation.rounded)
            if off is not None and off > _MISPLACED and not is_certain:
                self.orphans |= {family.members[child]}
                continue
            found.append(self._edge(family, parent, child, relation, sign, sure))
        self.edges += self._tested(found)
        derived = {edge.child for edge in found}
        for _number, member in enumerate(family.members):
            has_children = any(edge.parent == self._ids[member] for edge in found)
            if self._ids[member] not in derived and not has_children:
                self.orphans.add(member)

    def _edge(
        self,
        family: _Family,
        parent: int,
        child: int,
        relation: Relation,
        sign: float,
        sure: float,
    ) -> Edge:
        return Edge(
            parent=self._ids[family.members[parent]],
            child=self._ids[family.members[child]],
            kind=relation.kind,
            p_value=1.0,
            confidence=sure,
            distance=relation.distance,
            layers=relation.farthest(_FARTHEST),
        )

    def _merge_edges(self, family: _Family, child: int, merge: Merge) -> list[Edge]:
        scaled_ND = family.samples_ND * np.sqrt(family.weights_D)
        found = []
        for parent, share in zip(merge.parents, merge.coefficients, strict=True):
            apart = np.linalg.norm(scaled_ND[child] - scaled_ND[parent])
            found.append(
                Edge(
                    parent=self._ids[family.members[parent]],
                    child=self._ids[family.members[child]],
                    kind="merge",
                    p_value=1.0,
                    confidence=_OF_A_MERGE,
                    distance=float(apart / np.linalg.norm(scaled_ND[parent])),
                    coefficient=share,
                    error=merge.error,
                )
            )
        return found

    def _related(
        self, pairs: Sequence[tuple[int, int]], permuted: bool = False
    ) -> list[Relation | ProbexError]:
        asked = [(self._paths[a], self._paths[b], permuted) for a, b in pairs]
        return self._mapped(_relating, asked, "comparing")

    def _tested(self, edges: Sequence[Edge]) -> list[Edge]:
        """The edges with their p-values."""
        place = dict(zip(self._ids, self._paths, strict=True))
        asked = [(place[edge.parent], place[edge.child]) for edge in edges]
        values = self._mapped(_testing, asked, "testing")
        return [
            replace(edge, p_value=value) if isinstance(value, float) else edge
            for edge, value in zip(edges, values, strict=True)
        ]

    def _mapped(self, make: Callable[[], Work], items: Sequence[Any], what: str) -> list[Any]:
        results = []
        parts = in_parts(items, 4)
        done = self._engine.map(make, parts, readers=self._readers, computes=False)
        for _, result in flattened(done):
            results.append(result)
            self._on_progress(what, len(results), len(items))
        return results

    def _find_permuted(self, family: _Family, groups: Sequence[Sequence[int]]) -> None:
        """Models far from all others that a test takes for kin of some: with permuted units."""
        families = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
        alone = [group[0] for group in groups if len(group) == 1]
        if not families:
            families, alone = [alone[:1]], alone[1:]
            if not alone:
                return
        families = families[:_GROUPS]
        asked = [
            (self._paths[family.members[group[0]]], self._paths[family.members[one]])
            for one in alone
            for group in families
        ]
        values = iter(self._mapped(_testing, asked, "testing"))
        for one in alone:
            tested = [next(values) for _ in families]
            usable = [
                (value, group)
                for value, group in zip(tested, families, strict=True)
                if isinstance(value, float)
            ]
            if not usable or min(value for value, _ in usable) > _SIGNIFICANT:
                continue
            p_value, group = min(usable, key=lambda each: each[0])
            if not self._attach(family, one, group, p_value):
                self.orphans.add(family.members[one])

    def _attach(
        self, family: _Family, one: int, group: Sequence[int], p_value: float | None
    ) -> bool:
        """Whether a model is near to one of a group once its units are put in order: an edge."""
        pairs = [(family.members[other], family.members[one]) for other in group[:_TRIED]]
        relations = self._related(pairs, permuted=True)
        near = [
            (relation.distance, place, relation)
            for place, relation in enumerate(relations)
            if isinstance(relation, Relation)
        ]
        distance, place, relation = min(near, key=lambda each: each[:2], default=(2.0, 0, None))
        if relation is None or distance > _FAR:
            return False
        edge = Edge(
            parent=self._ids[pairs[place][0]],
            child=self._ids[family.members[one]],
            kind="permuted",
            p_value=1.0 if p_value is None else p_value,
            confidence=_OF_PERMUTED,
            distance=distance,
            layers=relation.farthest(_FARTHEST),
        )
        self.edges += [edge] if p_value is not None else self._tested([edge])
        return True


# From where on an edge is between children of a parent that is not there.
_MISPLACED = 0.85
# Confidence in merges and permuted models, as often as families of known descent show them right.
_OF_A_MERGE, _OF_PERMUTED = 0.98, 0.9


def confidence(direction: float, off: float | None, margin: float) -> float:
    """The probability that an edge is right, calibrated on families of known descent.

    Args:
      direction: the log odds of its direction.
      off: of `misplaced`, or None.
      margin: how much dearer the child's next best parent is.

    Returns:
      From 0 to 1.
    """
    logit = (
        0.5 + 0.5 * min(direction, 6) + min(margin, 4) - 4 * ((0.3 if off is None else off) - 0.2)
    )
    return float(1 / (1 + math.exp(-logit)))


def _with_merges(
    count: int,
    costs: Mapping[tuple[int, int], float],
    merges: Mapping[int, Merge],
    relations: Mapping[tuple[int, int], tuple[Relation, float]],
) -> dict[int, int]:
    """The parents of models, of merges the main ones.

    A merge lies between its parents, near to all of their kin; so it is a parent only of what is
    no ancestor of it, and much nearer to it than to any other parent.
    """
    main = {n: merge.parents[int(np.argmax(merge.coefficients))] for n, merge in merges.items()}
    plain = {arc: value for arc, value in costs.items() if arc[0] not in merges}
    parents = arborescence(count, plain, main)

    def ancestors(number: int) -> set[int]:
        found: set[int] = set()
        waiting = [number]
        while waiting:
            one = waiting.pop()
            above = (
                merges[one].parents if one in merges else [parents[one]] if one in parents else []
            )
            waiting += [each for each in above if each not in found]
            found |= {*above}
        return found

    for merge in merges:
        above = ancestors(merge) if any(arc[0] == merge for arc in costs) else set()
        for child in range(count):
            arc = (merge, child)
            if arc not in costs or child in merges or child in above:
                continue
            rival = parents.get(child)
            apart = relations[arc][0].squared.sum()
            if rival is None or apart < _NEARER * relations[rival, child][0].squared.sum():
                plain[arc] = costs[arc]
    return arborescence(count, plain, main)


def _margin(costs: Mapping[tuple[int, int], float], parent: int, child: int) -> float:
    others = [value for (a, b), value in costs.items() if b == child and a != parent]
    return min(others, default=math.inf) - costs[parent, child]


def _most(count: int) -> int:
    return _NEIGHBOURS if count <= _MANY else _OF_MANY


def _copies(
    seen: Mapping[int, _Seen], paths: Sequence[Path], ids: Sequence[str], engine: Engine
) -> tuple[Copies, ...]:
    numbers = [*seen]
    candidates = find_copies([seen[number].mark for number in numbers])
    return confirmed(candidates, [(ids[n], paths[n]) for n in numbers], engine=engine)


def _families(numbers: Sequence[int], seen: Mapping[int, _Seen]) -> list[_Family]:
    """Models of one architecture, their samples in one order; those that name layers otherwise, too."""
    groups: dict[object, list[int]] = {}
    for number in numbers:
        kept = _kept(seen[number].sketch)
        shapes = tuple(sorted((*layer.shape, layer.is_update) for layer in kept.values()))
        groups.setdefault(shapes, []).append(number)
    return [_family(group, seen) for group in groups.values() if len(group) > 1]


def _kept(found: Sketch) -> dict[str, Any]:
    by_name = {layer.name: layer for layer in found.layers}
    names = backbone(name for name in by_name if not are_statistics(name))
    return {name: by_name[name] for name in names if not are_positions(name)}


def _family(group: Sequence[int], seen: Mapping[int, _Seen]) -> _Family:
    first = seen[group[0]].sketch
    names = [*_kept(first)]
    rows, rounding = [], []
    counts = {
        name: min(
            _size(_kept(seen[n].sketch)[name])
            if name in _kept(seen[n].sketch)
            else _size(_kept(first)[name])
            for n in group
        )
        for name in names
    }
    for number in group:
        found = seen[number].sketch
        theirs = _kept(found)
        pairs = {name: name for name in names}
        if theirs.keys() != _kept(first).keys():
            pairs = pair_sketched(first, found)
        by_name = {layer.name: layer for layer in found.layers}
        parts = [
            found.of_layer(by_name[pairs[name]])[: counts[name]]
            if pairs.get(name) in by_name
            else np.zeros(counts[name], np.float32)
            for name in names
        ]
        rows.append(np.concatenate(parts))
        rounding.append(max((2.0 ** -rounding_of(x.dtype)[0] for x in theirs.values()), default=0))
    ends = np.cumsum([counts[name] for name in names])
    own = _kept(first)
    weights = [
        np.full(counts[n], own[n].stands_for * _size(own[n]) / counts[n], np.float32) for n in names
    ]
    is_matrix = [np.full(counts[n], min(own[n].shape) > 1) for n in names]
    return _Family(
        members=list(group),
        samples_ND=np.stack(rows),
        weights_D=np.concatenate(weights),
        layers=[slice(int(end - counts[n]), int(end)) for n, end in zip(names, ends, strict=True)],
        is_matrix_D=np.concatenate(is_matrix),
        rounding=rounding,
        are_adapters=seen[group[0]].is_adapter,
    )


def _size(layer: Any) -> int:
    return layer.end - layer.begin


def _neighbours(family: _Family) -> tuple[list[list[int]], list[float], list[list[int]]]:
    """Of each model the nearest kin and how far it is, and groups of models that are kin."""
    weight = np.sqrt(family.weights_D) * (family.is_matrix_D if family.is_matrix_D.any() else 1)
    scaled_ND = family.samples_ND * weight.astype(np.float32)
    squared_N = np.square(scaled_ND, dtype=np.float64).sum(1)
    unit_ND = scaled_ND / np.sqrt(np.maximum(squared_N, 1e-30))[:, None].astype(np.float32)
    centred_ND = scaled_ND - scaled_ND.mean(0)
    sizes_N = np.square(centred_ND, dtype=np.float64).sum(1)
    count = len(scaled_ND)
    wanted = min(count - 1, 16)
    near: list[list[int]] = []
    nearest: list[float] = []
    rows, columns, apart = [], [], []
    for begin in range(0, count, 512):
        part = slice(begin, min(begin + 512, count))
        cosines = unit_ND[part] @ unit_ND.T
        squared = sizes_N[part, None] + sizes_N - 2 * (centred_ND[part] @ centred_ND.T)
        own = np.arange(part.start, part.stop)
        squared[np.arange(len(own)), own] = np.inf
        is_kin = cosines > _KIN
        squared = np.where(is_kin, np.maximum(squared, 1e-12), np.inf)
        order = np.argpartition(squared, wanted - 1, axis=1)[:, :wanted]
        for place, number in enumerate(own):
            chosen = order[place][np.argsort(squared[place, order[place]])]
            chosen = [int(c) for c in chosen if np.isfinite(squared[place, c])]
            near.append(chosen)
            nearest.append(
                math.sqrt(squared[place, chosen[0]] / squared_N[number]) if chosen else 2
            )
            rows += [int(number)] * len(chosen)
            columns += chosen
            apart += squared[place, chosen].tolist()
        if count <= _DENSE:
            # The kin of all, in a tree, so that each group is connected by comparisons.
            at, to = np.nonzero(np.isfinite(squared))
            rows += (at + begin).tolist()
            columns += to.tolist()
            apart += squared[at, to].tolist()
    graph = coo_array((apart, (rows, columns)), shape=(count, count)).tocsr()
    _, labels = connected_components(graph, directed=False)
    spanning = minimum_spanning_tree(graph).tocoo()
    for a, b in zip(spanning.row.tolist(), spanning.col.tolist(), strict=True):
        for one, other in ((a, b), (b, a)):
            if other not in near[one][: _most(count)]:
                near[one].insert(0, other)
    groups: dict[int, list[int]] = {}
    for number, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(number)
    return near, nearest, [*groups.values()]


class _Anchors:
    """Models from which the distances of others tell whether an edge fits."""

    def __init__(self, family: _Family, numbers: Sequence[int]):
        if len(numbers) > _ANCHORS:
            rng = np.random.default_rng(0)
            numbers = sorted(rng.choice(numbers, _ANCHORS, replace=False).tolist())
        scaled_ND = family.samples_ND * np.sqrt(family.weights_D)
        self._scaled_ND = scaled_ND - scaled_ND.mean(0)
        self._numbers = np.array(numbers)

    def misplaced(self, parent: int, child: int) -> float | None:
        """`misplaced` of an edge, by the anchors that are not its ends."""
        others = self._numbers[(self._numbers != parent) & (self._numbers != child)]
        return misplaced(
            self._squared(parent, others),
            self._squared(child, others),
            float(self._squared(parent, np.array([child]))[0]),
        )

    def _squared(self, one: int, others: np.ndarray) -> np.ndarray:
        apart_KD = self._scaled_ND[others] - self._scaled_ND[one]
        return np.square(apart_KD, dtype=np.float64).sum(1)


def _sketching() -> Work:
    return Work(lambda path: _or_error(_see, path), lambda part, found: found)


def _relating() -> Work:
    return Work(lambda item: _or_error(_relate, item), lambda part, found: found)


def _testing() -> Work:
    return Work(lambda item: _or_error(_test, item), lambda part, found: found)


def _or_error(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except ProbexError as error:
        return error


def _see(path: Path) -> _Seen:
    with open_model(path) as model:
        model.check_has_layers()
        found = sketch(model)
        is_adapter = any(layer.is_update for layer in model.layers.values())
        seen = _Seen(fingerprint(model), found, mark(found), is_adapter)
        model.check_unchanged()
        return seen


def _relate(item: tuple[Path, Path, bool]) -> Relation:
    with open_model(item[0]) as one, open_model(item[1]) as other:
        return relate(one, other, pair_layers(one, other), permuted=item[2])


def _test(item: tuple[Path, Path]) -> float:
    with open_model(item[0]) as one, open_model(item[1]) as other:
        return kinship(one, other).p_value
