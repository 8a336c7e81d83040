"""Figures, legible in black and white and to colour-blind readers."""

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors
from probex_jax.reports.html import escaped, printable
from probex_jax.reports.map_styles import OKABE_ITO

# Bars are told apart by hatching as well as by colour; dots would be 150 kB of circles in an SVG.
_STYLES = tuple(zip(OKABE_ITO, ("", "///", "|||", "xxx"), strict=False))
_MAX_NAME = 40
# Calibration points of fewer predictions are drawn small.
FEW = 10
# Of more models a sample is drawn against the truth.
MOST_POINTS = 400


def accuracy_by_layer(
    accuracies: Mapping[str, Mapping[str, Mapping[str, float]]],
    path: Path | None = None,
    chance: Mapping[str, float | None] | None = None,
) -> Any:
    """Bar chart of the accuracy of each layer alone, a panel per tree.

    Args:
      accuracies: tree to method to layer to accuracy; a method has no bar at a layer it lacks.
      path: the PNG file to write, if any.
      chance: tree to the accuracy of the most common answer; bars start there, or at zero where it
        is not known.

    Returns:
      The matplotlib figure.

    Raises:
      ProbexError: if matplotlib is missing (extra `commands`), or the file cannot be written.
    """
    layers = {
        tree: list(dict.fromkeys(layer for by_layer in methods.values() for layer in by_layer))
        for tree, methods in accuracies.items()
    }
    size = (4.5 * len(accuracies), 1.2 + 0.42 * max(map(len, layers.values())))
    figure = new_figure(*size)
    panels = figure.subplots(1, len(accuracies), squeeze=False)[0]
    for panel, (tree, methods) in zip(panels, accuracies.items(), strict=True):
        _panel(panel, tree, layers[tree], methods, (chance or {}).get(tree))
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if path is not None:
        with disk_errors(path):
            path.write_bytes(_rendered(figure, "png"))
    return figure


