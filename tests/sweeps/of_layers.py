"""The experts of single layers in a work directory, wherever they are."""

from dataclasses import replace
from pathlib import Path

import probex_jax as px


def of_layer(workdir, layer, variant="", encoders=None, folder="expert"):
    """The expert of a layer, and of a variant of the recipe: by itself, or among the chosen."""
    path = Path(workdir) / "layers" / layer / variant / folder
    if path.exists():
        return px.Expert.load(path, encoders or {})
    chosen = px.Expert.load(Path(workdir) / folder, encoders or {})
    [member] = [member for member in chosen.members if member.layer == layer]
    card = replace(member.card, weight=1.0)
    metrics = member.card.metrics or chosen.card.metrics
    card = replace(chosen.card, members=(card,), metrics=metrics)
    return px.Expert(member.variables, card, chosen.encoders)
