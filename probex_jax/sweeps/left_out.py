"""Layers of a sweep that tell nothing, and why; kept in the work directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.files import layer_folder, read_json, write_json


def left_out(workdir: Path, layer: str) -> Path:
    """Where the reason why a layer was left out goes."""
    return layer_folder(workdir / "layers", layer) / "left_out.json"


def leave_out(workdir: Path, layer: str, reason: str) -> None:
    """Leaves a layer out."""
    path = left_out(workdir, layer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, reason)


def leave_out_dead(workdir: Path, layers: Sequence[str], died: Mapping[str, str]) -> None:
    """Leaves out layers whose processes ended, by layer the reason, if others remain.

    Raises:
      ProbexError: if none does; the next run tries them again.
    """
    if died and all(layer in died or left_out(workdir, layer).exists() for layer in layers):
        raise ProbexError(f"no layer to train on; the first: {next(iter(died.values()))}")
    for layer, reason in died.items():
        leave_out(workdir, layer, reason)


def reasons(workdir: Path, layers: Sequence[str]) -> dict[str, str]:
    """Why layers were left out, by layer.

    Raises:
      ProbexError: if all of them were.
    """
    found = {
        layer: read_json(path) for layer in layers if (path := left_out(workdir, layer)).exists()
    }
    if len(found) == len(layers):
        raise ProbexError(f"no layer to train on; the first: {next(iter(found.values()))}")
    return found
