"""The expert of an index, as its `index.json` describes it."""

import re
from typing import Any

from probex_jax.experts import Expert


def identity(expert: Expert) -> dict[str, Any]:
    """The facts that identify an expert."""
    return {
        "tree": expert.card.tree,
        "layer": expert.reading,
        "hash": expert.hash,
        "rep_dim": expert.rep_dim,
        "text_encoder": expert.card.text and expert.card.text.name,
    }


def show(expert: dict[str, Any]) -> str:
    """An identity for error messages."""
    reading = expert["layer"]  # a layer's name, or how many there are
    layers = reading if re.fullmatch(r"\d+ layers", reading) else f"layer {reading}"
    return f"tree {expert['tree']}, {layers} (hash {expert['hash'][:12]})"


def is_complete(about: dict[str, Any]) -> bool:
    """Whether an `index.json` has all fields."""
    try:
        expert, ann = about["expert"], about["ann"]
        texts = all(isinstance(expert[name], str) for name in ("tree", "layer", "hash"))
        figures = ann is None or (type(ann["models"]) is int and 0 <= ann["recall_at_10"] <= 1)
        return texts and figures and type(expert["rep_dim"]) is int
    except (KeyError, TypeError):
        return False
