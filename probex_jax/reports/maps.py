"""A map of models: their representations in the plane, near ones near."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors
from probex_jax.reports.layout import in_the_plane
from probex_jax.reports.map_styles import MUTED, first_and_last

_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")


def map_of_models(
    vectors: np.ndarray, labels: Sequence[str], path: Path, *, ringed: Collection[str] = ()
) -> None:
    """Draws models as points, by t-SNE of their directions, with a legend of their labels' words.

    The last word of a label gives the colour, the words before it the shape; the label itself
    stands over the middle of its points.

    Args:
      vectors: [N, T] float representations.
      labels: N labels.
      path: the PNG file to write.
      ringed: labels whose points get a black ring, such as held-out classes.

    Raises:
      ProbexError: if matplotlib or scikit-learn is missing (extras `commands`, `search`), or there
        are fewer than four models.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ProbexError(f"maps need {error.name}: pip install matplotlib") from None
    if len(vectors) < 4:
        raise ProbexError(f"a map of {len(vectors)} models: expected four or more")
    points_N2 = in_the_plane(vectors)
    # Labels are text of strangers: a dollar sign in them begins no formula.
    with rc_context({"text.parse_math": False}), disk_errors(path):
        figure = Figure(figsize=(11, 8.5), layout="constrained", dpi=130)
        _draw(figure, points_N2, labels, ringed)
        figure.savefig(path)


def _draw(figure, points_N2: np.ndarray, labels: Sequence[str], ringed: Collection[str]) -> None:
    from matplotlib.patheffects import withStroke

    words = {label: first_and_last(label) for label in dict.fromkeys(labels)}
    shapes = _styles([first for first, _ in words.values()], _SHAPES)
    colours = _styles([last for _, last in words.values()], MUTED)
    panel = figure.subplots()
    for label, (first, last) in words.items():
        places = points_N2[[index for index, other in enumerate(labels) if other == label]]
        panel.scatter(
            *places.T,
            s=46,
            color=colours[last],
            marker=shapes[first],
            edgecolors="black" if label in ringed else "white",
            linewidths=1.1 if label in ringed else 0.4,
        )
        name = panel.annotate(
            label, np.median(places, axis=0), (0, 6), textcoords="offset points", ha="center"
        )
        name.set(fontsize=6.5, path_effects=[withStroke(linewidth=1.8, foreground="white")])
    for name, colour in colours.items():
        panel.scatter([], [], color=colour, marker="o", label=name)
    for name, shape in shapes.items():
        panel.scatter([], [], color="black", marker=shape, label=name or "(one word)")
    if ringed:
        panel.scatter([], [], color="white", edgecolors="black", marker="o", label="held out")
    legend = figure.legend(loc="outside right center", frameon=False, fontsize=8)
    legend.set_title("colour: last word\nshape: words before", {"size": 8})
    panel.set_axis_off()


def _styles(words: Sequence[str], styles: Sequence[str]) -> dict[str, str]:
    """A style for each distinct word, over again where there are more words than styles."""
    return {word: styles[number % len(styles)] for number, word in enumerate(dict.fromkeys(words))}
