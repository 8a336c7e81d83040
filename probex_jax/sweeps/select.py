"""The end of a sweep: the best experts on validation together, tested once."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.alignment import ZeroShot, with_seen_offset, zero_shot
from probex_jax.experts.chance import chance
from probex_jax.experts.committee import best_committee, committee
from probex_jax.experts.evaluation import (
    HOLDOUT,
    Answers,
    answers,
    calibrated_by,
    coverage,
    is_told,
    score,
)
from probex_jax.experts.expert import Expert
from probex_jax.experts.predictions import Predictions, stored_logits
from probex_jax.experts.tags import with_tag_cut
from probex_jax.files import read_json, write_json
from probex_jax.fitting import Score, Split
from probex_jax.fitting.recipe import VARIED
from probex_jax.integrity import sealed, unsealed
from probex_jax.layer_store import LayerStore
from probex_jax.prefetch import prefetch
from probex_jax.sweeps.source import Source

# Layers whose experts are read and asked at a time: one is compiled while the other is read.
_AT_A_TIME = 2


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Args:
      workdir: where it is.
      encoders: encoders by name that are not ours.
      layers: layer to its accuracy alone, on the models that chose.
      test: the accuracy of `expert` on the test split; None of a joint expert.
      zero_shot: of an expert aligned with text, its accuracy on held-out classes, if there are any.
      metrics: all of it, as written to metrics.json.
      attributes: of a joint expert, attribute to its accuracy (of a number R²) on the test split.
    """

    workdir: Path
    encoders: Mapping[str, type[nn.Module]]
    layers: Mapping[str, float]
    test: Score | None
    zero_shot: ZeroShot | None
    metrics: Mapping[str, Any]
    attributes: Mapping[str, Score] = field(default_factory=dict)

    @cached_property
    def expert(self) -> Expert:
        """The best one, or those that answer together; loaded when it is asked for.

        Raises:
          ProbexError: if it is damaged.
        """
        return Expert.load(self.workdir, self.encoders)


def select(
    source: Source,
    workdir: Path,
    folders: Mapping[str, Sequence[Path]],
    most: int,
    left_out: Mapping[str, str],
) -> None:
    """The best experts on validation; only their committee is tested, and only once.

    What was best on models of held-out classes is chosen among these, too, the candidates being all
    classes; the models tested are others.

    Args:
      source: the tree's models.
      workdir: where the result goes.
      folders: layer to the folders of its experts, one for each variant of the recipe.
      most: the most layers of a committee.
      left_out: layer to the reason why no expert was trained on it.
    """
    store, candidates, task = source.store, source.candidates, source.task
    found_best, by_variant = best_variants(folders, "expert", "val_accuracy", source.encoders)
    expert, by_layer, paths = _best(found_best, source, "val", source.targets("val"), most)
    kept = {"expert": expert}
    if candidates is not None and _all_have(HOLDOUT, folders):
        metric, encoders = "val_holdout_accuracy", source.encoders
        held_out, _ = best_variants(folders, HOLDOUT, metric, encoders)
        among_all = candidates.among_all("val_holdout")
        kept[HOLDOUT], _, others = _best(held_out, source, "val_holdout", among_all, most)
        paths += others
    encoder = None if candidates is None else candidates.encoder
    found = answers(kept["expert"], store, ("val", "test"), encoder)
    of_layers = {
        "val_accuracy_by_layer": by_layer,
        "val_chance": chance(task, store, "val", expert.card.classes),
        **({"variants": by_variant} if by_variant else {}),
    }
    finish(source, workdir, kept, found, "val", of_layers, left_out)
    for path in paths:  # what was kept holds them
        checkpoints.remove(path)


def finish(
    source: Source,
    workdir: Path,
    kept: Mapping[str, Expert],
    found: Mapping[str, Answers],
    chosen_by: str,
    of_layers: Mapping[str, Any],
    left_out: Mapping[str, str],
) -> None:
    """Calibrates what was chosen, tests it, and writes all that there is to say of it.

    Args:
      source, workdir, left_out: as `select` takes them.
      kept: "expert" and, where there are two, `HOLDOUT`: their folder to the expert.
      found: the expert's answers, for "test" and for the models that the choice was made by.
      chosen_by: the name of these.
      of_layers: figures by layer, for these.
    """
    store, candidates, task = source.store, source.candidates, source.task
    kept = {**kept, "expert": calibrated_by(kept["expert"], found, chosen_by)}
    if candidates is None:
        told = is_told(task, found[chosen_by], source.targets("train").y)
        kept["expert"] = kept["expert"].with_card(told=told)
    encoder = None if candidates is None else candidates.encoder
    if candidates is not None and store.has("val") and store.has("val_holdout"):
        kept = {name: with_seen_offset(each, candidates) for name, each in kept.items()}
    if candidates is not None and kept["expert"].text.tags is not None:
        kept = {name: with_tag_cut(each, store, encoder) for name, each in kept.items()}
    represented_by, card = kept.get(HOLDOUT, kept["expert"]), kept["expert"].card
    predictions = Predictions.of(store, card.classes, task, found["test"], represented_by)
    predictions.believed(card).write(workdir)
    tested = figures_on_test(kept["expert"], store, found["test"])
    if candidates is not None and store.has("test_holdout"):
        unseen = zero_shot(represented_by, store, encoder=encoder)
        tested["zero_shot"] = dataclasses.asdict(unseen)
    # The folder `expert` last: what it says of the other is there by then.
    for name, expert in reversed(kept.items()):
        figures = {n: value for n, value in of_layers.items() if n != "variants"}
        metrics = {**expert.card.figures, **tested, **figures}
        expert.with_card(metrics=metrics).save(workdir / name)
    first = card.members[0]
    metrics = {
        "tree": card.tree,
        "encoder": first.encoder,
        "head": card.head,
        "task": task.name,
        "selected_on": card.selected_on,
        "normalise": first.normalise,
        "recipe": first.recipe,
        "store_hash": card.store_hash,
        "versions": card.versions,
        "layer": first.layer,
        "layers": {name: list(expert.layers) for name, expert in kept.items()},
        "n_models": {s: len(store.split(s)) for s in sorted({m.split for m in store.models})},
        **of_layers,
        "left_out": dict(left_out),
        "committee_accuracy": card.figures["committee_accuracy"],
        "calibration": card.to_json()["calibration"],
        "told": card.told,
        **tested,
    }
    write_json(workdir / "metrics.json", sealed(metrics))


