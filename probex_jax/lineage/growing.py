"""The edges among models of one architecture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.lineage.arcs import Arcs
from probex_jax.lineage.comparing import Comparing
from probex_jax.lineage.confidence import confidence
from probex_jax.lineage.families import Anchors, Family, most_compared, neighbours
from probex_jax.lineage.kinship import SIGNIFICANT
from probex_jax.lineage.lineage import Edge
from probex_jax.lineage.merges import Merge, find_merges
from probex_jax.lineage.relation import REORDERED, Relation
from probex_jax.lineage.tree import arborescence

_ANY = "fine-tune"  # until it is examined
_TRIED = 64  # kin in which the origin of a permuted model is looked for
_GROUPS = 16  # families that a model without kin is tested against, if there are few such models
_MOST_TESTS = 4096
_BASES = 64  # models that an adapter is tested against
REORDEREDTHEST = 5
_CLEAR = 2.0  # log odds of a direction that other models' distances do not turn
_NEARER = 0.5  # squared distance from a merge to a child of it, to that from its next best parent
# Below, the parent is taken for one that is not there.
_LEAST_CONFIDENCE = 0.3
_CERTAIN = 0.99  # of pruned and rounded copies
# Confidence in merges and permuted models, as often as families of known descent show them right.
_OF_A_MERGE, _OF_PERMUTED, _OF_MERGED = 0.98, 0.9, 0.99
# The base of an adapter is one of the kin that fit; which one is not told.
_OF_KIN = 0.5
_IS_MERGED = 0.95  # cosine of an adapter and what a model has beyond its base
_BASE_LEVEL = 0.01


class Growing:
    """Collects the edges of one architecture after the other."""

    def __init__(self, ids: Sequence[str], comparing: Comparing):
        self._ids, self._comparing = ids, comparing
        self.edges: list[Edge] = []
        self.orphans: set[int] = set()

    def add(self, family: Family) -> None:
        """Finds the edges of the models of one architecture."""
        found = neighbours(family)
        near, apart, groups = found.near, found.distances, found.groups
        for group in groups if not family.are_adapters else ():
            far = {member for member in group if apart[member] > REORDERED}
            if len(group) > 1 and 2 * len(far) < len(group):
                rest = [member for member in group if member not in far]
                permuted = {one for one in far if self._attach(family, one, rest, None)}
                group[:] = [member for member in group if member not in permuted]
        for group in groups:
            if len(group) > 1:
                place = {member: at for at, member in enumerate(group)}
                own = [[place[k] for k in near[member] if k in place] for member in group]
                self._grow(family.of(group), own)
        if not family.are_adapters:
            self._find_permuted(family, groups)

    def add_adapters(self, adapters: Sequence[int], models: Sequence[int]) -> None:
        """Finds the bases of adapters among the models that have no parents here."""
        derived = {edge.child for edge in self.edges}
        roots = [number for number in models if self._ids[number] not in derived][:_BASES]
        waiting = [number for number in adapters if self._ids[number] not in derived]
        found = adapter_edges(waiting, roots, self.edges, self._ids, self._comparing)
        self.edges += found
        based = {edge.child for edge in found}
        self.orphans |= {number for number in waiting if self._ids[number] not in based}

    def _grow(self, family: Family, near: Sequence[Sequence[int]]) -> None:
        """The edges of models that are kin."""
        count = len(family.members)
        merges = find_merges(
            family.samples_ND, family.layers, family.weights_D, near, family.rounding
        )
        pairs = {(a, b) for b, others in enumerate(near) for a in others[: most_compared(count)]}
        arcs = self._arcs(family, {(a, b) for a, b in pairs if a not in merges or b not in merges})
        parents = _with_merges(count, arcs, merges)
        anchors = Anchors(family, [n for n in range(count) if n not in merges])
        parents = _turned(parents, arcs, merges, anchors)
        misplaced = {
            child: anchors.misplaced(parent, child)
            for child, parent in parents.items()
            if child not in merges
        }
        known = [value for value in misplaced.values() if value is not None]
        usual = float(np.mean(known)) if known else None
        found: list[Edge] = []
        for child, parent in parents.items():
            if child in merges:
                found += self._merge_edges(family, child, merges[child])
                continue
            direction, margin = arcs.direction(parent, child), arcs.margin(parent, child)
            relation = arcs.relation(parent, child)
            is_certain = bool(relation.pruned or relation.rounded)
            sure = (
                _CERTAIN if is_certain else confidence(direction, margin, misplaced[child], usual)
            )
            found.append(self._edge(family, parent, child, relation, sure))
        kin, refuted = self._examined(found, are_adapters=family.are_adapters)
        kept = [edge for edge in kin if edge.confidence > _LEAST_CONFIDENCE]
        self.edges += kept
        related, kindred, strangers = (
            {id for edge in edges for id in (edge.parent, edge.child)}
            for edges in (kept, kin, refuted)
        )
        self.orphans |= {
            member
            for member, id in ((member, self._ids[member]) for member in family.members)
            if id not in related and (id in kindred or id not in strangers)
        }

    def _arcs(self, family: Family, pairs: Iterable[tuple[int, int]]) -> Arcs:
        """Compares pairs of models."""
        ordered = sorted({(min(pair), max(pair)) for pair in pairs})
        compared = self._comparing.related(
            [(family.members[a], family.members[b]) for a, b in ordered]
        )
        return Arcs(
            {
                pair: relation
                for pair, relation in zip(ordered, compared, strict=True)
                if isinstance(relation, Relation)
            }
        )

    def _edge(
        self,
        family: Family,
        parent: int,
        child: int,
        relation: Relation,
        sure: float,
    ) -> Edge:
        return Edge(
            parent=self._ids[family.members[parent]],
            child=self._ids[family.members[child]],
            kind=_ANY,
            p_value=1.0,
            confidence=sure,
            distance=relation.distance,
            layers=relation.farthest(REORDEREDTHEST),
        )

    def _merge_edges(self, family: Family, child: int, merge: Merge) -> list[Edge]:
        roots_D = np.sqrt(family.weights_D)
        child_D = family.samples_ND[child] * roots_D
        found = []
        for parent, share in zip(merge.parents, merge.coefficients, strict=True):
            parent_D = family.samples_ND[parent] * roots_D
            apart = np.linalg.norm(child_D - parent_D)
            found.append(
                Edge(
                    parent=self._ids[family.members[parent]],
                    child=self._ids[family.members[child]],
                    kind="merge",
                    p_value=1.0,
                    confidence=_OF_A_MERGE,
                    distance=float(apart / np.linalg.norm(parent_D)),
                    coefficient=share,
                    error=merge.error,
                )
            )
        return found

    def _examined(
        self, edges: Sequence[Edge], *, are_adapters: bool = False
    ) -> tuple[list[Edge], list[Edge]]:
        """The edges with their p-values and kinds, and those of models that are independent."""
        number = {id: place for place, id in enumerate(self._ids)}
        told = self._comparing.examined([(number[e.parent], number[e.child]) for e in edges])
        kept: list[Edge] = []
        refuted: list[Edge] = []
        for edge, found in zip(edges, told, strict=True):
            if isinstance(found, ProbexError):
                kept.append(edge)
                continue
            test, kind = found
            kind = kind if edge.kind == _ANY else edge.kind
            edge = replace(edge, p_value=test.p_value, kind=kind)
            # Similar by what they share before training, such as masks.
            is_refuted = test.units and test.p_value >= SIGNIFICANT and not are_adapters
            (refuted if is_refuted else kept).append(edge)
        return kept, refuted

    def _find_permuted(self, family: Family, groups: Sequence[Sequence[int]]) -> None:
        """Models far from all others that a test takes for kin of some: with permuted units."""
        families = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
        alone = [group[0] for group in groups if len(group) == 1]
        most = min(_GROUPS, max(1, _MOST_TESTS // max(len(alone), 1)))
        # Among the others are those without kin that come before.
        others = [
            [*families, *([other] for other in alone[: min(place, most)])][:most]
            for place in range(len(alone))
        ]
        asked = [
            (family.members[group[0]], family.members[one])
            for one, tried in zip(alone, others, strict=True)
            for group in tried
        ]
        values = iter(self._comparing.tested(asked))
        for one, tried in zip(alone, others, strict=True):
            tested = [(value, group) for group in tried if isinstance(value := next(values), float)]
            p_value, group = min(tested, key=lambda each: each[0], default=(1.0, []))
            p_value = min(1.0, p_value * max(1, len(tried)))
            if p_value < SIGNIFICANT and not self._attach(family, one, group, p_value):
                self.orphans.add(family.members[one])

    def _attach(
        self, family: Family, one: int, group: Sequence[int], p_value: float | None
    ) -> bool:
        """Whether a model is near to one of a group once its units are put in order: an edge."""
        pairs = [(family.members[other], family.members[one]) for other in group[:_TRIED]]
        relations = self._comparing.related(pairs, permuted=True)
        near = [
            (relation.distance, place, relation)
            for place, relation in enumerate(relations)
            if isinstance(relation, Relation)
        ]
        distance, place, relation = min(near, key=lambda each: each[:2], default=(2.0, 0, None))
        if relation is None or distance > REORDERED:
            return False
        edge = Edge(
            parent=self._ids[pairs[place][0]],
            child=self._ids[family.members[one]],
            kind="permuted",
            p_value=1.0 if p_value is None else p_value,
            confidence=_OF_PERMUTED,
            distance=distance,
            layers=relation.farthest(REORDEREDTHEST),
        )
        self.edges += [edge] if p_value is not None else self._examined([edge])[0]
        return True


def adapter_edges(
    adapters: Sequence[int],
    candidates: Sequence[int],
    edges: Sequence[Edge],
    ids: Sequence[str],
    comparing: Comparing,
) -> list[Edge]:
    """The bases of adapters: where a model is one merged with it, or else by the test of its units.

    Args:
      adapters: their numbers.
      candidates: numbers of models of which each adapter may be, one a family.
      edges: of whole models.
      ids: names of all models.
      comparing: who compares them.

    Returns:
      An edge for each adapter of which a base can be told. Of kin that fit the same, it is from the
      candidate.
    """
    number = {id: place for place, id in enumerate(ids)}
    merged = [edge for edge in edges if edge.kind == "LoRA merged"][:_TRIED]
    triples = [(a, number[e.parent], number[e.child]) for a in adapters for e in merged]
    bases: dict[int, Edge] = {}
    for (adapter, base, _), cosine in zip(triples, comparing.merged(triples), strict=True):
        if isinstance(cosine, float) and cosine > _IS_MERGED:
            bases[adapter] = _adapter_edge(ids, base, adapter, 0.0, _OF_MERGED)
    rest = [adapter for adapter in adapters if adapter not in bases]
    pairs = [
        (a, b)
        for a in [*bases, *rest]
        for b in ([number[bases[a].parent]] if a in bases else candidates)
    ]
    best: dict[int, tuple[float, int]] = {}
    for (adapter, base), value in zip(pairs, comparing.fits(pairs), strict=True):
        if isinstance(value, float):
            best[adapter] = min(best.get(adapter, (2.0, base)), (value, base))
    found = []
    for adapter, (value, base) in best.items():
        if adapter in bases:
            found.append(replace(bases[adapter], p_value=value))
        elif (corrected := min(1.0, value * len(candidates))) < _BASE_LEVEL:
            found.append(_adapter_edge(ids, base, adapter, corrected, _OF_KIN))
    return found


def _adapter_edge(ids: Sequence[str], base: int, adapter: int, p: float, sure: float) -> Edge:
    return Edge(ids[base], ids[adapter], "LoRA", p, sure, 0.0)


def _with_merges(count: int, arcs: Arcs, merges: Mapping[int, Merge]) -> dict[int, int]:
    """The parents of models, of merges the main ones.

    A merge lies between its parents, near to all of their kin; so it is a parent only of what is
    no ancestor of it, and much nearer to it than to any other parent.
    """
    main = {n: merge.parents[int(np.argmax(merge.coefficients))] for n, merge in merges.items()}
    costs = {arc: value for arc, value in arcs.costs.items() if arc[0] not in merges}
    nearest: dict[int, float] = {}
    for arc in costs:
        nearest[arc[1]] = min(nearest.get(arc[1], math.inf), arcs.squared(*arc))
    # A child of a merge lies between the merge's parents, too, which may be longer; it is none of
    # theirs.
    for merge, child in arcs.costs:
        if merge in merges and child not in merges and child not in merges[merge].parents:
            is_near = arcs.squared(merge, child) < _NEARER * nearest.get(child, math.inf)
            if is_near and arcs.direction(merge, child) > 0:
                costs[merge, child] = arcs.costs[merge, child]
                for parent in merges[merge].parents:
                    costs.pop((child, parent), None)
    parents = arborescence(count, costs, main)
    above = {merge: _ancestors(merge, parents, merges) for merge in merges}
    for arc in arcs.costs:
        merge, child = arc
        if merge in merges and child not in merges and child not in above[merge]:
            rival = parents.get(child)
            if rival is None or arcs.squared(*arc) < _NEARER * arcs.squared(rival, child):
                costs[arc] = arcs.costs[arc]
    return arborescence(count, costs, main)


def _ancestors(number: int, parents: Mapping[int, int], merges: Mapping[int, Merge]) -> set[int]:
    """All that a model is derived from."""
    found: set[int] = set()
    waiting = [number]
    while waiting:
        one = waiting.pop()
        if one in merges:
            above = merges[one].parents
        else:
            above = (parents[one],) if one in parents else ()
        waiting += [each for each in above if each not in found]
        found |= {*above}
    return found


def _turned(
    parents: Mapping[int, int],
    arcs: Arcs,
    merges: Mapping[int, Merge],
    anchors: Anchors,
) -> dict[int, int]:
    """The parents, with a parent and its child exchanged where the child is nearer to the rest.

    Where little was added, as by weak noise, the direction of the edge itself is hard to tell.
    """
    turned = dict(parents)
    for child, parent in parents.items():
        above = turned.get(parent)
        if above is None or turned[child] != parent:
            continue
        if any(one in merges for one in (child, parent, above)):
            continue
        if arcs.direction(parent, child) > _CLEAR or (above, child) not in arcs:
            continue
        if anchors.is_beyond(parent, child, _below(turned, parent)):
            turned[child], turned[parent] = above, child
    return turned


def _below(parents: Mapping[int, int], top: int) -> set[int]:
    """A model and all that are derived from it."""
    found, more = {top}, {top}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found
