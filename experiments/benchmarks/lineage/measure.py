"""What every method says of one family, beside the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.lineage import rivals
from probex_jax.files import read_json
from probex_jax.lineage.kinship import kinship
from probex_jax.lineage.trace import trace
from probex_jax.model_files import open_model


def measured(family: Path) -> dict[str, Any]:
    """Asks every method for the parents of a family's models.

    Ours is given all models under names that say nothing; the others those that are kin, but no
    adapters and no copies.

    Args:
      family: a folder of `build_families`.

    Returns:
      As JSON values: `kind`, `name`, `truth` as in `family.json`, `edges` and `copies` of ours with
      `seconds`, the parents that each of `others` gives to children, also
      `others_without_merges` among the models, and the `p_values` of true edges by the child.
    """
    card = read_json(family / "family.json")
    truth, models = card["models"], family / "models"
    start = time.perf_counter()
    found = trace([models / name for name in truth], [*truth])
    seconds = time.perf_counter() - start
    kin = [n for n, said in truth.items() if said["kind"] not in ("LoRA", "copy", "unrelated")]
    merges = {name for name in kin if truth[name]["kind"] == "merge"}
    known = rivals.measured([models / name for name in kin])
    return {
        "kind": card["kind"],
        "name": f"{family.parent.name}/{family.name}",
        "truth": truth,
        "edges": [asdict(edge) for edge in found.edges],
        "copies": [list(group.models) for group in found.copies],
        "seconds": seconds,
        "others": _others(known, kin),
        "others_without_merges": _others(
            rivals.without(known, np.array([name in merges for name in kin])),
            [name for name in kin if name not in merges],
        ),
        "p_values": _p_values(models, truth),
    }


def _others(known: rivals.Measured, names: Sequence[str]) -> dict[str, dict[str, str]]:
    return {
        variant: {names[child]: names[parent] for child, parent in find(known).items()}
        for variants in rivals.METHODS.values()
        for variant, find in variants.items()
    }


def _p_values(models: Path, truth: Mapping[str, Any]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for child, said in truth.items():
        if said["kind"] != "LoRA":  # no model to compare with its base
            for parent in said["parents"]:
                with open_model(models / parent) as one, open_model(models / child) as other:
                    found.setdefault(child, []).append(kinship(one, other).p_value)
    return found
