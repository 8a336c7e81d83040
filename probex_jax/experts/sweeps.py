"""One expert per layer of a tree, the best chosen on validation, tested once; resumable.

A work directory holds

    config.json                 what is trained, and the hash of the store
    layers/<layer>/training/    the state of a layer that is being trained
    layers/<layer>/expert/      the finished expert of a layer, validation metrics on its card
    expert/                     the chosen expert or committee, test metrics on its card
    metrics.json                the table of layers, the choice, its test accuracy

Where a store has held-out classes, an expert aligned with text is kept as it was best on models of
seen classes (`expert`, on `val`), and as it was best on held-out ones (`expert_val_holdout`).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.alignment import Alignment, Candidates, ZeroShot, zero_shot
from probex_jax.experts.centring import FrozenLayer, Tree, centre_rank, normalised, tree_variables
from probex_jax.experts.committee import best_committee
from probex_jax.experts.committee import committee as committee_of
from probex_jax.experts.evaluation import HOLDOUT, answers, calibrated_by, score
from probex_jax.experts.expert import Expert, versions
from probex_jax.experts.metrics import Score
from probex_jax.experts.network import build_network
from probex_jax.experts.objective import Split, logits, right
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.ridge import Ridge, check_fitted, fit_ridge
from probex_jax.experts.saving import Saver
from probex_jax.experts.stopping import Stop
from probex_jax.experts.training import fit
from probex_jax.files import claim, layer_folder, write_json
from probex_jax.layer_store import LayerStore


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Args:
      layers: layer to validation accuracy.
      expert: the best one, or the committee of the best ones.
      test: its accuracy on the test split.
      zero_shot: of an expert aligned with text, its accuracy on held-out classes, if there are any.
      metrics: all of it, as written to metrics.json.
    """

    layers: Mapping[str, float]
    expert: Expert
    test: Score
    zero_shot: ZeroShot | None
    metrics: Mapping[str, Any]


def sweep(
    store: LayerStore,
    workdir: Path,
    *,
    encoder: Mapping[str, Any],
    head: str,
    recipe: Recipe | Ridge,
    alignment: Alignment | None = None,
    normalise: str = "none",
    committee: int = 1,
    layers: Sequence[str] | None = None,
    save_every_s: float = 10.0,
    stop: Stop | None = None,
    on_progress: Callable[[str, int], None] = lambda layer, epochs: None,
) -> SweepResult:
    """Trains one expert per layer; finished layers are kept, an interrupted one goes on.

    Args:
      store: the tree's matrices and labels.
      workdir: where everything goes; must be new, or of the same settings and store.
      encoder, head: settings, as `build_network` takes them.
      recipe: how each expert is trained; `Ridge` for a dense one in closed form.
      alignment: of the head "text", what it is aligned with.
      normalise: "centre" to subtract from all matrices the mean of the training ones, and to divide
        by the standard deviation of what is left of these, which the expert keeps; "scale" to
        divide alone; "none" to take them as they are.
      committee: the most layers whose experts answer together; how many do is chosen on validation
        (`best_committee`). 1 for the best layer alone.
      layers: which layers; None for all of the store.
      save_every_s: a layer's training is saved at the first evaluation so many seconds after the
        last save; 0 saves at each.
      stop: whoever is told that the process must end has it save the last evaluation.
      on_progress: called with a layer's name and the number of epochs done since the last call.

    Returns:
      Validation accuracy by layer, the best expert, and its accuracy on the test split. Layers that
      are normalised and the same in all training models are left out, with the reason in `metrics`.

    Raises:
      ProbexError: if a setting is wrong, a split is empty, the texts do not tell the classes apart
        (`Alignment.candidates`), all layers are frozen, the work directory belongs to another
        config, or a checkpoint is damaged.
    """
    names = tuple(layers if layers is not None else store.layers)
    settings = _settings(store, encoder, head, recipe, alignment, normalise)
    if type(committee) is not int or committee < 1:
        raise ProbexError(f"committee: {committee!r} is not a whole number >= 1")
    if not names:
        raise ProbexError("layers: none given; expected one or more")
    if type(save_every_s) not in (int, float) or not save_every_s >= 0:
        raise ProbexError(f"save_every_s: {save_every_s!r} is not a number of seconds >= 0")
    candidates = None if alignment is None else alignment.candidates(store)
    claim(workdir, settings | {"layers": list(names), "committee": committee})
    if (workdir / "metrics.json").exists():
        for name in names:
            on_progress(name, recipe.epochs)
        return _result(workdir)
    left_out = {}
    for name in names:
        card = settings | {
            "layer": name,
            "shape": list(store.layers[name]),
            "classes": list(store.classes if alignment is None else store.seen_classes),
            "n_train": len(store.split("train")),
            "versions": versions(),
        }
        on_epochs = partial(on_progress, name)
        folder = layer_folder(workdir / "layers", name)
        try:
            saver = Saver(folder / "training", save_every_s, on_epochs)
            with (stop or Stop()).saves(saver.save):
                _finish(store, candidates, card, recipe, folder, saver, on_epochs)
        except FrozenLayer as error:
            left_out[name] = str(error)
            on_epochs(recipe.epochs)
    if len(left_out) == len(names):
        raise ProbexError(f"no layer to train on; the first: {next(iter(left_out.values()))}")
    names = tuple(name for name in names if name not in left_out)
    _choose(store, workdir, names, candidates, committee, left_out)
    return _result(workdir)


