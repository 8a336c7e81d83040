"""Whose representations an index holds: what its `index.json` says of the expert."""

from typing import Any

from probex_jax.experts import Expert


def identity(expert: Expert) -> dict[str, Any]:
    """What tells an expert from others."""
    return {
        "tree": expert.card.tree,
        "layer": expert.reading,
        "hash": expert.hash,
        "rep_dim": expert.rep_dim,
        "text_encoder": expert.card.text and expert.card.text.name,
    }


def named(expert: dict[str, Any]) -> str:
    """An identity in a line, for errors."""
    return f"tree {expert['tree']}, layer {expert['layer']} (hash {expert['hash'][:12]})"


def is_whole(about: dict[str, Any]) -> bool:
    """Whether an `index.json` says all that it has to."""
    try:
        expert, ann = about["expert"], about["ann"]
        texts = all(isinstance(expert[name], str) for name in ("tree", "layer", "hash"))
        figures = ann is None or (type(ann["models"]) is int and 0 <= ann["recall_at_10"] <= 1)
        return texts and figures and type(expert["rep_dim"]) is int
    except (KeyError, TypeError):
        return False
