"""Checks experts whole, alone or in a folder such as the work directory of a training."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from probex_jax.bucket_paths import as_path, fetched, sizes_below
from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.card import Card
from probex_jax.experts.expert import Expert
from probex_jax.experts.predictions import EARLIER, NAME, Predictions, attribute_folder
from probex_jax.files import read_json
from probex_jax.integrity import noted, unsealed

# Names of checkpoints that are being written; they count once they are renamed.
_UNFINISHED = (".new", ".orbax-checkpoint-tmp")
# What metrics.json and config.json repeat of a card; metrics.json, of its first member, too.
_OF_CARD = ("tree", "head", "store_hash", "selected_on", "calibration", "versions")
_OF_MEMBER = ("layer", "encoder", "normalise", "recipe")


def verify_hash(path: Path, expected: str) -> Iterator[str]:
    """Checks the checkpoint of an expert whose hash is known; "" if it is not.

    Yields:
      A line for each damage.
    """
    damages = list(checkpoints.damages(path))
    if not damages:
        with noted(damages):
            arrays, card = checkpoints.load(path)
            if Expert(arrays, Card.from_json(card, path)).hash != expected and expected:
                damages.append(f"{path}: another expert than it was")
    yield from damages


def verify_experts(
    path: str | Path,
    *,
    on_total: Callable[[int], None] = lambda n: None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Iterator[str]:
    """Checks an expert, or all that a folder holds at any depth.

    That is, beside experts, the states that trainings resume from, predictions, `metrics.json`,
    `config.json` and other JSON files. What these two say of an expert is compared with its card.

    Args:
      path: an expert's checkpoint, or a folder such as the work directory of a training.
      on_total: called with the number of bytes that will be read.
      on_bytes: called with the number of bytes that were read since the last call.

    Yields:
      A line for each damage, which begins with the path of the file.

    Raises:
      ProbexError: if there is no expert and no metrics.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from probex_jax.fitting import build_network
      >>> folder = Path(tempfile.mkdtemp())
      >>> encoder = {"name": "dense"}
      >>> network = build_network(encoder, head="none", n_outputs=1)
      >>> expert = Expert(network.init(jax.random.key(0), jnp.ones([1, 6, 5])), {
      ...     "encoder": encoder, "head": "none", "layer": "fc.weight", "shape": [6, 5],
      ...     "tree": "Mini", "classes": ["one"]})
      >>> expert.save(folder / "expert")
      >>> list(verify_experts(folder))
      []
    """
    path = as_path(path)
    sizes = sizes_below(path)
    saved = {file.parent for file in sizes if file.name == checkpoints.MARK}
    saved = {folder for folder in saved if not _is_unfinished(folder.relative_to(path))}
    inside = {file: [f for f in file.parents if f in saved] for file in sizes}
    small = [file for file, folders in inside.items() if not folders and _check_of(file)]
    if checkpoints.looks_like_one(path) and path not in saved:
        return (yield f"{path / checkpoints.MARK}: missing")
    if not (saved or path / "metrics.json" in small):
        raise ProbexError(f"{path}: no expert here; probex train makes one")
    of_saved = dict.fromkeys(sorted(saved), 0)
    for file, folders in inside.items():
        for folder in folders:
            of_saved[folder] += sizes[file]
    on_total(sum(of_saved.values()) + sum(sizes[file] for file in small))

    cards: dict[Path, dict[str, Any]] = {}
    for folder, size in of_saved.items():
        damages = list(checkpoints.damages(folder))
        if not damages:
            with noted(damages):
                _, card = checkpoints.load(folder)
                if card:  # that of a training's state is empty
                    Card.from_json(card, folder)
                    cards[folder] = card
        if checkpoints.is_there(folder):  # and not removed by a training since
            yield from damages
        on_bytes(size)
    for file in small:
        damages = []
        try:
            with noted(damages):
                _check_of(file)(file)
                card = cards.get(file.parent / "expert", {})
                if file.name == "metrics.json":
                    damages += _kept(file, cards, saved)
                    damages += _differing(file, card, settings=False)
                elif file.name == "config.json":
                    damages += _differing(file, card, settings=True)
        except FileNotFoundError:  # removed by a training since
            continue
        yield from damages
        on_bytes(sizes[file])


def _is_unfinished(folder: Path) -> bool:
    return any(end in part for part in folder.parts for end in _UNFINISHED)


def _read(path: Path) -> Any:
    return unsealed(read_json(path), path)


def _check_of(file: Path) -> Any:
    """What reads a file beside experts; None for one that is not ours."""
    if file.name in (NAME, EARLIER):
        return lambda file: Predictions.read(file.parent)
    return {".json": _read, ".npz": _read_npz}.get(file.suffix)


def _read_npz(path: Path) -> None:
    """Checks the CRC-32 that NumPy's archives have of each array."""
    try:
        with fetched(path) as here, zipfile.ZipFile(here) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ProbexError(f"{path}: damaged ({error})") from error
    if damaged:
        raise ProbexError(f"{path}: damaged ({damaged})")


def _kept(path: Path, cards: Mapping[Path, dict[str, Any]], saved: set[Path]) -> Iterator[str]:
    """What metrics.json names that is not there, and experts that read other layers."""
    metrics = _read(path)
    kept = metrics.get("layers") if isinstance(metrics, dict) else None
    for name, layers in kept.items() if isinstance(kept, dict) else ():
        folder = path.parent / str(name)
        if folder not in saved:
            yield f"{folder / checkpoints.MARK}: missing; {path} names this expert"
        elif folder in cards and layers != _layers(cards[folder]):
            yield f"{path}: damaged: layers.{name} are not those on the card of {folder}"
    asked = metrics.get("attributes") if isinstance(metrics, dict) else None
    for name in asked if isinstance(asked, dict) else ():
        file = attribute_folder(path.parent, name) / NAME
        if not file.exists():
            yield f"{file}: missing; {path} names this attribute"


def _layers(card: Mapping[str, Any]) -> list[Any]:
    """The layers that an expert reads, each once, however many members read it."""
    return list(dict.fromkeys(member["layer"] for member in card.get("members", [card])))


def _differing(path: Path, card: Mapping[str, Any], *, settings: bool) -> Iterator[str]:
    """What a file says of the expert beside it and its card says otherwise."""
    said = _read(path)
    ours = {name: card[name] for name in _OF_CARD if name in card}
    if not settings:
        first = card.get("members", [card])[0]
        ours |= {name: first[name] for name in _OF_MEMBER if name in first}
        ours |= card.get("metrics") or {}
    for name in sorted(ours.keys() & said.keys()) if isinstance(said, dict) else ():
        if json.dumps(said[name], sort_keys=True) != json.dumps(ours[name], sort_keys=True):
            yield f"{path}: damaged: {name} is another on the card of {path.parent / 'expert'}"