def _panel(
    panel: Any,
    tree: str,
    layers: Sequence[str],
    methods: Mapping[str, Mapping[str, float]],
    chance: float | None,
) -> None:
    start = 0.0 if chance is None else chance
    least = min([start, *(value for of in methods.values() for value in of.values())])
    height = 0.8 / len(methods)
    for number, (method, by_layer) in enumerate(methods.items()):
        colour, hatch = _STYLES[number % len(_STYLES)]
        positions = [n + (number - (len(methods) - 1) / 2) * height for n in range(len(layers))]
        values = [by_layer.get(layer) for layer in layers]
        gains = [0.0 if value is None else value - start for value in values]
        bars = panel.barh(
            positions, gains, height, start, color=colour, hatch=hatch, edgecolor="white"
        )
        bars.set_label(printable(method))
        texts = ["" if value is None else f"{value:.2f}" for value in values]
        panel.bar_label(bars, texts, fontsize=6, padding=2)
    panel.axvline(start, color="black", linewidth=0.8)
    panel.set_yticks(range(len(layers)), [_shortened(short_name(name)) for name in layers])
    panel.set_ylim(len(layers) - 0.4, -0.6)
    panel.set_xlim(max(least - 0.08, 0.0), 1.06)
    begin = "" if chance is None else f"\n(bars start at chance, {chance:.3f})"
    panel.set_xlabel(f"accuracy of the layer alone{begin}", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.set_title(printable(tree), fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


def calibration_curve(curves: Mapping[str, np.ndarray]) -> Any:
    """Observed frequency over predicted probability, with a histogram of the predictions below.

    Args:
      curves: name, such as before and after, to [3, B] of `reliability`; the histogram is of the
        last one.

    Returns:
      The matplotlib figure.

    Raises:
      ProbexError: if matplotlib is missing (extra `commands`).
    """
    figure = new_figure(3.8, 4.6)
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    panel.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8)
    for (name, bins), colour, marker, line in zip(
        curves.items(), (OKABE_ITO[1], OKABE_ITO[0]), "os", (":", "-"), strict=False
    ):
        counts, predicted, observed = bins[:, bins[0] > 0]
        x, y = predicted / counts, observed / counts
        panel.plot(x, y, line, color=colour, clip_on=False)
        panel.scatter(
            x, y, np.where(counts >= FEW, 36, 12), colour, marker=marker, zorder=3, clip_on=False
        )
        panel.plot([], [], marker + line, color=colour, label=name)
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", ylabel="observed frequency")
    panel.grid(color="#ccc", linewidth=0.5)
    panel.legend(frameon=False)
    counts = list(curves.values())[-1][0]
    below.bar((np.arange(len(counts)) + 0.5) / len(counts), counts, 0.9 / len(counts), color="#666")
    below.set(xlabel="predicted probability", ylabel="predictions")
    return figure


def predicted_against_true(
    true_N: np.ndarray, predicted_N: np.ndarray, region_N2: np.ndarray | None, *, log: bool
) -> Any:
    """Predicted over true numbers, with a bar for each interval; triangles lie outside of theirs.

    Args:
      true_N, predicted_N: [N] float.
      region_N2: [N, 2], the lowest and the highest value that each interval holds; None without.
      log: whether axes are logarithmic.

    Returns:
      The matplotlib figure.

    Raises:
      ProbexError: if matplotlib is missing (extra `commands`).
    """
    drawn = np.unique(np.linspace(0, len(true_N) - 1, MOST_POINTS).round().astype(int))
    x, y = true_N[drawn], predicted_N[drawn]
    figure = new_figure(3.8, 3.8)
    panel = figure.subplots()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    panel.plot(ends, ends, "--", color="black", linewidth=0.8)
    low, high = (y, y) if region_N2 is None else region_N2[drawn].T
    inside = np.ones(len(x), bool) if region_N2 is None else (low <= x) & (x <= high)
    for shown, colour, marker in ((inside, OKABE_ITO[0], "o"), (~inside, OKABE_ITO[5], "^")):
        bars = shown & np.isfinite(low) & np.isfinite(high)
        panel.vlines(x[bars], low[bars], high[bars], color=colour, linewidth=0.8, alpha=0.35)
        panel.scatter(x[shown], y[shown], 14, colour, marker=marker, zorder=3)
    if log:
        _logarithmic(panel)
    panel.set(xlabel="true", ylabel="predicted")
    panel.grid(color="#ccc", linewidth=0.5)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def _logarithmic(panel: Any) -> None:
    """Logarithmic axes with few ticks, which are written without formulas."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set(xscale="log", yscale="log")
    for axis in (panel.xaxis, panel.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 3) if high < 300 * low else (1,), numticks=5))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


def svg_image(draw: Callable[[], Any], title: str) -> str:
    """A picture as an HTML image that holds all of itself, or why it cannot be drawn.

    Args:
      draw: gives a figure of matplotlib; reports do without pictures where that is missing.
      title: its text for screen readers; may be text of strangers.
    """
    try:
        data = base64.b64encode(_rendered(draw(), "svg")).decode()
    except ProbexError as error:
        return f"<p>{escaped(str(error))}</p>"
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escaped(title)}">'


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ProbexError("figures need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _rendered(figure: Any, form: str) -> bytes:
    from matplotlib import rc_context

    out = io.BytesIO()
    # In text of strangers a dollar sign starts no formula, and a letter may be in no font here.
    with rc_context({"svg.hashsalt": "probex_jax"}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
            text.set_parse_math(False)
        figure.savefig(out, format=form, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def short_name(layer: str) -> str:
    """A layer's name without what all names share.

    Example:
      >>> short_name("vit.encoder.layer.0.attention.attention.query.weight")
      '0.attention.query'
    """
    parts = [
        part
        for part in layer.removesuffix(".weight").split(".")
        if part not in ("vit", "resnet", "encoder", "layer", "stages", "layers", "convolution")
    ]
    return ".".join(
        part
        for index, part in enumerate(parts)
        if index == 0 or part.isdigit() or parts[index - 1] != part
    )


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME // 3]}…{name[-_MAX_NAME // 2 :]}"
