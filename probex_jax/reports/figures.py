"""Figures, legible in black and white and by colour-blind readers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.reports.map_styles import OKABE_ITO

# Colours are told apart by hatching as well.
_STYLES = tuple(zip(OKABE_ITO, ("", "///", "...", "xxx"), strict=False))


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, to be drawn on and saved.

    Raises:
      ProbexError: if matplotlib is missing (extra `commands`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ProbexError("figures need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def accuracy_by_layer(
    accuracies: Mapping[str, Mapping[str, Mapping[str, float]]],
    path: Path,
    chance: Mapping[str, float | None] | None = None,
) -> None:
    """Bar chart of validation accuracy by layer, a panel per tree.

    Args:
      accuracies: tree to method to layer to accuracy; the first method of a tree has all layers,
        another has no bar where it has none.
      path: the PNG file to write.
      chance: tree to what always giving the commonest answer has; bars begin there, or at zero
        where it is not known.

    Raises:
      ProbexError: if matplotlib is missing (extra `commands`).
    """
    n_bars = max(len(next(iter(methods.values()))) for methods in accuracies.values())
    size = (1.5 + 4.5 * len(accuracies), 1.2 + 0.42 * n_bars)
    figure = new_figure(*size)
    panels = figure.subplots(1, len(accuracies), squeeze=False)[0]
    for panel, (tree, methods) in zip(panels, accuracies.items(), strict=True):
        _panel(panel, tree, methods, (chance or {}).get(tree))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def _panel(
    panel, tree: str, methods: Mapping[str, Mapping[str, float]], chance: float | None
) -> None:
    start = 0.0 if chance is None else chance
    least = min([start, *(value for of in methods.values() for value in of.values())])
    layers = list(next(iter(methods.values())))
    height = 0.8 / len(methods)
    for number, (method, by_layer) in enumerate(methods.items()):
        colour, hatch = _STYLES[number % len(_STYLES)]
        positions = [
            index + (number - (len(methods) - 1) / 2) * height for index in range(len(layers))
        ]
        values = [by_layer.get(layer) for layer in layers]
        gains = [0.0 if value is None else value - start for value in values]
        bars = panel.barh(
            positions, gains, height, start, color=colour, hatch=hatch, edgecolor="white"
        )
        bars.set_label(method)
        texts = ["" if value is None else f"{value:.2f}" for value in values]
        panel.bar_label(bars, texts, fontsize=6, padding=2)
    panel.axvline(start, color="black", linewidth=0.8)
    panel.set_yticks(range(len(layers)), [short_name(layer) for layer in layers], fontsize=8)
    panel.set_ylim(len(layers) - 0.4, -0.6)
    panel.set_xlim(max(least - 0.08, 0.0), 1.06)
    begin = "" if chance is None else f"; bars begin at chance, {chance:.3f}"
    panel.set_xlabel(f"validation accuracy{begin}", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.set_title(tree, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


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
