"""Small charts as inline SVG, as wide as a phone: nothing in them is told by colour alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from probex_jax.reports.figures import short_name
from probex_jax.reports.html import escaped
from probex_jax.reports.map_styles import OKABE_ITO

_WIDTH = 340
# Beside the plot of promised against came true.
_LEFT, _TOP, _SIDE, _FOOT = 44, 26, 260, 62

# Points of fewer answers are drawn small.
FEW = 10

_COLOURS = OKABE_ITO[:4]
_LINES = ("", "M0 6L6 0", "M3 0V6", "M0 3H6M3 0V6")

# Hatched fills, which all charts of a page share: it must stand in the page once.
PATTERNS = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    + "".join(
        f'<pattern id="px-fill-{number}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect width="6" height="6" fill="{colour}"/>'
        f'<path d="{lines}" stroke="#fff" stroke-width="1.6"/></pattern>'
        for number, (colour, lines) in enumerate(zip(_COLOURS, _LINES, strict=True))
    )
    + "</defs></svg>"
)


def fill(number: int) -> str:
    """A fill of `PATTERNS`, over again where there are more than four."""
    return f"url(#px-fill-{number % len(_COLOURS)})"


def chart(width: float, height: float, title: str, body: str) -> str:
    """An SVG with its title, which is what it says to who does not see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'font-size="11" font-family="inherit"><title>{escaped(title)}</title>{body}</svg>'
    )


def bars_by_layer(
    title: str, methods: Mapping[str, Mapping[str, float]], chance: float | None
) -> str:
    """Horizontal bars from 0 to 1, those of a layer under its name.

    Args:
      title: what the chart says.
      methods: method to layer to a figure; where a method lacks a layer, there is no bar.
      chance: where a dashed line is drawn, if anywhere.
    """
    layers = list(dict.fromkeys(layer for found in methods.values() for layer in found))
    several = len(methods) > 1
    parts, y = [], 4
    if several:
        for number, method in enumerate(methods):
            parts.append(
                f'<rect x="0" y="{y}" width="18" height="9" fill="{fill(number)}"/>'
                f'<text x="24" y="{y + 8.5}">{escaped(method)}</text>'
            )
            y += 15
    top, room = y, _WIDTH - 34
    for layer in layers:
        y += 12
        name = f"{_short(layer)}<title>{escaped(layer)}</title>"
        parts.append(f'<text class="halo" x="0" y="{y}">{name}</text>')
        y += 3
        for number, found in enumerate(methods.values()):
            if layer in found:
                parts.append(_bar(y, number, found[layer], room))
                y += 11
        y += 3
    if chance is not None:
        x, at = chance * room, min(max(chance * room, 40), _WIDTH - 40)
        parts.insert(
            0,
            f'<path d="M{x:.1f} {top}V{y + 2}" stroke="#000" stroke-dasharray="4 3"/>'
            f'<text x="{at:.1f}" y="{y + 14}" text-anchor="middle">chance {chance:.3f}</text>',
        )
    return chart(_WIDTH, y + 18, title, "".join(parts))


def _bar(y: float, number: int, value: float, room: float) -> str:
    length = room * min(max(value, 0.0), 1.0)
    return (
        f'<rect x="0" y="{y}" width="{length:.1f}" height="9" fill="{fill(number)}"/>'
        f'<text class="halo" x="{length + 4:.1f}" y="{y + 8.5}">{value:.3f}</text>'
    )


def _short(layer: str) -> str:
    """A layer's name, its middle left out where it would not fit."""
    name = short_name(layer)
    return escaped(name if len(name) <= 52 else f"{name[:24]}…{name[-27:]}")


def interval(value: float, low: float, high: float, chance: float | None = None) -> str:
    """A figure between 0 and 1 with its interval, as high as a line of text."""
    x, x0, x1 = (4 + 132 * min(max(at, 0.0), 1.0) for at in (value, low, high))
    dashes = ""
    if chance is not None:
        at = 4 + 132 * chance
        dashes = f'<path d="M{at:.1f} 0V16" stroke="#000" stroke-dasharray="2 2"/>'
    return chart(
        140,
        16,
        f"{value:.3f}, interval {low:.3f} to {high:.3f}, on a line from 0 to 1",
        f'<path d="M4 12H136M4 9V15M136 9V15" stroke="#999" fill="none"/>{dashes}'
        f'<path d="M{x0:.1f} 8H{x1:.1f}M{x0:.1f} 4V12M{x1:.1f} 4V12" stroke="#0072B2" '
        f'stroke-width="2" fill="none"/><circle cx="{x:.1f}" cy="8" r="3.5" fill="#0072B2"/>',
    )


