"""The results of the transfer experiment: two tables in Markdown, a figure, and all as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import figures
from experiments.benchmarks.transfer import figure, measure
from experiments.benchmarks.transfer.measure import Outcome
from probex_jax.experts import versions
from probex_jax.fitting import Score, mean_score
from probex_jax.reports import table

ByLayer = Mapping[str, Mapping[str, Mapping[str, Outcome]]]

# Table columns: setting to header.
HEADERS = {
    measure.WITHIN: "within",
    measure.TOGETHER: "all together",
    measure.ACROSS: "across",
    measure.ACROSS_CENTRED: "across, each centred",
}

HOW_TO_READ = """\
Share of (model, class) entries that are told rightly, 95 % bootstrap interval over the test models;
chance is .500. One ridge regression on the entries of one layer, less the mean of its training set
and divided by one scalar; penalty and factor are chosen on validation models of the trees that
train. *Within*: trained on the tree's own training split. *All together*: on those of all trees of
the forest. *Across*: on those of the forest's other trees; for {unseen}, which is none of the
forest's, on all of them. *Across, each centred* is a control: every tree, the tested one too, less
the mean of its own training matrices, so that it does not matter where in weight space a tree
lies."""


@dataclass(frozen=True)
class Joined:
    """One classifier of `measure.joined`.

    Args:
      tree, other: who is tested, and who joins.
      own, joining: models of each in the training set.
      seed: of the draw.
      outcome: what came of it.
    """

    tree: str
    other: str
    own: int
    joining: int
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class Found:
    """All that was measured.

    Args:
      layer: the one chosen on validation.
      by_layer: layer to setting to tree to outcome.
      joined: negative transfer on `layer`.
      hashes: of the stores, by tree; the last is the unseen tree.
      seeds: of the draws.
      seconds: it all took.
    """

    layer: str
    by_layer: ByLayer
    joined: Sequence[Joined]
    hashes: Mapping[str, str]
    seeds: Sequence[int]
    seconds: float


def write(found: Found, folder: Path) -> str:
    """Writes transfer.md, transfer.json and transfer.png; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _text(found)
    (folder / "transfer.md").write_text(text)
    (folder / "transfer.json").write_text(_as_json(found))
    chosen = found.by_layer[found.layer]
    shown = {tree: tree for tree in found.hashes}
    shown[[*shown][-1]] += "\n(not of the forest)"
    scores = {
        HEADERS[setting]: {shown[tree]: mean_score(one.right_N) for tree, one in of.items()}
        for setting, of in chosen.items()
    }
    figure.draw(scores, _curves(found), folder / "transfer.png")
    return text


def _text(found: Found) -> str:
    *forest, unseen = found.hashes
    penalties = measure.RECIPE.penalties
    stores = ",".join(f"out/stores/{tree}" for tree in forest)
    return "\n".join(
        [
            "# From tree to tree",
            "",
            "Written by",
            "",
            "    python -m experiments.benchmarks.transfer \\",
            f"      --stores={stores} \\",
            f"      --test_store=out/stores/{unseen} --draws={len(found.seeds)} --results=results",
            "",
            HOW_TO_READ.format(unseen=unseen),
            "",
            f"Layer `{found.layer}`, {_why(found)}",
            "",
            table(_accuracies(found)),
            "",
            _sizes(found),
            "",
            _other_layers(found),
            "",
            "## Models of a second tree in the training set",
            "",
            "So many models of a tree are trained on; then as many of another join as the column "
            "says. Answered and validated on the first tree alone. Column 0 is the accuracy, the "
            "others the change against it, paired, mean over the draws, with a 95 % bootstrap "
            "interval over the test models; the spread between draws is not in it.",
            "",
            table(_changes(found)),
            "",
            f"Versions: {', '.join(f'{name} {v}' for name, v in versions().items())}. Seeds of the "
            f"draws: {', '.join(map(str, found.seeds))}; all else is in closed form. Penalties "
            f"tried: {min(penalties):g} to {max(penalties):g}. Hashes of the "
            f"stores: {', '.join(f'{tree} {value[:16]}' for tree, value in found.hashes.items())}. "
            f"{found.seconds:.0f} s.",
            "",
        ]
    )


def _why(found: Found) -> str:
    score = measure.validation_within(found.by_layer[found.layer])
    return (
        f"the best of {len(found.by_layer)} attention and MLP layers by validation accuracy within "
        f"a tree, mean over the forest ({score:.4f})."
    )


