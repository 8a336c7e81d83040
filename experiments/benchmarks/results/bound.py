"""Figures in pages: the sentences and rows that hold them, and where they come from.

A text is written as in the page, with `{}` for each figure. What it has to hold is worked out from
a file of results/: a test compares, and `python -m experiments.benchmarks.results --write` puts the
figures of these files into the pages.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "results"

# Numbers with their spread or interval: ".98 ± .01", "0.953 to 1.000", ".5 (.3 to .8)", "3 of 5".
_MINUS = "\N{MINUS SIGN}"
_FIGURE = rf"((?:[-{_MINUS}+±.,%()\d\s]|\bto\b|\bof\b)*?)"


@dataclass(frozen=True)
class Bound:
    """A text of a page, and its figures.

    Args:
      page: from the root of the repository.
      text: with `{}` for each figure; a space may be any white space.
      file: of results/, without its suffix, such as "speed/cpu-train". Where it is not there yet,
        or "" is given, the figures were typed and are not compared.
      figures: of what the file holds, as they are to stand in the text, in order.
    """

    page: str
    text: str
    file: str
    figures: Callable[[Any], Sequence[str]] = lambda found: ()

    def places(self, page: str) -> list[re.Match[str]]:
        """Where the text stands in the text of the page, whatever its figures: best once."""
        literal = [
            r"\s+".join(re.escape(word) for word in part.split(" "))
            for part in self.text.split("{}")
        ]
        return list(re.finditer(_FIGURE.join(literal), page))

    def faults(self, page: str, results: Path = RESULTS) -> Iterator[str]:
        """What the page says otherwise than the file."""
        places, measured = self.places(page), self.measured(results)
        if len(places) != 1:
            yield f"{self.page}: {self.text!r} stands there {len(places)} times"
        elif measured is not None:
            stands = [" ".join(figure.split()) for figure in places[0].groups()]
            if stands != measured:
                yield f"{self.page}: {self.text!r} has {stands}, measured were {measured}"

    def measured(self, results: Path = RESULTS) -> list[str] | None:
        """The figures of the file; None without one."""
        path = results / f"{self.file}.json"
        if not self.file or not path.exists():
            return None
        found = json.loads(path.read_text())
        return list(self.figures(found[0] if isinstance(found, list) else found))

    def written(self, page: str, results: Path = RESULTS) -> str:
        """The page with the figures of the file."""
        [place] = self.places(page)
        for number, figure in reversed([*enumerate(self.measured(results) or (), 1)]):
            start, end = place.span(number)
            page = page[:start] + figure + page[end:]
        return page


def dot(value: float, digits: int = 3) -> str:
    """Without a zero before the point: .969, 1.000, −.04."""
    text = f"{abs(value):.{digits}f}"
    sign = _MINUS if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def pm(spread: Mapping[str, Any], digits: int = 3) -> str:
    """Mean ± standard deviation."""
    return f"{dot(spread['mean'], digits)} ± {dot(spread['sd'], digits)}"


def span(values: Sequence[float], digits: int = 3) -> tuple[str, str]:
    """The least and the greatest."""
    return dot(min(values), digits), dot(max(values), digits)