def calibration_curve(title: str, curves: Mapping[str, np.ndarray]) -> str:
    """Shares that came true over the probabilities promised, and under it how many entries.

    Args:
      title: what the chart says.
      curves: at most two names, such as before and after, to [3, B] of `reliability`; the second
        one's counts are shown.
    """
    bottom = _TOP + _SIDE
    grid = "".join(
        f'<path d="M{_x(at):.1f} {_TOP}V{bottom}M{_LEFT} {_y(at):.1f}H{_LEFT + _SIDE}"/>'
        for at in (0.25, 0.5, 0.75)
    )
    ticks = "".join(
        f'<text x="{_x(at):.1f}" y="{bottom + 13}" text-anchor="middle">{at:g}</text>'
        f'<text x="{_LEFT - 5}" y="{_y(at) + 4:.1f}" text-anchor="end">{at:g}</text>'
        for at in (0, 0.25, 0.5, 0.75, 1)
    )
    names = "".join(
        f"{_point(_LEFT + 6 + 90 * number, 10, number)}"
        f'<text x="{_LEFT + 16 + 90 * number}" y="14">{escaped(name)}</text>'
        for number, name in enumerate(curves)
    )
    body = (
        f'<g stroke="#ccc">{grid}</g>{ticks}{names}'
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#000"/>'
        f'<path d="M{_LEFT} {bottom}L{_LEFT + _SIDE} {_TOP}" stroke="#000" stroke-dasharray="4 3"/>'
        f"{''.join(_curve(number, bins) for number, bins in enumerate(curves.values()))}"
        f'<text x="{_LEFT + _SIDE / 2}" y="{bottom + 27}" text-anchor="middle">'
        "probability promised</text>"
        f'<text transform="translate(11 {_TOP + _SIDE / 2}) rotate(-90)" text-anchor="middle">'
        "share that came true</text>"
        f"{_counts(list(curves.values())[-1][0], bottom + 34)}"
    )
    return chart(_WIDTH, bottom + 34 + _FOOT, title, body)


def _x(share: float) -> float:
    return _LEFT + _SIDE * share


def _y(share: float) -> float:
    return _TOP + _SIDE * (1 - share)


def _curve(number: int, bins: np.ndarray) -> str:
    counts, promised, held = bins[:, bins[0] > 0]
    places = [(_x(x), _y(y)) for x, y in zip(promised / counts, held / counts, strict=True)]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dashes = "" if number else ' stroke-dasharray="2 3"'
    sizes = [4 if count >= FEW else 2.5 for count in counts]
    points = "".join(_point(*at, number, size) for at, size in zip(places, sizes, strict=True))
    colour = _COLOURS[(1, 0)[number]]
    return f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>{points}'


def _point(x: float, y: float, number: int, size: float = 4) -> str:
    """Of the first curve a hollow circle, of the second a full square."""
    if number == 0:
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="#fff" stroke="#B87300" '
            'stroke-width="2"/>'
        )
    return (
        f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}" '
        f'fill="{_COLOURS[0]}"/>'
    )


def _counts(counts: Sequence[float], top: float) -> str:
    width, most = _SIDE / len(counts), max(max(counts), 1)
    bars = "".join(
        f'<rect x="{_LEFT + width * number + 1:.1f}" y="{top + 44 * (1 - count / most):.1f}" '
        f'width="{width - 2:.1f}" height="{44 * count / most:.1f}" fill="#666"/>'
        for number, count in enumerate(counts)
    )
    return (
        f'{bars}<path d="M{_LEFT} {top + 44}H{_LEFT + _SIDE}" stroke="#000"/>'
        f'<text x="{_LEFT}" y="{top + 57}">answers per bin; the highest bar: {most:.0f}</text>'
    )