def figures_on_test(expert: Expert, store: LayerStore, found: Answers) -> dict[str, Any]:
    """What metrics and cards say of an expert's answers for the test models."""
    figures = {
        "test_accuracy": score(expert, store, "test", found),
        "test_auc": expert.card.task.auc(*found),
        "test_coverage": coverage(expert, found),
    }
    return {name: dataclasses.asdict(figure) for name, figure in figures.items() if figure}


def _all_have(name: str, folders: Mapping[str, Sequence[Path]]) -> bool:
    return all(checkpoints.is_there(folder / name) for each in folders.values() for folder in each)


def best_variants(
    folders: Mapping[str, Sequence[Path]],
    name: str,
    metric: str,
    encoders: Mapping[str, type[nn.Module]],
) -> tuple[dict[str, Path], dict[str, list[dict[str, Any]]]]:
    """Of each layer the expert that is best by a figure of validation, of equal ones the first.

    Returns:
      Layer to its expert's path; and to what each variant varies, with the figure: nothing where
      there is one variant alone.
    """
    paths, tried = {}, {}
    for layer, variants in folders.items():
        paths[layer] = variants[0] / name
        if len(variants) > 1:
            cards = [Expert.load(folder / name, encoders).card for folder in variants]
            found = [card.figures[metric] for card in cards]
            paths[layer] = variants[int(np.argmax(found))] / name
            recipes = [card.members[0].recipe or {} for card in cards]
            tried[layer] = [
                {field: recipe[field] for field in VARIED} | {metric: value}
                for recipe, value in zip(recipes, found, strict=True)
            ]
    return paths, tried


def _best(
    paths: Mapping[str, Path], source: Source, split: str, asked: Split, most: int
) -> tuple[Expert, dict[str, float], list[Path]]:
    """The committee that answers best for validation models, and what `val` says of each layer.

    The paths of the committee's members come last.
    Experts and models are in memory a few layers at a time.
    """

    def answer(layer: str) -> tuple[np.ndarray, float]:
        expert = Expert.load(paths[layer], source.encoders)
        logits_NY = stored_logits(expert, source.store, split, asked.texts)
        return logits_NY, expert.card.figures["val_accuracy"]

    found = dict(prefetch(answer, paths, _AT_A_TIME))
    logits = {layer: found[layer][0] for layer in paths}
    chosen = best_committee(logits, asked.y, most, source.task)
    together_NY: Any = np.mean([logits[layer] for layer in chosen], axis=0)
    together = float(np.mean(source.task.accuracies(together_NY, asked.y)))
    expert = committee([Expert.load(paths[layer], source.encoders) for layer in chosen])
    metrics = {**expert.card.figures, "committee_accuracy": together}
    accuracies = {layer: accuracy for layer, (_, accuracy) in found.items()}
    return expert.with_card(metrics=metrics), accuracies, [paths[layer] for layer in chosen]


def result(workdir: Path, encoders: Mapping[str, type[nn.Module]]) -> SweepResult:
    """What a finished sweep found.

    Raises:
      ProbexError: if its files are damaged.
    """
    path = workdir / "metrics.json"
    try:
        metrics = unsealed(read_json(path), path)
        if "attributes" in metrics:
            each = metrics["attributes"].items()
            tested = {name: Score(**figures["test_accuracy"]) for name, figures in each}
            return SweepResult(workdir, encoders, {}, None, None, metrics, tested)
        found = metrics.get("zero_shot")
        return SweepResult(
            workdir,
            encoders,
            layers=metrics["val_accuracy_by_layer"],
            test=Score(**metrics["test_accuracy"]),
            zero_shot=None if found is None else ZeroShot.from_json(found),
            metrics=metrics,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbexError(
            f"{path}: damaged ({error}); remove it to train and choose anew"
        ) from error
