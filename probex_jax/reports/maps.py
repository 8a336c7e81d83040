"""A map of models: their representations in the plane, near ones near."""

from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors
from probex_jax.reports.layout import in_the_plane
from probex_jax.reports.map_styles import COLOURS, styles_of

# In the order of `map_styles.SHAPES`.
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")

_MOST_IN_LEGEND = 40


def map_of_models(
    vectors: np.ndarray, labels: Sequence[str], path: Path, *, ringed: Collection[str] = ()
) -> None:
    """Draws models as points, by t-SNE of their directions.

    Labels have colours and shapes as on an interactive map, and stand over the middle of their
    points, where there is room.

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

    styles = styles_of(labels)
    panel, names = figure.subplots(), []
    for label, (colour, shape) in styles.of.items():
        places = points_N2[[index for index, other in enumerate(labels) if other == label]]
        panel.scatter(
            *places.T,
            s=46,
            color=COLOURS[colour],
            marker=_SHAPES[shape],
            edgecolors="black" if label in ringed else "white",
            linewidths=1.1 if label in ringed else 0.4,
        )
        name = panel.annotate(
            label, np.median(places, axis=0), (0, 6), textcoords="offset points", ha="center"
        )
        name.set(fontsize=6.5, path_effects=[withStroke(linewidth=1.8, foreground="white")])
        names.append(name)
    if not styles.by_words:
        for label, (colour, shape) in islice(styles.of.items(), _MOST_IN_LEGEND):
            panel.scatter([], [], color=COLOURS[colour], marker=_SHAPES[shape], label=label)
    for name, colour in styles.colours.items():
        panel.scatter([], [], color=COLOURS[colour], marker="o", label=name)
    for name, shape in styles.shapes.items():
        panel.scatter([], [], color="black", marker=_SHAPES[shape], label=name or "(one word)")
    if ringed:
        panel.scatter([], [], color="white", edgecolors="black", marker="o", label="held out")
    legend = figure.legend(loc="outside right center", frameon=False, fontsize=8)
    if styles.by_words:
        legend.set_title("colour: last word\nshape: words before", {"size": 8})
    panel.set_axis_off()
    figure.draw_without_rendering()
    _thin_out(names)


def _thin_out(names: Sequence[Any]) -> None:
    """Of names that would lie on one another the first is shown, as on an interactive map."""
    kept: list[Any] = []
    for name in names:
        box = name.get_window_extent()
        name.set_visible(not any(box.overlaps(other) for other in kept))
        if name.get_visible():
            kept.append(box)