def _settings(
    store: LayerStore,
    encoder: Mapping[str, Any],
    head: str,
    recipe: Recipe | Ridge,
    alignment: Alignment | None,
    normalise: str,
) -> dict[str, Any]:
    """All that the experts of a sweep depend on, checked, as their cards say it."""
    if (head == "text") != (alignment is not None):
        raise ProbexError('head: "text" and settings of the text belong together')
    logit_scale = 1.0 if alignment is None else alignment.logit_scale
    n_classes = len(store.classes)
    network = build_network(encoder, head, n_classes, logit_scale=logit_scale, normalise=normalise)
    if isinstance(recipe, Ridge):
        check_fitted(network)
    for split in ("train", "val", "test"):
        store.split(split)
    return {
        "encoder": dict(encoder),
        "head": head,
        "normalise": normalise,
        "recipe": dataclasses.asdict(recipe),
        "tree": store.tree,
        "store_hash": store.hash,
        **({} if alignment is None else {"text": alignment.card(store)}),
    }


def _split(store: LayerStore, layer: str, candidates: Candidates | None, name: str) -> Split:
    """What is trained or evaluated on, in host memory."""
    if candidates is None:
        return Split(store.matrices(layer, name), store.targets(name))  # type: ignore[arg-type]
    return candidates.split(layer, name)


def _finish(
    store: LayerStore,
    candidates: Candidates | None,
    card: Mapping[str, Any],
    recipe: Recipe | Ridge,
    folder: Path,
    saver: Saver,
    on_epochs: Callable[[int], None],
) -> None:
    """Trains the expert of one layer to its end, from where it was, and keeps it in its folder."""
    if (folder / "expert").exists():
        on_epochs(recipe.epochs)
    else:
        if isinstance(recipe, Ridge):
            experts = {"val": _solve(store, card, recipe)}
            on_epochs(recipe.epochs)
        else:
            experts = _train(store, candidates, card, recipe, saver)
        # The layer counts as finished once its `expert` is there.
        if "val_holdout" in experts:
            experts["val_holdout"].save(folder / HOLDOUT)
        experts["val"].save(folder / "expert")
    checkpoints.remove(folder / "training")


def _train(
    store: LayerStore,
    candidates: Candidates | None,
    card: Mapping[str, Any],
    recipe: Recipe,
    saver: Saver,
) -> dict[str, Expert]:
    """Trains on one layer; returns the expert that was best on each split that was evaluated."""
    layer = card["layer"]
    tree = tree_variables(store, layer, card["normalise"])
    names = ["train", "val"]
    if candidates is not None and store.has("val_holdout"):
        names.append("val_holdout")
    splits = {name: _split(store, layer, candidates, name) for name in names}
    # In host memory, and once; the network that is trained reads what is normalised already.
    splits = {name: split._replace(x=normalised(split.x, tree)) for name, split in splits.items()}
    splits = jax.device_put(splits)
    logit_scale = card["text"]["logit_scale"] if "text" in card else 1.0
    network = build_network(
        card["encoder"], card["head"], len(card["classes"]), logit_scale=logit_scale
    )
    train = splits["train"]
    evaluated = {name: split for name, split in splits.items() if name != "train"}
    new = jax.eval_shape(lambda: initial_state(network, recipe, train, tuple(evaluated)))
    state = saver.restore(new)
    state = fit(network, recipe, train, **evaluated, state=state, on_evaluation=saver)
    figures = {
        f"{name}_{what}": value
        for name, best in state.best.items()
        for what, value in (
            ("accuracy", float(best.accuracy)),
            ("best_epoch", int(best.epoch)),
            ("accuracies", np.asarray(best.accuracy_E).tolist()),
        )
    }
    metrics = {**figures, "losses": np.asarray(state.loss_E).tolist()}
    return {
        name: _expert(best.params, tree, {**card, "selected_on": name, "metrics": metrics})
        for name, best in state.best.items()
    }