def _accuracies(found: Found) -> list[dict[str, Any]]:
    """A tree a row; of the unseen one nothing is trained together with others."""
    chosen = found.by_layer[found.layer]
    rows = []
    for tree, within in chosen[measure.WITHIN].items():
        of_tree = {setting: of.get(tree) for setting, of in chosen.items()}
        row: dict[str, Any] = {"tree": tree}
        for setting, header in HEADERS.items():
            outcome = of_tree[setting]
            row[header] = str(mean_score(outcome.right_N)) if outcome else ""
            if setting == measure.TOGETHER:
                row["all together less within"] = (
                    _change(outcome.right_N - within.right_N) if outcome else ""
                )
        rows.append(row)
    return rows


def _sizes(found: Found) -> str:
    """How many models each setting trains on."""
    chosen = found.by_layer[found.layer]
    sizes = []
    for setting in (measure.WITHIN, measure.TOGETHER, measure.ACROSS):
        counts = sorted({outcome.n_train for outcome in chosen[setting].values()})
        sizes.append(f"{HEADERS[setting]} {' or '.join(map(str, counts))}")
    return f"Training models: {', '.join(sizes)}."


def _other_layers(found: Found) -> str:
    """The range of each setting over all layers, mean over the trees that have it."""
    ranges = []
    for setting, header in HEADERS.items():
        means = [
            np.mean([outcome.right_N.mean() for outcome in of[setting].values()])
            for of in found.by_layer.values()
        ]
        ranges.append(f"{header} {min(means):.3f} to {max(means):.3f}")
    return f"Layer by layer, mean over the trees in the column: {'; '.join(ranges)}."


def _changes(found: Found) -> list[dict[str, Any]]:
    """A pair of trees and a number of own models a row."""
    rows = []
    for case in dict.fromkeys((j.tree, j.other, j.own) for j in found.joined):
        by_count = _per_model(j for j in found.joined if (j.tree, j.other, j.own) == case)
        none_N = by_count.pop(0)
        row = dict(zip(("tree", "joined by", "own models"), case, strict=True))
        row |= {"0": str(mean_score(none_N))}
        rows.append(row | {f"{n}": _change(right_N - none_N) for n, right_N in by_count.items()})
    return rows


def _curves(found: Found) -> dict[tuple[str, int], dict[int, Score]]:
    """(tree, own models) to number that joined to change, mean over the draws and other trees."""
    curves = {}
    for tree, own in dict.fromkeys((j.tree, j.own) for j in found.joined):
        by_count = _per_model(j for j in found.joined if (j.tree, j.own) == (tree, own))
        curves[tree, own] = {
            n: mean_score(right_N - by_count[0]) for n, right_N in by_count.items()
        }
    return curves


def _per_model(joined: Iterable[Joined]) -> dict[int, np.ndarray]:
    """By number that joined: of each test model the share told rightly, mean over the draws."""
    by_count: dict[int, list[np.ndarray]] = {}
    for one in joined:
        by_count.setdefault(one.joining, []).append(one.outcome.right_N)
    return {count: np.mean(draws, axis=0) for count, draws in by_count.items()}


def _change(difference_N: np.ndarray) -> str:
    score = mean_score(difference_N)
    return f"{score.value:+.3f} [{score.low:+.3f}, {score.high:+.3f}]"


def _as_json(found: Found) -> str:
    """A classifier and its test on a tree a line; answers model by model for the chosen layer."""
    layers = [
        {"layer": layer, "setting": setting, "tree": tree}
        | _outcome(outcome, answers=layer == found.layer)
        for layer, of_layer in found.by_layer.items()
        for setting, of_setting in of_layer.items()
        for tree, outcome in of_setting.items()
    ]
    joined = [
        {k: v for k, v in vars(one).items() if k != "outcome"} | _outcome(one.outcome)
        for one in found.joined
    ]
    about = {
        **figures.about(),
        "layer": found.layer,
        "hashes": dict(found.hashes),
        "seeds": list(found.seeds),
        "penalties": list(measure.RECIPE.penalties),
        "seconds": found.seconds,
    }
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in about.items()]
    for key, records in (("layers", layers), ("joined", joined)):
        lines = ",\n".join(json.dumps(record) for record in records)
        parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _outcome(outcome: Outcome, *, answers: bool = False) -> dict[str, Any]:
    record = vars(outcome) | {"accuracy": asdict(mean_score(outcome.right_N))}
    right_N = record.pop("right_N")
    return record | {"right": np.round(right_N, 6).tolist()} if answers else record
