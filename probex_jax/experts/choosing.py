"""The end of a sweep: the best experts on validation together, tested once."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts.alignment import Candidates, ZeroShot, zero_shot
from probex_jax.experts.answered import Answered
from probex_jax.experts.answering import stored_logits
from probex_jax.experts.committee import best_committee
from probex_jax.experts.committee import committee as committee_of
from probex_jax.experts.evaluation import HOLDOUT, answers, calibrated_by, chance_for, score
from probex_jax.experts.expert import Expert
from probex_jax.experts.metrics import Score
from probex_jax.experts.objective import Split, right
from probex_jax.experts.recipe import VARIED
from probex_jax.files import read_json, write_json
from probex_jax.layer_store import LayerStore
from probex_jax.prefetch import prefetch

# Layers whose experts are read and asked at a time: one is compiled while the other is read.
_AT_A_TIME = 2


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


def choose(
    store: LayerStore,
    workdir: Path,
    folders: Mapping[str, Sequence[Path]],
    candidates: Candidates | None,
    most: int,
    left_out: Mapping[str, str],
) -> None:
    """The best experts on validation; only their committee is tested, and only once.

    What was best on models of held-out classes is chosen among these, too, the candidates being all
    classes; the models tested are others.

    Args:
      store: the tree's models.
      workdir: where the result goes.
      folders: layer to the folders of its experts, one for each variant of the recipe.
      candidates: of experts aligned with text, the texts; else None.
      most: the most layers of a committee.
      left_out: layer to the reason why no expert was trained on it.
    """
    found_best, by_variant = best_variants(folders, "expert", "val_accuracy")
    targets = Split(None, store.targets("val"))  # type: ignore[arg-type]
    if candidates is not None:
        targets = candidates.targets("val")
    expert, by_layer = _best(found_best, store, "val", targets, most)
    kept = {"expert": expert}
    if candidates is not None and _all_have(HOLDOUT, folders):
        held_out, _ = best_variants(folders, HOLDOUT, "val_holdout_accuracy")
        targets = candidates.among_all("val_holdout")
        kept[HOLDOUT], _ = _best(held_out, store, "val_holdout", targets, most)
    encoder = None if candidates is None else candidates.encoder
    found = answers(kept["expert"], store, ("val", "test"), encoder)
    kept["expert"] = calibrated_by(kept["expert"], found)
    represented_by = kept.get(HOLDOUT, kept["expert"])
    classes = kept["expert"].card["classes"]
    Answered.of(store, classes, found["test"], represented_by).write(workdir)
    test = dataclasses.replace(
        score(found["test"]), chance=chance_for(kept["expert"], store, "test")
    )
    tested: dict[str, Any] = {"test_accuracy": dataclasses.asdict(test)}
    if candidates is not None and store.has("test_holdout"):
        unseen = zero_shot(represented_by, store, encoder=encoder)
        tested["zero_shot"] = dataclasses.asdict(unseen)
    of_layers = {
        "val_accuracy_by_layer": by_layer,
        "val_chance": chance_for(kept["expert"], store, "val"),
    }
    # The folder `expert` last: what it says of the other is there by then.
    for name, expert in reversed(kept.items()):
        metrics = expert.card["metrics"] | tested | of_layers
        Expert(expert.variables, {**expert.card, "metrics": metrics}).save(workdir / name)
    card = kept["expert"].card
    card = {**card, **card["members"][0]} if "members" in card else card
    on_card = ("tree", "encoder", "head", "normalise", "recipe", "store_hash", "versions", "layer")
    metrics = {
        **{key: card[key] for key in on_card},
        "layers": {name: list(expert.layers) for name, expert in kept.items()},
        "n_models": {s: len(store.split(s)) for s in sorted({m.split for m in store.models})},
        **of_layers,
        "left_out": dict(left_out),
        **({"variants": by_variant} if by_variant else {}),
        "committee_accuracy": kept["expert"].card["metrics"]["committee_accuracy"],
        "calibration": kept["expert"].card["calibration"],
        **tested,
    }
    write_json(workdir / "metrics.json", metrics)


def _all_have(name: str, folders: Mapping[str, Sequence[Path]]) -> bool:
    return all((folder / name).exists() for each in folders.values() for folder in each)


def best_variants(
    folders: Mapping[str, Sequence[Path]], name: str, metric: str
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
            cards = [Expert.load(folder / name).card for folder in variants]
            found = [card["metrics"][metric] for card in cards]
            paths[layer] = variants[int(np.argmax(found))] / name
            tried[layer] = [
                {field: card["recipe"][field] for field in VARIED} | {metric: value}
                for card, value in zip(cards, found, strict=True)
            ]
    return paths, tried


def _best(
    paths: Mapping[str, Path], store: LayerStore, split: str, targets: Split, most: int
) -> tuple[Expert, dict[str, float]]:
    """The committee that answers best for validation models, and what `val` says of each layer.

    Experts and models are in memory a few layers at a time.
    """

    def answer(layer: str) -> tuple[np.ndarray, float]:
        expert = Expert.load(paths[layer])
        logits_NY = stored_logits(expert, store, split, targets.texts)
        return logits_NY, expert.card["metrics"]["val_accuracy"]

    found = dict(prefetch(answer, paths, _AT_A_TIME))
    y: Any = np.asarray(targets.y)
    chosen = best_committee({layer: found[layer][0] for layer in paths}, y, most)
    together_NY: Any = np.mean([found[layer][0] for layer in chosen], axis=0)
    figures = {"committee_accuracy": float(np.mean(right(together_NY, y)))}
    expert = committee_of([Expert.load(paths[layer]) for layer in chosen])
    metrics = expert.card.get("metrics", {}) | figures
    accuracies = {layer: accuracy for layer, (_, accuracy) in found.items()}
    return Expert(expert.variables, {**expert.card, "metrics": metrics}), accuracies


def result(workdir: Path) -> SweepResult:
    """What a finished sweep found.

    Raises:
      ProbexError: if its files are damaged.
    """
    path = workdir / "metrics.json"
    try:
        metrics = read_json(path)
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
