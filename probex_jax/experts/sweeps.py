"""One expert per layer of a tree, the best chosen on validation, tested once; resumable.

A work directory holds

    config.json                 what is trained, and the hash of the store
    layers/<layer>/training/    the state of a layer that is being trained
    layers/<layer>/expert/      the finished expert of a layer, validation metrics on its card
    expert/                     the chosen expert, test metrics on its card
    metrics.json                the table of layers, the choice, its test accuracy
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.expert import Expert, versions
from probex_jax.experts.metrics import Score, accuracy
from probex_jax.experts.network import build_network
from probex_jax.experts.training import Recipe, Split, State, fit, initial_state
from probex_jax.files import claim, layer_folder, write_json
from probex_jax.layer_store import LayerStore


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Args:
      layers: layer to validation accuracy.
      expert: the best one.
      test: its accuracy on the test split.
      metrics: all of it, as written to metrics.json.
    """

    layers: Mapping[str, float]
    expert: Expert
    test: Score
    metrics: Mapping[str, Any]


def sweep(
    store: LayerStore,
    workdir: Path,
    *,
    encoder: Mapping[str, Any],
    head: str,
    recipe: Recipe,
    layers: Sequence[str] | None = None,
    save_every_s: float = 10.0,
    on_progress: Callable[[str, int], None] = lambda layer, epochs: None,
) -> SweepResult:
    """Trains one expert per layer; finished layers are kept, an interrupted one goes on.

    Args:
      store: the tree's matrices and labels.
      workdir: where everything goes; must be new, or of the same settings and store.
      encoder, head: settings, as `build_network` takes them.
      recipe: how each expert is trained.
      layers: which layers; None for all of the store.
      save_every_s: a layer's training is saved at the first evaluation so many seconds after the
        last save; 0 saves at each.
      on_progress: called with a layer's name and the number of epochs done since the last call.

    Returns:
      Validation accuracy by layer, the best expert, and its accuracy on the test split.

    Raises:
      ProbexError: if a setting is wrong, a split is empty, the work directory belongs to another
        config, or a checkpoint is damaged.
    """
    names = tuple(layers if layers is not None else store.layers)
    if not names:
        raise ProbexError("layers: none given; expected one or more")
    if type(save_every_s) not in (int, float) or not save_every_s >= 0:
        raise ProbexError(f"save_every_s: {save_every_s!r} is not a number of seconds >= 0")
    build_network(encoder, head, len(store.classes))
    for split in ("train", "val", "test"):
        store.split(split)
    settings = {
        "encoder": dict(encoder),
        "head": head,
        "recipe": dataclasses.asdict(recipe),
        "tree": store.tree,
        "store_hash": store.hash,
    }
    claim(workdir, settings | {"layers": list(names)})
    accuracies = {}
    for name in names:
        folder = layer_folder(workdir / "layers", name)
        if (folder / "expert").exists():
            on_progress(name, recipe.epochs)
        else:
            card = settings | {
                "layer": name,
                "shape": list(store.layers[name]),
                "classes": list(store.classes),
                "versions": versions(),
            }
            saver = _Saver(folder / "training", save_every_s, partial(on_progress, name))
            _train(store, card, recipe, saver).save(folder / "expert")
        checkpoints.remove(folder / "training")
        accuracies[name] = Expert.load(folder / "expert").card["metrics"]["val_accuracy"]
    return _choose(store, workdir, accuracies)


def evaluate(expert: Expert, store: LayerStore, split: str = "test") -> tuple[Score, np.ndarray]:
    """Accuracy of an expert on a split of a store.

    Args:
      expert: the expert.
      store: matrices and labels of models of its tree.
      split: "train", "val" or "test".

    Returns:
      The accuracy, and the logits [N, Y] of the models in the order of the split.

    Raises:
      ProbexError: if the store is of another tree or has other classes than the expert, no such
        layer, or no such split.
    """
    expert.check_fits(store.tree, store.classes)
    logits = np.asarray(expert.logits(store.matrices(expert.card["layer"], split)))
    return accuracy(logits, store.targets(split)), logits


def _on_device(store: LayerStore, layer: str, split: str) -> Split:
    return Split(*jax.device_put((store.matrices(layer, split), store.targets(split))))


def _train(store: LayerStore, card: Mapping[str, Any], recipe: Recipe, saver: "_Saver") -> Expert:
    train, val = (_on_device(store, card["layer"], split) for split in ("train", "val"))
    network = build_network(card["encoder"], card["head"], len(card["classes"]))
    state = saver.restore(jax.eval_shape(lambda: initial_state(network, recipe, train.x)))
    state = fit(network, recipe, train, val, state=state, on_evaluation=saver)
    metrics = {
        "val_accuracy": float(state.best_accuracy),
        "best_epoch": int(state.best_epoch),
        "val_accuracies": np.asarray(state.accuracy_E).tolist(),
        "losses": np.asarray(state.loss_E).tolist(),
    }
    return Expert({"params": state.best_params}, {**card, "metrics": metrics})


def _choose(store: LayerStore, workdir: Path, accuracies: Mapping[str, float]) -> SweepResult:
    """The best expert on validation; only that one is tested, and only once."""
    best = max(accuracies, key=lambda name: accuracies[name])
    path = workdir / "metrics.json"
    if not path.exists():
        expert = Expert.load(layer_folder(workdir / "layers", best) / "expert")
        test = dataclasses.asdict(evaluate(expert, store, "test")[0])
        figures = {**expert.card["metrics"], "test_accuracy": test}
        Expert(expert.variables, {**expert.card, "metrics": figures}).save(workdir / "expert")
        kept = ("tree", "encoder", "recipe", "store_hash", "versions", "layer")
        metrics = {
            **{key: expert.card[key] for key in kept},
            "n_models": {s: len(store.split(s)) for s in ("train", "val", "test")},
            "val_accuracy_by_layer": accuracies,
            "test_accuracy": test,
        }
        write_json(path, metrics)
    metrics = json.loads(path.read_text())
    return SweepResult(accuracies, Expert.load(workdir), Score(**metrics["test_accuracy"]), metrics)


class _Saver:
    """Keeps the state of a training on disk, and reports its progress."""

    def __init__(self, folder: Path, every_s: float, on_epochs: Callable[[int], None]):
        self._folder = folder
        self._every_s = every_s
        self._on_epochs = on_epochs
        self._saved_at = time.monotonic()
        self._epoch = 0

    def restore(self, template: State) -> State | None:
        """The state saved last, or None."""
        saved = sorted(path for path in self._folder.glob("*") if path.name.isdigit())
        if not saved:
            return None
        try:
            arrays, _ = checkpoints.load(saved[-1])
        except ProbexError as error:
            raise ProbexError(f"{error}; remove {self._folder} to train this layer anew") from error
        state = serialization.from_state_dict(template, arrays)
        self._on_epochs(int(state.epoch))
        self._epoch = int(state.epoch)
        return state

    def __call__(self, state: State) -> None:
        self._on_epochs(int(state.epoch) - self._epoch)
        self._epoch = int(state.epoch)
        if time.monotonic() - self._saved_at < self._every_s:
            return
        previous = list(self._folder.glob("*"))
        path = self._folder / f"{self._epoch:08d}"
        checkpoints.save(path, serialization.to_state_dict(state), card={})
        for old in previous:
            if old != path:
                checkpoints.remove(old)
        self._saved_at = time.monotonic()
