"""An interactive map of models: a fragment of HTML with its own style and script.

The script is ours: Plotly's smallest bundle would add 1.2 MB to every report; regl-scatterplot, of
110 kB, has no keys, shapes or picture without JavaScript. Larger maps go to a viewer
(`Indexes.export`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from probex_jax.errors import ProbexError
from probex_jax.reports.html import asset, escaped
from probex_jax.reports.map_styles import COLOURS, OKABE_ITO, SHAPES, STAR, Styles, styles_of

_WIDTH = 1000.0
_MARGIN = 45.0
# Limits of height to width; beyond them there is empty space at the sides.
_FLATTEST, _STEEPEST = 0.62, 1.0
_EMPHASES = ("", "ring", "star")
# Fewer groups need only the legend; more names would hide the points.
_FEWEST_NAMED, _MOST_NAMES = len(OKABE_ITO) + 1, 120
_HINT = (
    "Drag or use the arrow keys to pan; scroll, pinch or press + and &minus; to zoom, 0 to show "
    "everything. Point at a model or tap it to see what it is; N and P step through the models."
)


@dataclass(frozen=True)
class MapPoint:
    """A model on a map.

    Args:
      x: of any scale.
      y: of the same scale, upwards.
      title: shown when the model is pointed at.
      group: decides colour and shape; may be empty.
      emphasis: "ring" for a black ring around it, "star" for the model in question, or "".
    """

    x: float
    y: float
    title: str
    group: str
    emphasis: str = ""


def interactive_map(
    points: Sequence[MapPoint], *, caption: str, emphasised: Mapping[str, str] | None = None
) -> str:
    """A map of models with a legend: pan and zoom it, point at a model to read its title.

    Groups have colours and shapes from `map_styles.styles_of`; from nine groups on, their names
    stand on the map. It works by mouse, touch and keyboard; in print or without JavaScript it is a
    static picture. All text may come from strangers.

    Args:
      points: the models; a few thousand at most.
      caption: a sentence under the map.
      emphasised: what "ring" and "star" mean, for the legend.

    Returns:
      A fragment of HTML; a page may hold several.

    Raises:
      ProbexError: if a position is not finite, or an emphasis is unknown.

    Example:
      >>> text = interactive_map([MapPoint(0, 0, "model <7>", "MiniMAE")], caption="One model.")
      >>> "model &lt;7&gt;" in text
      True
    """
    emphasised = dict(emphasised or {})
    for point in points:
        if not (math.isfinite(point.x) and math.isfinite(point.y)):
            raise ProbexError(f"map: {point.title[:100]!r} has no finite position")
    for kind in {*emphasised, *(point.emphasis for point in points)}:
        if kind not in _EMPHASES:
            raise ProbexError(f"map: emphasis {kind!r} is not one of ring, star")
    styles = styles_of([point.group for point in points if point.emphasis != "star"])
    places, height = _in_the_frame(points)
    # Later layers lie on top: no point or name hides the model in question.
    layers = [
        "\n".join(
            _mark(point, place, styles)
            for point, place in zip(points, places, strict=True)
            if point.emphasis == emphasis
        )
        for emphasis in _EMPHASES
    ]
    layers.insert(-1, _names(points, styles))
    drawn = "\n".join(f"<g>{layer}</g>" for layer in layers)
    about = f"{escaped(caption)} {len(points)} models."
    return (
        f'<figure class="px-map"><style>{asset("map.css")}</style>\n<div class="px-view">\n'
        f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" tabindex="0" role="application" '
        f'aria-roledescription="map" aria-label="{about}">\n{drawn}\n</svg>'
        '<output aria-live="polite"></output>\n<div class="px-zoom">'
        '<button type="button" data-zoom="1.6" aria-label="zoom in">+</button>'
        '<button type="button" data-zoom="0.625" aria-label="zoom out">&minus;</button>'
        '<button type="button" data-zoom="0" aria-label="show all">⤢</button></div></div>\n'
        f"{_legend(points, styles, emphasised)}\n<figcaption>{escaped(caption)} "
        f'<span class="px-hint">{_HINT}</span>'
        f"</figcaption>\n<script>{asset('gestures.js')}{asset('map.js')}</script></figure>"
    )


def _in_the_frame(points: Sequence[MapPoint]) -> tuple[list[tuple[float, float]], float]:
    """Positions in the picture, equally scaled in x and y, and the height of the picture."""
    if not points:
        return [], _WIDTH * _FLATTEST
    left, right = min(p.x for p in points), max(p.x for p in points)
    low, high = min(p.y for p in points), max(p.y for p in points)
    wide, tall = right - left, high - low
    ratio = tall / wide if wide else _STEEPEST if tall else _FLATTEST
    height = _WIDTH * min(max(ratio, _FLATTEST), _STEEPEST)
    room = [
        (size - 2 * _MARGIN) / extent
        for size, extent in ((_WIDTH, wide), (height, tall))
        if extent > 0
    ]
    scale = min(room, default=0.0)
    x0, y0 = (left + right) / 2, (low + high) / 2
    return [
        (_WIDTH / 2 + (p.x - x0) * scale, height / 2 - (p.y - y0) * scale) for p in points
    ], height


def _mark(point: MapPoint, place: tuple[float, float], styles: Styles) -> str:
    title = f"<title>{escaped(point.title)}</title>"
    at = f'class="px-mark" transform="translate({place[0]:.1f} {place[1]:.1f})"'
    if point.emphasis == "star":
        return f'<g {at}><path class="px-star" d="{STAR}"/>{title}</g>'
    colour, shape = styles.of[point.group]
    keys = f'data-c="{colour}" data-s="{shape}"'
    ring = '<circle class="px-ring" r="8.5"/>' if point.emphasis == "ring" else ""
    drawn = f'<path d="{SHAPES[shape]}" fill="{COLOURS[colour]}"/>'
    return f"<g {at} {keys}>{ring}{drawn}{title}</g>"


def _names(points: Sequence[MapPoint], styles: Styles) -> str:
    """The names of the groups; `map.js` places those that cover nothing, and shows them."""
    named = dict.fromkeys(p.group for p in points if p.emphasis != "star" and p.group)
    if not _FEWEST_NAMED <= len(named) <= _MOST_NAMES:
        return ""
    return "\n".join(
        '<g class="px-mark px-name" transform="translate(0 0)" '
        'data-c="{}" data-s="{}"><text y="3.5">{}</text></g>'.format(
            *styles.of[group], escaped(group)
        )
        for group in named
    )


def _legend(points: Sequence[MapPoint], styles: Styles, emphasised: Mapping[str, str]) -> str:
    """Buttons; pressing one fades the other groups."""
    rows = []
    if styles.by_words:
        colours = [_entry(word, c, 0, f'data-c="{c}"') for word, c in styles.colours.items()]
        shapes = [
            _entry(word or "(one word)", None, s, f'data-s="{s}"')
            for word, s in styles.shapes.items()
        ]
        rows = [("colour: last word", colours), ("shape: words before it", shapes)]
    else:
        both = [
            _entry(group, c, s, f'data-c="{c}" data-s="{s}"')
            for group, (c, s) in islice(styles.of.items(), _MOST_NAMES)
            if group
        ]
        if len(styles.of) > _MOST_NAMES:
            both.append(f"<span>and {len(styles.of) - _MOST_NAMES:,} more</span>")
        rows = [("", both)]
    used = {point.emphasis for point in points}
    meant = [_meaning(kind, text) for kind, text in emphasised.items() if kind in used]
    return (
        '<div class="px-legend">'
        + "".join(
            f"<div>{f'<span>{title}</span>' if title else ''}{''.join(entries)}</div>"
            for title, entries in [("", meant), *rows]
            if entries
        )
        + "</div>"
    )


def _entry(word: str, colour: int | None, shape: int, keys: str) -> str:
    fill = "#1a1a1a" if colour is None else COLOURS[colour]
    picture = f'<path d="{SHAPES[shape]}" fill="{fill}"/>'
    return (
        f'<button type="button" aria-pressed="false" {keys}>{_picture(picture)}'
        f"{escaped(word)}</button>"
    )


def _meaning(kind: str, text: str) -> str:
    drawn = (
        f'<path class="px-star" d="{STAR}"/>'
        if kind == "star"
        else '<circle class="px-ring" r="8.5"/>'
    )
    return f"<span>{_picture(drawn)}{escaped(text)}</span>"


def _picture(drawn: str) -> str:
    return f'<svg viewBox="-11 -11 22 22" aria-hidden="true">{drawn}</svg>'
