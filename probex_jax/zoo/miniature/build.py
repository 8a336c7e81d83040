"""Building the miniature zoo: every tree's root, then its fine-tuned models."""

import collections
import dataclasses
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

from probex_jax.errors import ProbexError
from probex_jax.files import check_same, write_json
from probex_jax.zoo.miniature import data, hf_files, pretraining
from probex_jax.zoo.miniature.finetuning import fine_tune
from probex_jax.zoo.miniature.settings import (
    TREES,
    Recipe,
    Settings,
    Tree,
    generator,
    recipes,
)

FineTune = Callable[[Sequence[Recipe]], tuple[dict[str, np.ndarray], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TreeSummary:
    """What there is of one tree after building.

    Attributes:
      tree: its name.
      models: number of models by split.
      accuracy: mean over models of the accuracy on held-back images of their own classes.
      seconds: time that this call spent on the tree.
    """

    tree: str
    models: dict[str, int]
    accuracy: float
    seconds: float


def build(
    settings: Settings, out: Path, on_progress: Callable[[int], None] = lambda models: None
) -> list[TreeSummary]:
    """Builds the zoo, or what an interrupted build has left undone.

    Writes `out/<tree>/` with `zoo.json`, `root/` and a folder a model in `train/`, `val/` and
    `test/`. Models appear whole or not at all; those that are there are not built again, those
    that have lost their weights are.

    Args:
      settings: what to build.
      out: folder to build in; created if missing.
      on_progress: called with the number of models that have just been finished, or found.

    Returns:
      A summary per tree, in the order of `settings.trees`.

    Raises:
      ProbexError: `out` holds a zoo that was made with other settings.
    """
    for name in settings.trees:
        _claim(settings, name, out / name)
    return [_build_tree(settings, name, out / name, on_progress) for name in settings.trees]


def _claim(settings: Settings, name: str, folder: Path) -> None:
    """Writes the tree's zoo.json, or checks that the one there is the same."""
    card = _card(settings, name)
    path = folder / "zoo.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())["settings"]
        except (ValueError, KeyError, TypeError):
            raise ProbexError(f"{path}: not a description of a miniature zoo") from None
        check_same(folder, found, card["settings"])
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, card)


def _card(settings: Settings, name: str) -> dict[str, Any]:
    own = dataclasses.asdict(settings)
    del own["trees"]  # a tree is the same whichever others are built beside it
    return {
        "tree": name,
        "classes": list(data.CLASSES),
        "root": "root",
        "pretraining": TREES[name].pretraining,
        "seed": settings.seed,
        "settings": json.loads(json.dumps(own)),  # as it will be read back: tuples are lists
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }


def _build_tree(
    settings: Settings, name: str, folder: Path, on_progress: Callable[[int], None]
) -> TreeSummary:
    start = time.monotonic()
    for torn in folder.glob(".partial-*"):  # of a build that was killed
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    wanted = recipes(settings, name)
    missing = [recipe for recipe in wanted if len(_weights(folder, recipe)) != 1]
    on_progress(len(wanted) - len(missing))
    if missing:
        tree = TREES[name]
        digits = data.load(tree.architecture.image_size)
        root = _root(settings, name, folder, digits)

        def tune(batch: Sequence[Recipe]) -> tuple[dict[str, np.ndarray], np.ndarray]:
            sizes = {"batch_size": settings.batch_size, "max_steps": max(settings.steps)}
            return fine_tune(tree.architecture, root, digits, batch, **sizes)

        for finished in _fine_tune_all(settings, tree, tune, wanted, missing, folder):
            on_progress(finished)
    return TreeSummary(
        tree=name,
        models=dict(collections.Counter(recipe.split for recipe in wanted)),
        accuracy=float(np.mean([_recorded_accuracy(folder, recipe) for recipe in wanted])),
        seconds=time.monotonic() - start,
    )


def _root(settings: Settings, name: str, folder: Path, digits: data.Digits) -> dict[str, Any]:
    """The tree's pre-trained root, from disk where it is there already."""
    path = folder / "root" / "model.safetensors"
    if not path.exists():
        seed = int(generator(settings, name, 2).integers(2**31))
        tree = TREES[name]
        trained = jax.device_get(pretraining.root(tree, settings, digits.pretraining, seed))
        metadata = {"seed": seed, "steps": settings.pretraining_steps, "kind": tree.pretraining}
        config = hf_files.config_json(tree.architecture, data.ROOT_CLASSES)
        hf_files.write_plain(path.parent, config, hf_files.serialise(trained, metadata))
    return hf_files.load(path)


def _fine_tune_all(
    settings: Settings,
    tree: Tree,
    tune: FineTune,
    wanted: Sequence[Recipe],
    missing: Sequence[Recipe],
    folder: Path,
) -> Iterator[int]:
    """Fine-tunes and writes the missing models; yields how many have been finished.

    Models are batched by their number of steps, as none should wait for others, and always in
    the same way, so that a resumed build runs the batches of an uninterrupted one.
    """
    in_order = sorted(wanted, key=lambda recipe: (recipe.steps, recipe.index))
    size = settings.models_at_once
    batches = [in_order[start : start + size] for start in range(0, len(in_order), size)]
    todo = set(missing)

    def run(batch: list[Recipe]) -> int:
        padded = batch + [batch[-1]] * (size - len(batch))
        tensors, accuracies = tune(padded)
        mine = [place for place, recipe in enumerate(batch) if recipe in todo]
        for place in mine:
            own = {name: value[place] for name, value in tensors.items()}
            _write(tree, folder, batch[place], own, float(accuracies[place]))
        return len(mine)

    first, *others = [batch for batch in batches if todo.intersection(batch)]
    yield run(first)  # compiles, once for all
    # One batch per core: XLA alone does not keep several busy with matrices as small as these.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(run, batch) for batch in others]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write(
    tree: Tree, folder: Path, recipe: Recipe, tensors: hf_files.Tensors, accuracy: float
) -> None:
    metadata = {
        "dataset_chosen_targets": recipe.class_names,
        "model_idx": recipe.index,
        "split": recipe.split,
        "seed": recipe.seed,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "steps": recipe.steps,
        "accuracy": accuracy,
    }
    config = hf_files.config_json(tree.architecture, recipe.class_names)
    weights = hf_files.serialise(tensors, metadata)
    hf_files.write_cached(_folder(folder, recipe), config, weights)


def _folder(folder: Path, recipe: Recipe) -> Path:
    return hf_files.model_folder(folder, recipe.split, recipe.index)


def _weights(folder: Path, recipe: Recipe) -> list[Path]:
    """The model's file of weights: one, unless the model is missing or damaged."""
    return list(_folder(folder, recipe).glob("snapshots/*/model.safetensors"))


def _recorded_accuracy(folder: Path, recipe: Recipe) -> float:
    [path] = _weights(folder, recipe)
    with safe_open(path, framework="numpy") as file:
        return float(file.metadata()["accuracy"])
