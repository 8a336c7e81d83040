"""Where models stand in the picture of a family tree, and how the lines between them run.

Generations go from left to right. Each model without children has a row of its own, and a parent
stands at the middle of its children. Many children of one parent stand in several columns, the
largest first, on lines that branch off a bus above them. Time is linear in models and edges, but
for sorting. It is ours: d3-hierarchy knows one parent of a model and no columns; dagre takes 4 s
for 3,000 models, not 30 ms, and makes a strip of them 186,000 pixels high; ELK is 1.6 MB.
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
# A model is so far from the left of its box; without children it needs so much for its name.
_INDENT, _NAME = 8, 185
# In columns, a model stands so far behind the line that leads down its column.
_STUB = 80
_FEWEST_IN_COLUMNS = 16
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
    """

    places: Mapping[str, tuple[int, int]]
    lines: Mapping[tuple[str, str], str]
    shared: str
    width: int
    height: int


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
    drawn = [_Drawing(family) for family in found]
    corners, width, height = _packed([(one.width, one.height) for one in drawn], aspect)
    places: dict[str, tuple[int, int]] = {}
    on_trunks: set[tuple[str, str]] = set()
    shared: list[str] = []
    lines: dict[tuple[str, str], str] = {}
    for family, one, (left, top) in zip(found, drawn, corners, strict=True):
        places |= {model: (left + x, top + y) for model, (x, y) in one.places.items()}
        on_trunks |= {(family.parent[child], child) for child in one.in_columns}
        shared += [bus.drawn(left, top) for bus in one.buses]
    count = Counter(parent for parent, _ in edges)
    for parent, child in edges:
        (x0, y0), (x1, y1) = places[parent], places[child]
        if (parent, child) in on_trunks:
            lines[parent, child] = f"M{x1 - _STUB} {y1}H{x1}"
            continue
        fork, enter = x0 + _FORK, x1 - _IN
        start = f"M{fork} {y0}" if count[parent] > 1 else f"M{x0} {y0}H{fork}"
        # A merge may stand left of a parent in another column.
        is_forward = enter >= fork
        first, last = ((fork + enter) // 2,) * 2 if is_forward else (fork + 60, enter - 60)
        curve = "" if y0 == y1 and is_forward else f"C{first} {y0} {last} {y1} {enter} {y1}"
        lines[parent, child] = f"{start}{curve}H{x1}"
    # The line of a model to its fork is of no kind, where kinds may differ.
    for parent in count:
        if count[parent] > 1:
            x0, y0 = places[parent]
            shared.append(f"M{x0} {y0}H{x0 + _FORK}")
    return TreeLayout(places, lines, "".join(shared), width, height)


@dataclass(frozen=True)
class _Bus:
    """Lines to children in columns: where they begin, and where each column ends."""

    x: int
    y: int
    columns: Sequence[tuple[int, int]]

    def drawn(self, left: int, top: int) -> str:
        row = top + self.y
        ends = [(left + x, top + y) for x, y in self.columns]
        bus = f"M{left + self.x} {row}H{ends[-1][0]}"
        return bus + "".join(f"M{x} {row}V{y}" for x, y in ends)


class _Drawing:
    """One family from its own corner (0, 0): each model with its descendants in a box."""

    def __init__(self, family: FamilyTree):
        self._family = family
        self._children: dict[str, list[str]] = defaultdict(list)
        for model, parent in family.parent.items():
            self._children[parent].append(model)
        # Of each model the size of its box, its row there, and the box's corner in its parent's.
        self._sizes: dict[str, tuple[int, int]] = {}
        self._rows: dict[str, int] = {}
        self._corners: dict[str, tuple[int, int]] = {}
        buses: dict[str, list[tuple[int, int]]] = {}
        for model in reversed(family.models):  # children before their parents
            its = self._children.get(model, [])
            if len(its) < _FEWEST_IN_COLUMNS:
                self._stack(model, its)
            else:
                buses[model] = self._in_columns(model, its)
        self.in_columns = {child for model in buses for child in self._children[model]}
        self.width = self.height = 0
        for root in family.roots:
            self._corners[root] = (0, self.height)
            self.width = max(self.width, self._sizes[root][0])
            self.height += self._sizes[root][1]
        self.places: dict[str, tuple[int, int]] = {}
        for model in family.models:
            x, y = self._corners[model]
            if model in family.parent:
                left, top = self._corners[family.parent[model]]
                x, y = self._corners[model] = (left + x, top + y)
            self.places[model] = (x + _INDENT, y + self._rows[model])
        self.buses: list[_Bus] = []
        for model, columns in buses.items():
            left, top = self._corners[model]
            ends = [(left + x + _INDENT - _STUB, top + y) for x, y in columns]
            x, y = self.places[model]
            self.buses.append(_Bus(x + _FORK, y, ends))

    def _stack(self, model: str, its: Sequence[str]) -> None:
        """Children one below the other, or none."""
        wide, high = _NAME, 0
        for child in its:
            generations = self._family.generation[child] - self._family.generation[model]
            self._corners[child] = (generations * COLUMN, high)
            wide = max(wide, generations * COLUMN + self._sizes[child][0])
            high += self._sizes[child][1]
        ends = [self._corners[child][1] + self._rows[child] for child in [*its[:1], *its[-1:]]]
        self._sizes[model] = (wide, high or ROW)
        self._rows[model] = sum(ends) // 2 if ends else ROW // 2

    def _in_columns(self, model: str, its: Sequence[str]) -> list[tuple[int, int]]:
        """Many children in columns below a bus; each column's left and last row."""
        its = sorted(its, key=lambda child: -self._sizes[child][1])
        area = sum((self._sizes[child][0] + _STUB) * self._sizes[child][1] for child in its)
        most = max(math.sqrt(area / _ASPECT), self._sizes[its[0]][1])
        while True:
            trunks, wide, high = self._columns(its, most)
            # Columns are as wide as their widest box, so that the first try may be too flat.
            if len(trunks) == 1 or wide <= 1.5 * _ASPECT * high:
                break
            most *= 1.3
        self._sizes[model] = (wide, high)
        self._rows[model] = ROW // 2
        return trunks

    def _columns(self, its: Sequence[str], most: float) -> tuple[list[tuple[int, int]], int, int]:
        """Places boxes in columns of at most that height: the columns, the width and the height."""
        x, y, wide, high = COLUMN, ROW, 0, 0
        trunks = [(x, y)]
        for child in its:
            width, height = self._sizes[child]
            if y + height > ROW + most:
                x, y, wide = x + wide + _STUB, ROW, 0
                trunks.append((x, y))
            self._corners[child] = (x, y)
            trunks[-1] = (x, y + self._rows[child])
            wide, y = max(wide, width), y + height
            high = max(high, y)
        return trunks, x + wide, high


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
