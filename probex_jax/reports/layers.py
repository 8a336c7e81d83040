"""The accuracies of experts on single layers, as a section of a report."""

from collections.abc import Mapping, Sequence

from probex_jax.reports.charts import bars_by_layer
from probex_jax.reports.html import escaped, figure, html_table
from probex_jax.reports.training import Training

# Layers whose bars fit on a screen or two.
_DRAWN = 40
_KEY = "val_accuracy_by_layer"

# Method to layer to a figure.
_ByLayer = Mapping[str, Mapping[str, float]]


def by_layer(trainings: Sequence[Training]) -> str:
    """Bars of each tree's layers, its methods side by side; "" where no method has any."""
    trees = dict.fromkeys(t.metrics["tree"] for t in trainings if _KEY in t.metrics)
    panels = "".join(
        _panel(tree, [t for t in trainings if t.metrics["tree"] == tree and _KEY in t.metrics])
        for tree in trees
    )
    about = (
        "<p>Validation accuracy of an expert on each layer alone; the choice of layers was made by "
        "it. Methods that read all layers at once have no bars.</p>"
    )
    return f'{about}<div class="side">{panels}</div>' if panels else ""


def _panel(tree: str, trainings: Sequence[Training]) -> str:
    known = (t.metrics["val_chance"] for t in trainings if "val_chance" in t.metrics)
    chance = next(known, None)
    methods = {t.method: t.metrics[_KEY] for t in trainings}
    layers = list(dict.fromkeys(layer for found in methods.values() for layer in found))
    drawn = bars_by_layer(f"Accuracy by layer, {tree}", _best(methods, layers), chance)
    some, more = "", ""
    if len(layers) > _DRAWN:
        some, more = f" The best {_DRAWN} of {len(layers)} layers.", _all(methods, layers)
    return f"<div>{figure(drawn, f'{tree}.{some}')}{more}{_left_out(trainings)}</div>"


def _best(methods: _ByLayer, layers: Sequence[str]) -> _ByLayer:
    """The figures of the layers that are drawn, in the order of all."""
    best = {layer: max(found.get(layer, 0.0) for found in methods.values()) for layer in layers}
    drawn = set(sorted(layers, key=best.__getitem__, reverse=True)[:_DRAWN])
    return {
        method: {layer: value for layer, value in found.items() if layer in drawn}
        for method, found in methods.items()
    }


def _all(methods: _ByLayer, layers: Sequence[str]) -> str:
    rows = [
        {"layer": layer}
        | {name: f"{of[layer]:.3f}" if layer in of else "" for name, of in methods.items()}
        for layer in layers
    ]
    return f"<details><summary>All {len(layers)} layers</summary>{html_table(rows)}</details>"


def _left_out(trainings: Sequence[Training]) -> str:
    """Layers that no method read, and why."""
    reasons: dict[str, str] = {}
    for training in trainings:
        reasons |= training.metrics["left_out"]
    if not reasons:
        return ""
    count = f"{len(reasons)} layer{'s were' if len(reasons) > 1 else ' was'} left out"
    listed = "".join(f"<li>{escaped(reason)}</li>" for reason in reasons.values())
    return f"<details><summary>{count}</summary><ul>{listed}</ul></details>"
