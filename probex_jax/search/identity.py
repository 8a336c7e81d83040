"""The `index.json` of an index, and the expert as it describes it."""

import re
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.experts import Expert
from probex_jax.files import read_json
from probex_jax.integrity import is_sealed
from probex_jax.search.checksums import damage

FORMAT = "probex_jax index"
VERSION = 2
# Has no checksums; the next run that adds models upgrades it.
UNCHECKED = 1


def read_about(path: Path) -> dict[str, Any]:
    """The content of the `index.json` of an index; a ProbexError if it is missing or damaged."""
    file = path / "index.json"
    try:
        about = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise ProbexError(f"{path}: no index here; create one with probex index") from None
    about = about if isinstance(about, dict) else {}
    version = about.get("version")
    if about.get("format") != FORMAT or version not in (UNCHECKED, VERSION):
        raise ProbexError(damage(file, f"index of version {version!r}, expected {VERSION}"))
    if (version == VERSION and not is_sealed(about)) or not is_complete(about):
        raise ProbexError(damage(file))
    return about


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
