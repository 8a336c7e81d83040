"""Colours and shapes of groups of models on a map."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Both suit colour-blind readers: Okabe and Ito's palette, with grey instead of black, since black
# is for emphasis; Paul Tol's muted scheme.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#777777")
MUTED = (
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#999933"),
    *("#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777"),
)
COLOURS = OKABE_ITO + MUTED


def _polygon(*points: tuple[float, float]) -> str:
    return "M" + "L".join(f"{x:.3g} {y:.3g}" for x, y in points) + "Z"


def _regular(corners: int, radius: float, first: float = -90, inner: float = 1.0) -> str:
    """A regular polygon, or a star whose inner radius is `inner` times the outer one."""
    count = corners if inner == 1.0 else 2 * corners
    angles = [math.radians(first + 360 * index / count) for index in range(count)]
    radii = [radius * (inner if index % 2 else 1.0) for index in range(count)]
    return _polygon(
        *((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True))
    )


# In CSS pixels around (0, 0), of about the same area.
SHAPES = (
    "M-5 0A5 5 0 1 1 5 0A5 5 0 1 1-5 0Z",
    _regular(4, 6.2, 45),
    _regular(3, 6.8),
    _regular(4, 6.6),
    _regular(3, 6.8, 90),
    "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    _regular(4, 7.5, 45, 0.35),
    _regular(6, 5.8),
    _regular(3, 6.8, 180),
    _regular(3, 6.8, 0),
    "M-5.5-5.5H5.5L-5.5 5.5H5.5Z",
    "M-7-3H7V3H-7Z",
)
STAR = _regular(5, 12, inner=0.42)


@dataclass(frozen=True)
class Styles:
    """How groups look.

    Args:
      of: group to its indices into `COLOURS` and `SHAPES`.
      colours: last word to index into `COLOURS`, where words decide; else empty.
      shapes: the words before it to index into `SHAPES`, where words decide; else empty.
    """

    of: Mapping[str, tuple[int, int]]
    colours: Mapping[str, int]
    shapes: Mapping[str, int]

    @property
    def by_words(self) -> bool:
        """Whether the words of the groups decide how they look."""
        return bool(self.colours)


def styles_of(groups: Sequence[str]) -> Styles:
    """Styles of the distinct groups.

    Up to eight groups have a colour and a shape each. Of more, the last word gives the colour and
    the words before it the shape, if there are enough of both. Otherwise each group has its own
    pair of colour and shape; after 120 pairs they repeat.

    Example:
      >>> styles_of(["cat", "dog", "cat"]).of
      {'cat': (0, 0), 'dog': (1, 1)}
    """
    distinct = list(dict.fromkeys(groups))
    if len(distinct) <= len(OKABE_ITO):
        return Styles({group: (n, n) for n, group in enumerate(distinct)}, {}, {})
    words = [_first_and_last(group) for group in distinct]
    firsts, lasts = (list(dict.fromkeys(of_all)) for of_all in zip(*words, strict=True))
    if 1 < len(firsts) <= len(SHAPES) and len(lasts) <= len(MUTED):
        colours = {word: len(OKABE_ITO) + number for number, word in enumerate(lasts)}
        shapes = {word: number for number, word in enumerate(firsts)}
        of = {
            group: (colours[last], shapes[first])
            for group, (first, last) in zip(distinct, words, strict=True)
        }
        return Styles(of, colours, shapes)
    pairs = ((n % len(MUTED), n // len(MUTED) % len(SHAPES)) for n in range(len(distinct)))
    of = {group: (len(OKABE_ITO) + c, s) for group, (c, s) in zip(distinct, pairs, strict=True)}
    return Styles(of, {}, {})


def _first_and_last(label: str) -> tuple[str, str]:
    """The words before the last, and the last."""
    first, _, last = label.strip().rpartition(" ")
    return first.strip(), last
