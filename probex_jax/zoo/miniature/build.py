"""Builds the miniature zoo: every tree's root, then its fine-tuned models."""

import collections
import csv
import dataclasses
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from probex_jax.bucket_paths import on_a_disk
from probex_jax.claims import check_same
from probex_jax.errors import ProbexError
from probex_jax.files import one_writer, read_json, write_json, write_text
from probex_jax.zoo.miniature import hf_files
from probex_jax.zoo.miniature.kinds import TREES, Kind, Train
from probex_jax.zoo.miniature.planted import PLANTED, Planted
from probex_jax.zoo.miniature.recipes import Recipe
from probex_jax.zoo.miniature.settings import Settings, generator

_KINDS = TREES | PLANTED


@dataclasses.dataclass(frozen=True)
class TreeSummary:
    """What there is of one tree after building.

    Attributes:
      tree: its name.
      models: number of models by split.
      measure: what tells how well models have learnt, on held-back images of their own classes:
        "accuracy", or "loss_ratio", the loss divided by the root's; or of planted ones the
        "strength" of their classes.
      score: mean over models of that.
      seconds: time that this call spent on the tree.
    """

    tree: str
    models: dict[str, int]
    measure: str
    score: float
    seconds: float


def build(
    settings: Settings | Planted,
    out: Path,
    on_progress: Callable[[int], None] = lambda models: None,
) -> list[TreeSummary]:
    """Builds the zoo, or what an interrupted build has left undone.

    Writes `out/<tree>/` with `zoo.json`, `root/` and a folder a model in `train/`, `val/` and
    `test/`, and of held-out concepts in `val_holdout/` and `test_holdout/`; last, `labels.csv`
    with how each was trained and what it scores, as far as models differ in that. Models appear
    whole or not at all; those that are there are not built again, those that have lost their
    weights are.

    Args:
      settings: what to build.
      out: folder to build in; created if missing.
      on_progress: called with the number of models that have just been finished, or found.

    Returns:
      A summary per tree, in the order of `settings.trees`.

    Raises:
      ProbexError: `out` holds a zoo that was made with other settings, or is being written.
    """
    with one_writer(on_a_disk(out)):
        for name in settings.trees:
            _claim(settings, name, out / name)
        return [_build_tree(settings, name, out / name, on_progress) for name in settings.trees]


def count(settings: Settings | Planted) -> int:
    """Number of models of the zoo.

    Args:
      settings: of the zoo.

    Returns:
      That of all its trees together.
    """
    return sum(len(_KINDS[name].recipes(settings, name)) for name in settings.trees)


def _claim(settings: Settings | Planted, name: str, folder: Path) -> None:
    """Writes the tree's zoo.json, or checks that an existing one is the same."""
    card = _card(settings, name)
    path = folder / "zoo.json"
    if path.exists():
        try:
            found = read_json(path)["settings"]
        except (ProbexError, KeyError, TypeError):
            raise ProbexError(f"{path}: not a description of a miniature zoo") from None
        check_same(folder, found, card["settings"])
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, card)


def _card(settings: Settings | Planted, name: str) -> dict[str, Any]:
    card = {
        "tree": name,
        "root": "root",
        "seed": settings.seed,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        **_KINDS[name].card(settings, name),
    }
    return json.loads(json.dumps(card))  # as it will be read back: tuples are lists


def _build_tree(
    settings: Settings | Planted, name: str, folder: Path, on_progress: Callable[[int], None]
) -> TreeSummary:
    start = time.monotonic()
    for torn in folder.glob(".partial-*"):  # of a build that was killed
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    kind = _KINDS[name]
    wanted = kind.recipes(settings, name)
    missing = [recipe for recipe in wanted if len(_weights(kind, folder, recipe)) != 1]
    on_progress(len(wanted) - len(missing))
    if missing:
        train = kind.trainer(settings, _root(settings, name, folder))
        for finished in _train_all(settings, kind, train, wanted, missing, folder):
            on_progress(finished)
    scores = [_recorded_score(kind, folder, recipe) for recipe in wanted]
    _write_labels(kind, folder, wanted, scores)
    return TreeSummary(
        tree=name,
        models=dict(collections.Counter(recipe.split for recipe in wanted)),
        measure=kind.measure,
        score=float(np.mean(scores)),
        seconds=time.monotonic() - start,
    )


def _write_labels(
    kind: Kind, folder: Path, recipes: Sequence[Recipe], scores: Sequence[float]
) -> None:
    """Writes `labels.csv`, unless no model has attributes."""
    rows = [kind.attributes(recipe) for recipe in recipes]
    if not rows[0]:
        return
    columns = [name for name in rows[0] if len({row[name] for row in rows}) > 1]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", *columns, kind.measure])
    for recipe, row, score in zip(recipes, rows, scores, strict=True):
        name = kind.folder_name(folder.name, recipe.index)
        table.writerow([name, *(row[column] for column in columns), score])
    write_text(folder / "labels.csv", text.getvalue())


def _root(settings: Settings | Planted, name: str, folder: Path) -> dict[str, Any]:
    """The tree's pre-trained root, from disk if it is there."""
    path = folder / "root" / "model.safetensors"
    if not path.exists():
        seed = int(generator(settings, name, 2).integers(2**31))
        hf_files.write(folder, path.parent, _KINDS[name].root(settings, seed))
    return hf_files.load(path)


def _train_all(
    settings: Settings | Planted,
    kind: Kind,
    train: Train,
    wanted: Sequence[Recipe],
    missing: Sequence[Recipe],
    folder: Path,
) -> Iterator[int]:
    """Trains and writes the missing models; yields how many have been finished.

    Models are batched by their number of steps, as none should wait for others, and always in
    the same way, so that a resumed build runs the batches of an uninterrupted one.
    """
    size = kind.models_at_once(settings)
    in_order = sorted(wanted, key=lambda recipe: (recipe.steps, recipe.index))
    batches = [in_order[start : start + size] for start in range(0, len(in_order), size)]
    todo = set(missing)

    def run(batch: list[Recipe]) -> int:
        padded = batch + [batch[-1]] * (size - len(batch))
        tensors, scores = train(padded)
        mine = [place for place, recipe in enumerate(batch) if recipe in todo]
        for place in mine:
            own = {name: value[place] for name, value in tensors.items()}
            own_scores = {name: float(value[place]) for name, value in scores.items()}
            files = kind.files(settings, batch[place], own, own_scores)
            hf_files.write(folder, _folder(kind, folder, batch[place]), files)
        return len(mine)

    first, *others = [batch for batch in batches if todo.intersection(batch)]
    yield run(first)  # compiles, once for all
    # One batch per core: XLA does not keep several cores busy with matrices this small.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(run, batch) for batch in others]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _folder(kind: Kind, tree_folder: Path, recipe: Recipe) -> Path:
    return tree_folder / recipe.split / kind.folder_name(tree_folder.name, recipe.index)


def _weights(kind: Kind, tree_folder: Path, recipe: Recipe) -> list[Path]:
    """The model's weight file, in a list; empty if the model is missing or damaged."""
    return list(_folder(kind, tree_folder, recipe).glob(kind.weights))


def _recorded_score(kind: Kind, tree_folder: Path, recipe: Recipe) -> float:
    [path] = _weights(kind, tree_folder, recipe)
    with safe_open(path, framework="numpy") as file:
        return float(file.metadata()[kind.measure])