def _solve(store: LayerStore, card: Mapping[str, Any], recipe: Ridge) -> Expert:
    """Fits an expert on one layer in closed form."""
    layer = card["layer"]
    tree = tree_variables(store, layer, card["normalise"])
    train, val = (
        split._replace(x=jax.device_put(normalised(split.x, tree)))
        for split in (_split(store, layer, None, name) for name in ("train", "val"))
    )
    network = build_network(card["encoder"], card["head"], len(card["classes"]))
    try:
        found = fit_ridge(network, recipe, train, val)
    except ProbexError as error:
        raise ProbexError(f"{store.path}: {layer}: {error}") from None
    told = right(logits(network, {"params": found.params}, val.x), val.y)
    metrics = {
        "val_accuracy": float(jnp.mean(told)),
        "val_loss": found.loss,
        "penalty": found.penalty,
        "factor": found.factor,
    }
    return _expert(found.params, tree, {**card, "selected_on": "val", "metrics": metrics})


def _expert(params: Any, tree: Tree, card: Mapping[str, Any]) -> Expert:
    variables = {"params": params, "tree": dict(tree)} if tree else {"params": params}
    return Expert(variables, {**card, "centre_rank": centre_rank(tree)})


def _choose(
    store: LayerStore,
    workdir: Path,
    names: Sequence[str],
    candidates: Candidates | None,
    most: int,
    left_out: Mapping[str, str],
) -> None:
    """The best experts on validation; only their committee is tested, and only once.

    What was best on models of held-out classes is chosen among these, too, the candidates being all
    classes; the models tested are others.
    """
    folders = {name: layer_folder(workdir / "layers", name) for name in names}
    paths = {name: folder / "expert" for name, folder in folders.items()}
    splits = {name: partial(_split, store, name, candidates, "val") for name in names}
    expert, by_layer = _best(paths, splits, most)
    kept = {"expert": expert}
    paths = {name: folder / HOLDOUT for name, folder in folders.items()}
    if candidates is not None and all(path.exists() for path in paths.values()):
        splits = {name: partial(candidates.among_all, name, "val_holdout") for name in names}
        kept[HOLDOUT], _ = _best(paths, splits, most)
    encoder = None if candidates is None else candidates.encoder
    found = answers(kept["expert"], store, ("val", "test"), encoder)
    kept["expert"] = calibrated_by(kept["expert"], found)
    tested = {"test_accuracy": dataclasses.asdict(score(found["test"]))}
    if candidates is not None and store.has("test_holdout"):
        unseen = zero_shot(kept.get(HOLDOUT, kept["expert"]), store, encoder=encoder)
        tested["zero_shot"] = dataclasses.asdict(unseen)
    # The folder `expert` last: what it says of the other is there by then.
    for name, expert in reversed(kept.items()):
        metrics = expert.card["metrics"] | tested
        Expert(expert.variables, {**expert.card, "metrics": metrics}).save(workdir / name)
    card = kept["expert"].card
    card = {**card, **card["members"][0]} if "members" in card else card
    on_card = ("tree", "encoder", "head", "normalise", "recipe", "store_hash", "versions", "layer")
    metrics = {
        **{key: card[key] for key in on_card},
        "layers": {name: list(expert.layers) for name, expert in kept.items()},
        "n_models": {s: len(store.split(s)) for s in sorted({m.split for m in store.models})},
        "val_accuracy_by_layer": by_layer,
        "left_out": dict(left_out),
        "committee_accuracy": kept["expert"].card["metrics"]["committee_accuracy"],
        "calibration": kept["expert"].card["calibration"],
        **tested,
    }
    write_json(workdir / "metrics.json", metrics)


def _best(
    paths: Mapping[str, Path], splits: Mapping[str, Callable[[], Split]], most: int
) -> tuple[Expert, dict[str, float]]:
    """The committee that answers best for validation models, and what `val` says of each layer.

    Experts and models are given by layer, and are in memory one layer after the other.
    """
    answers, accuracies = {}, {}
    for name, path in paths.items():
        split, expert = splits[name](), Expert.load(path)
        answers[name] = np.asarray(expert.logits(split.x, split.texts))
        accuracies[name] = expert.card["metrics"]["val_accuracy"]
    chosen = best_committee(answers, np.asarray(split.y), most)
    together_NY = np.mean([answers[name] for name in chosen], axis=0)
    figures = {"committee_accuracy": float(np.mean(right(together_NY, split.y)))}
    expert = committee_of([Expert.load(paths[name]) for name in chosen])
    metrics = expert.card.get("metrics", {}) | figures
    return Expert(expert.variables, {**expert.card, "metrics": metrics}), accuracies


def _result(workdir: Path) -> SweepResult:
    """What a finished sweep found."""
    path = workdir / "metrics.json"
    try:
        metrics = json.loads(path.read_text())
        found = metrics.get("zero_shot")
        return SweepResult(
            layers=metrics["val_accuracy_by_layer"],
            expert=Expert.load(workdir),
            test=Score(**metrics["test_accuracy"]),
            zero_shot=None if found is None else ZeroShot.from_json(found),
            metrics=metrics,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbexError(f"{path}: damaged ({error}); remove it to choose anew") from error
