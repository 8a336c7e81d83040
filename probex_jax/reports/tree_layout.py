"""Where models stand in the picture of a family tree, and how the lines between them run.

Generations are columns, from left to right. Each model without children has a row of its own, and
a parent stands at the middle of its children. Many childless children of one parent stand in a
block of several columns, on lines that branch off a bus. Time is linear in models and edges, but
for sorting.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from probex_jax.lineage.family_trees import FamilyTree

# In units of the picture, of which there is one a pixel where names can be read well.
COLUMN, ROW = 320, 26
# A line forks after the name of the parent, and runs level below its kind before it comes in.
_FORK, _IN = 190, 85
_BLOCK_COLUMN, _STUB = 265, 80
_FEWEST_IN_BLOCKS = 16
_GAP = 44
# Width to height, of blocks and of the picture.
_ASPECT = 1.8


@dataclass(frozen=True)
class TreeLayout:
    """A drawn forest.

    Args:
      places: position of each model.
      lines: (parent, child) to the commands of an SVG path.
      shared: commands of the lines that several edges share.
      width: of the picture.
      height: of the picture.
      blocks: of each family (x, y, width, height).
    """

    places: Mapping[str, tuple[int, int]]
    lines: Mapping[tuple[str, str], str]
    shared: str
    width: int
    height: int
    blocks: Sequence[tuple[int, int, int, int]]


def tree_layout(
    found: Sequence[FamilyTree], edges: Sequence[tuple[str, str]], aspect: float = _ASPECT
) -> TreeLayout:
    """Lays out families.

    Args:
      found: from `family_trees`.
      edges: (parent, child), all between models of one family.
      aspect: about the width of the picture to its height.

    Returns:
      Positions in whole units, from (0, 0).

    Example:
      >>> family = FamilyTree(("a", "b", "c"), {"a": 0, "b": 1, "c": 1}, {"b": "a", "c": "a"}, 0)
      >>> layout = tree_layout([family], [("a", "b"), ("a", "c")])
      >>> layout.places["b"][0] == layout.places["c"][0] > layout.places["a"][0]
      True
    """
    several = _with_several_parents(edges)
    drawn = [_Drawing(family, several) for family in found]
    corners, width, height = _packed([(one.width, one.height) for one in drawn], aspect)
    places: dict[str, tuple[int, int]] = {}
    in_blocks: set[str] = set()
    shared = []
    for one, (left, top) in zip(drawn, corners, strict=True):
        places |= {model: (left + x, top + y) for model, (x, y) in one.places.items()}
        in_blocks |= one.in_blocks
        for model, xs, y, last in one.buses:
            x0, y0 = places[model]
            fork = x0 + _FORK
            bus = f"M{fork} {y0}V{top + y}H{left + xs[-1]}"
            shared.append(bus + "".join(f"M{left + x} {top + y}V{top + to}" for x, to in last))
    lines = {}
    count = Counter(parent for parent, _ in edges)
    for parent, child in edges:
        (x0, y0), (x1, y1) = places[parent], places[child]
        if child in in_blocks:
            lines[parent, child] = f"M{x1 - _STUB} {y1}H{x1}"
            continue
        fork = x0 + _FORK
        start = f"M{fork} {y0}" if count[parent] > 1 else f"M{x0} {y0}H{fork}"
        enter = max(x1 - _IN, fork + 12)
        middle = (fork + enter) // 2
        curve = f"C{middle} {y0} {middle} {y1} {enter} {y1}" if y0 != y1 else ""
        lines[parent, child] = f"{start}{curve}H{x1}"
    # The line of a model to its fork is of no kind, where kinds may differ.
    for parent in count:
        if count[parent] > 1:
            x0, y0 = places[parent]
            shared.append(f"M{x0} {y0}H{x0 + _FORK}")
    blocks = [(*at, one.width, one.height) for at, one in zip(corners, drawn, strict=True)]
    return TreeLayout(places, lines, "".join(shared), width, height, blocks)


def _with_several_parents(edges: Sequence[tuple[str, str]]) -> set[str]:
    once: set[str] = set()
    several: set[str] = set()
    for _, child in edges:
        (several if child in once else once).add(child)
    return several


class _Drawing:
    """One family from its own corner (0, 0)."""

    def __init__(self, family: FamilyTree, several: set[str]):
        children: dict[str, list[str]] = defaultdict(list)
        for model, parent in family.parent.items():
            children[parent].append(model)
        self.places: dict[str, tuple[int, int]] = {}
        self.in_blocks: set[str] = set()
        # Of each block: the parent, its columns, the row of the bus, the columns' last rows.
        self.buses: list[tuple[str, list[int], int, list[tuple[int, int]]]] = []
        self._row = 0
        self._right = 0
        blocks = {
            model: leaves
            for model, its in children.items()
            if len(leaves := [c for c in its if c not in children and c not in several])
            >= _FEWEST_IN_BLOCKS
        }
        waiting = [(root, False) for root in reversed(family.roots)]
        while waiting:
            model, is_done = waiting.pop()
            x = family.generation[model] * COLUMN
            block = set(blocks.get(model, ()))
            inner = [child for child in children.get(model, ()) if child not in block]
            if not is_done:
                waiting.append((model, True))
                waiting += [(child, False) for child in reversed(inner)]
                continue
            ys = [self.places[child][1] for child in (inner[0], inner[-1])] if inner else []
            if block:
                ys.append(self._add_block(model, x, blocks[model]))
            if not ys:
                ys = [self._next_row()]
            self._place(model, x, (min(ys) + max(ys)) // 2)
        self.width, self.height = self._right, self._row * ROW

    def _next_row(self) -> int:
        self._row += 1
        return self._row * ROW - ROW // 2

    def _place(self, model: str, x: int, y: int) -> None:
        self.places[model] = (x + 8, y)
        self._right = max(self._right, x + COLUMN)

    def _add_block(self, model: str, x: int, leaves: Sequence[str]) -> int:
        """Places childless children; the row of their bus."""
        wide = math.sqrt(len(leaves) * ROW * _ASPECT / _BLOCK_COLUMN)
        rows = math.ceil(len(leaves) / max(round(wide), 1))
        bus = self._next_row()
        xs, last = [], []
        for first in range(0, len(leaves), rows):
            left = x + COLUMN + first // rows * _BLOCK_COLUMN
            column = leaves[first : first + rows]
            for place, leaf in enumerate(column, start=1):
                self._place(leaf, left, bus + place * ROW)
                self.in_blocks.add(leaf)
            xs.append(left + 8 - _STUB)
            last.append((xs[-1], bus + len(column) * ROW))
        self._row += rows
        self.buses.append((model, xs, bus, last))
        return bus


def _packed(
    sizes: Sequence[tuple[int, int]], aspect: float
) -> tuple[list[tuple[int, int]], int, int]:
    """Corners of blocks on shelves, the tallest first, and the size of the whole."""
    area = sum((wide + _GAP) * (high + _GAP) for wide, high in sizes)
    most = max([math.sqrt(area * aspect), *(wide + 2 * _GAP for wide, _ in sizes)], default=0)
    corners = [(0, 0)] * len(sizes)
    x = y = _GAP
    shelf = width = 0
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place][1]):
        wide, high = sizes[place]
        if x + wide > most and x > _GAP:
            x, y, shelf = _GAP, y + shelf + _GAP, 0
        corners[place] = (x, y)
        x, shelf = x + wide + _GAP, max(shelf, high)
        width = max(width, x)
    return corners, max(width, 2 * _GAP), y + shelf + _GAP
