"""The picture of a lineage: one HTML page that asks no network for anything.

The lines and marks of all models are a few SVG paths, so that pictures of 10,000 models open at
once; the script adds names, and what is said of a model, where there is room for them.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from probex_jax.lineage.family_trees import FamilyTree, family_trees
from probex_jax.lineage.lineage import KINDS, Edge, Lineage, Node
from probex_jax.reports.family_tree_text import SURE
from probex_jax.reports.html import asset, escaped, page, printable
from probex_jax.reports.tree_layout import tree_layout

# Lists below the picture end here.
_MOST_LISTED = 1000
_MARKS = {
    "root": "root",
    "derived": "derived from another",
    "unknown parent": "of unknown parent",
}
_HINT = (
    "Arrow keys go from model to model along the lines, Enter tells of one, and Escape puts that "
    "away. Drag to pan; scroll, pinch or press + and &minus; to zoom, 0 to show everything."
)


def family_tree_html(lineage: Lineage, title: str) -> str:
    """A page with the families of a lineage, which can be panned, zoomed and searched.

    Parents stand left of their children; a merge has several. Lines are solid from a confidence of
    .9 on. Copies are a badge on their model. Names appear where there is room for them. Models
    alone, and those that could not be read, are listed below. All text may come from strangers.

    Args:
      lineage: of up to tens of thousands of models. Paths are shown unless they are "".
      title: of the page.

    Returns:
      An HTML document.

    Raises:
      ProbexError: if a model descends from itself.

    Example:
      >>> nodes = (Node("a<b", "", "f0", "root"), Node("c", "", "f0", "derived"))
      >>> edges = (Edge("a<b", "c", "fine-tune", 1e-9, 0.98, 0.05),)
      >>> text = family_tree_html(Lineage(nodes, edges), "Models")
      >>> "a<b" in text, "<h1>Models</h1>" in text
      (False, True)
    """
    found = family_trees(lineage)
    nodes = {node.id: node for node in lineage.nodes}
    drawn = [model for family in found for model in family.models]
    is_drawn = set(drawn)
    alone = [node for node in lineage.nodes if node.origin == "alone" and node.id not in is_drawn]
    picture = _picture(lineage, found, nodes, drawn, alone) if drawn else ""
    lists = [
        _list("Copies: the same weights", [_copies_line(c) for c in lineage.copies]),
        _list("Models without kin here", [_named(node.id) for node in alone]),
        _list("Not read", [f"{_named(id)}: {escaped(why)}" for id, why in lineage.failed.items()]),
    ]
    body = (
        f"<style>{asset('family_tree.css')}</style>\n<main>\n<h1>{escaped(title)}</h1>\n"
        f"<p>{_summary(lineage, found, alone)}</p>\n{picture}{''.join(lists)}</main>"
    )
    return page(title, body)


def _picture(
    lineage: Lineage,
    found: Sequence[FamilyTree],
    nodes: Mapping[str, Node],
    drawn: Sequence[str],
    alone: Sequence[Node],
) -> str:
    layout = tree_layout(found, [(edge.parent, edge.child) for edge in lineage.edges])
    groups: dict[tuple[str, bool], list[Edge]] = defaultdict(list)
    for edge in sorted(lineage.edges, key=lambda edge: KINDS.index(edge.kind)):
        groups[edge.kind, edge.confidence >= SURE].append(edge)
    lines = [
        f'<path class="ft-line{"" if sure else " ft-unsure"}" data-kind="{KINDS.index(kind)}" '
        f'd="{"".join(layout.lines[edge.parent, edge.child] for edge in edges)}"/>'
        for (kind, sure), edges in groups.items()
    ]
    marks = []
    for number, origin in enumerate(_MARKS):
        places = [layout.places[m] for m in drawn if _mark(nodes[m]) == origin]
        dots = "".join(f"M{x} {y}h.1" for x, y in places)
        marks.append(f'<path class="ft-dot ft-dot{number}" d="{dots}"/>')
        if origin == "unknown parent":
            marks.append(f'<path class="ft-dot ft-hole" d="{dots}"/>')
    data = _data(
        lineage, nodes, drawn, alone, layout.places, [e for g in groups.values() for e in g]
    )
    return (
        '<figure class="ft">\n<div class="ft-bar"><label>Find a model '
        '<input type="search" autocomplete="off" spellcheck="false"></label>'
        '<button type="button" data-find="-1" aria-label="previous found">&lsaquo;</button>'
        '<button type="button" data-find="1" aria-label="next found">&rsaquo;</button>'
        '<output class="ft-found" aria-live="polite"></output></div>\n<div class="ft-view">\n'
        f'<svg viewBox="0 0 {layout.width} {layout.height}" tabindex="0" role="application" '
        f'aria-roledescription="family tree" aria-label="Family trees of {len(drawn)} models. '
        'Arrow keys go along the lines, Enter tells of a model.">\n'
        f'<path class="ft-bus" d="{layout.shared}"/>\n{"".join(lines)}\n<path class="ft-hit"/>'
        f'<path class="ft-chosen-line"/>{"".join(marks)}<path class="ft-dot ft-chosen"/>\n'
        '<g class="ft-names"></g></svg>\n<div class="ft-zoom">'
        '<button type="button" data-zoom="1.6" aria-label="zoom in">+</button>'
        '<button type="button" data-zoom="0.625" aria-label="zoom out">&minus;</button>'
        '<button type="button" data-zoom="0" aria-label="show all">⤢</button></div>\n'
        '<section class="ft-panel" aria-label="The chosen model" tabindex="-1" hidden></section>'
        '</div>\n<output class="ft-said" aria-live="polite"></output>\n'
        f"{_legend(groups, {_mark(nodes[m]) for m in drawn}, lineage)}\n"
        f"<figcaption>{_HINT} <noscript>Names need JavaScript.</noscript></figcaption>\n"
        f'<script type="application/json">{data}</script>\n'
        f"<script>{asset('gestures.js')}{asset('family_tree.js')}</script></figure>\n"
    )


def _mark(node: Node) -> str:
    return node.origin if node.origin in _MARKS else "root"


def _data(
    lineage: Lineage,
    nodes: Mapping[str, Node],
    drawn: Sequence[str],
    alone: Sequence[Node],
    places: Mapping[str, tuple[int, int]],
    edges: Sequence[Edge],
) -> str:
    """What the script says of models and edges; edges stand in the order of the lines."""
    copies = {c.models[0]: [printable(id) for id in c.models[1:]] for c in lineage.copies}
    number = {id: n for n, id in enumerate(drawn)}
    words = {
        "root": "Others here descend from it",
        "derived": "Derived from another model here",
        "unknown parent": "Kin of others here, but none of them is its parent",
        "alone": "Without kin here",
        "copy": "A copy of another model here",
    }
    value: dict[str, Any] = {
        "kinds": KINDS,
        "origins": list(words.values()),
        "nodes": [
            [
                printable(id),
                *places[id],
                [*words].index(nodes[id].origin),
                printable(nodes[id].path, 1000),
                printable(nodes[id].architecture),
                copies.get(id, []),
            ]
            for id in drawn
        ],
        "edges": [
            [
                number[edge.parent],
                number[edge.child],
                KINDS.index(edge.kind),
                edge.p_value,
                edge.confidence,
                edge.distance,
                edge.coefficient,
                edge.error,
                [printable(layer) for layer in edge.layers],
            ]
            for edge in edges
        ],
        "alone": [printable(node.id) for node in alone],
    }
    # Within a script only a bracket could end it.
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _summary(lineage: Lineage, found: Sequence[FamilyTree], alone: Sequence[Node]) -> str:
    copies = sum(len(group.models) - 1 for group in lineage.copies)
    trees = [family for family in found if len(family.models) > 1]
    parts = [
        _count(len(lineage.nodes), "model", "models"),
        _count(len(trees), "family", "families"),
        _count(sum(family.merges for family in found), "merge", "merges"),
        _count(copies, "copy", "copies"),
        f"{len(alone):,} without kin",
    ]
    if lineage.failed:
        parts.append(f"{len(lineage.failed):,} not read")
    return f"{', '.join(parts)}. All of it is inferred from the weights."


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _legend(groups: Mapping[tuple[str, bool], object], marks: set[str], lineage: Lineage) -> str:
    entries = [
        _entry(f'<path class="ft-line" data-kind="{n}" d="M1 8H31"/>', kind)
        for n, kind in enumerate(KINDS)
        if any(one == kind for one, _ in groups)
    ]
    if any(not sure for _, sure in groups):
        dashed = '<path class="ft-line ft-unsure" d="M1 8H31"/>'
        entries.append(_entry(dashed, "confidence below .9"))
    for number, (origin, meaning) in enumerate(_MARKS.items()):
        if origin in marks:
            drawn = f'<path class="ft-dot ft-dot{number}" d="M16 8h.1"/>'
            if origin == "unknown parent":
                drawn += '<path class="ft-dot ft-hole" d="M16 8h.1"/>'
            entries.append(_entry(drawn, meaning))
    if lineage.copies:
        entries.append('<span><b class="ft-badge">+2</b>copies</span>')
    return f'<div class="ft-legend">{"".join(entries)}</div>'


def _entry(drawn: str, meaning: str) -> str:
    return f'<span><svg viewBox="0 0 32 16" aria-hidden="true">{drawn}</svg>{meaning}</span>'


def _copies_line(group: Any) -> str:
    first, *others = map(_named, group.models[:_MOST_LISTED])
    said = (
        "the same numbers"
        if not group.largest_difference
        else (f"entries differ by at most {group.largest_difference:.3g}")
    )
    return f"{first}: {', '.join(others)} ({said})"


def _named(id: str) -> str:
    return f"<code>{escaped(id)}</code>"


def _list(title: str, items: Sequence[str]) -> str:
    """A list that opens; "" for none."""
    if not items:
        return ""
    shown = "".join(f"<li>{item}</li>" for item in items[:_MOST_LISTED])
    more = len(items) - _MOST_LISTED
    rest = f"<p>and {more:,} more, which lineage.json lists</p>" if more > 0 else ""
    opened = " open" if len(items) <= 20 else ""
    return (
        f"<details{opened}><summary>{title} ({len(items):,})</summary><ul>{shown}</ul>{rest}"
        "</details>\n"
    )
