"""Which figures stand in which page: the table that the test of pages and `--write` go through."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from experiments.benchmarks.accuracy.report import CHANCE
from experiments.benchmarks.results.bound import ROOT, Bound, dot, pm, span
from experiments.benchmarks.results.plan import TREES
from experiments.benchmarks.unsound import OF_FACTORS, OF_MATRICES
from probex_jax.files import write_text

Figures = Callable[[Mapping[str, Any]], Sequence[str]]

_OURS, _PUBLISHED = "ours", "MVProbe 128/128/512"
_LORAS = "MiniLoRA"
_MODELS = {"MiniSupViT": "ViTs", "MiniMAE": "ViTs", "MiniResNet": "ResNets"}
_ALL_TREES = (*TREES, _LORAS)
_NUMBERS = (
    *("learning_rate", "steps", "images", "accuracy", "loss_ratio", "weight_decay"),
    "scale",
)
_CLASSES = ("optimiser", "augmentation", "batch_size", "seed_group", "rank", "classes")


def write_all() -> Iterator[str]:
    """Writes the figures of all pages; gives the names of those that were changed."""
    for page in dict.fromkeys(bound.page for bound in BOUND):
        before = text = (ROOT / page).read_text()
        for bound in BOUND:
            if bound.page == page:
                text = bound.written(text)
        if text != before:
            write_text(ROOT / page, text)
            yield page


# accuracy.json


def _classes(tree: str, found: Mapping[str, Any]) -> Sequence[str]:
    of = {name: method["accuracy"] for name, method in found["figures"][tree]["test"].items()}
    return pm(of[_PUBLISHED]), pm(of[_OURS]), dot(of[CHANCE]["mean"], 2)


def _concepts(what: str, found: Mapping[str, Any]) -> Sequence[str]:
    of = found["figures"][_LORAS][what]
    return pm(of[_OURS]["accuracy"]), dot(of[CHANCE]["accuracy"]["mean"])


def _words(found: Mapping[str, Any]) -> Sequence[str]:
    of = found["figures"][_LORAS]
    return [pm(of[what][_OURS]["accuracy"]) for what in ("test", "held_out", "all")]


def _errors(tree: str, found: Mapping[str, Any]) -> Sequence[str]:
    """The ratio of mean errors, and the least and greatest of a zoo."""
    ratio = found["figures"][tree]["test"][_OURS]["error_ratio"]
    return dot(ratio["mean"], 2), *span(ratio["values"], 2)


def _errors_of_both(found: Mapping[str, Any]) -> Sequence[str]:
    return [_errors(tree, found)[0] for tree in ("MiniSupViT", "MiniResNet")]


# transfer.json


def _chosen(found: Mapping[str, Any], setting: str) -> list[float]:
    return [
        one["accuracy"]["value"]
        for one in found["layers"]
        if (one["layer"], one["setting"]) == (found["layer"], setting)
    ]


def _across(found: Mapping[str, Any]) -> Sequence[str]:
    means: dict[tuple[Any, ...], list[float]] = {}
    for one in found["joined"]:
        case = (one["tree"], one["other"], one["own"], one["joining"])
        means.setdefault(case, []).append(one["accuracy"]["value"])
    costs = [np.mean(means[*case[:3], 0]) - np.mean(found) for case, found in means.items()]
    return *span(_chosen(found, "within")), *span(_chosen(found, "across")), dot(float(max(costs)))


# speed/*.json


def _speed(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    """The rate of a figure, as a fraction of the limit and against PyTorch."""
    [of] = (figure for figure in found["figures"] if figure["name"] == name)
    return f"{of['value']:,.0f}", dot(of["fraction"], 2), f"{of['torch_ratio']:.1f}"


def _trained(found: Mapping[str, Any]) -> Sequence[str]:
    names = (
        "ProbeX, 256 of 768x768",
        "MVProbe, 256 of 768x768",
        "ProbeX, 256 of 1280x1280 of rank 16",
    )
    of = [_speed(f"{name}, float32", found) for name in names]
    return [cells[column] for column in (1, 2) for cells in of]


def _described(found: Mapping[str, Any]) -> Sequence[str]:
    library, command, _ = found["figures"]
    rates = (f"{command['value']:.0f}", f"{library['value']:.0f}")
    return *rates, dot(command["fraction"], 2), dot(library["fraction"], 2)


def _swept(found: Mapping[str, Any]) -> Sequence[str]:
    [figure] = found["figures"]
    [ratio] = figure["other_ratios"].values()
    return (f"{ratio:.1f}",)


# attributes.json


def _told(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    """An attribute of all trees, mean over the zoos, and in how many of them it is told."""
    rows = [_row(tree, name, found) for tree in _ALL_TREES]
    return [
        (pm(row["test"], 2) if row else "")
        + (f" ({row['told in']} of {row['zoos']})" if row and row["told in"] < row["zoos"] else "")
        for row in rows
    ]


def _covers(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    rows = [_row(tree, name, found) for tree in _ALL_TREES]
    return [dot(row["90 % covers"]["mean"]) if row and row["told in"] else "" for row in rows]


def _row(tree: str, name: str, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """That of an attribute of a tree; empty where the tree has none."""
    rows = found["figures"]["attributes"]
    return next((r for r in rows if (r["tree"], r["attribute"]) == (tree, name)), {})


def _covered(found: Mapping[str, Any]) -> Sequence[str]:
    [row] = found["figures"]["coverage"]
    return (dot(row["90 % covers, mean"]["value"]),)


def _costs(asked: str, found: Mapping[str, Any]) -> Sequence[str]:
    [row] = (row for row in found["figures"]["cost"] if row["asked"] == asked)
    return f"{row['training, s']:.2f}", f"{row['least']:.2f} to {row['most']:.2f}"


# anomalies.json


def _found(kind: str, trees: Sequence[str], found: Mapping[str, Any]) -> Sequence[str]:
    """The share of models with a finding: over all zoos, and the least and greatest of one."""
    return [
        _share([r for r in found["figures"] if (r["tree"], r["kind"]) == (tree, kind)])
        for tree in trees
    ]


def _share(rows: Sequence[Mapping[str, Any]]) -> str:
    each = [row["found"] / row["models"] for row in rows]
    all_s = _short(sum(row["found"] for row in rows) / sum(row["models"] for row in rows), 3)
    beside = f" ({_short(min(each), 2)} to {_short(max(each), 2)})"
    return all_s if min(each) == max(each) else all_s + beside


def _short(share: float, digits: int) -> str:
    return str(int(share)) if share in (0, 1) else dot(share, digits)


# demo.json


def _words_of_demo(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    of = found["figures"][_LORAS]
    return _score(of["test_accuracy"] if name == "classify" else of["zero_shot"][name])


def _score(score: Mapping[str, Any]) -> tuple[str, str, str, str]:
    between = f"{score['low']:.3f} to {score['high']:.3f}"
    return f"{score['value']:.3f}", between, f"{score['chance']:.3f}", str(score["n_models"])


# page.json, routing.json


def _at_once(found: Mapping[str, Any]) -> Sequence[str]:
    many = [row for row in found["figures"] if row["at once"] > 1]
    api, page, described = (
        max((row for row in many if row["what"] == what), key=lambda row: row["p95, s"])
        for what in ("search, /api", "search, page", "describe, /api")
    )
    p95 = [f"{row['p95, s']:.2f}" for row in (api, page, described)]
    return str(api["at once"]), *p95[:2], str(described["at once"]), p95[2]


def _routed(found: Mapping[str, Any]) -> Sequence[str]:
    own = [row for row in found["figures"] if row["of the forest"] == "yes"]
    others = [row for row in found["figures"] if row["of the forest"] == "no"]
    cells = []
    for rows in (own, others):
        cells += [f"{sum(row[key] for row in rows):,}" for key in ("right", "models")]
    farthest = dot(max(row["farthest, in radii"] for row in own), 2)
    nearest = f"{min(row['nearest, in radii'] for row in others):.1f}"
    return *cells[:2], farthest, *cells[2:], nearest, found["date"][:10]


def _readme() -> Iterator[Bound]:
    for tree in TREES:
        row = f"| 10 of 20 classes, {tree} | 600 {_MODELS[tree]} | {{}} | {{}} | {{}} |\n"
        yield Bound("README.md", row, "accuracy", partial(_classes, tree))
    for row, what in (
        ("the concept of a LoRA, one of 64", "test"),
        ("a concept never trained on, one of 16", "held_out"),
    ):
        row = f"| {row} | 1,200 LoRAs | | {{}} | {{}} |\n"
        yield Bound("README.md", row, "accuracy", partial(_concepts, what))


def _of_summary() -> Iterator[Bound]:
    """results/README.md, and the card that docs/models.md shows."""
    page = "results/README.md"
    error = "On MiniMAE ours has {} of the mean error of MVProbe 128/128/512, from {} to {} in"
    yield Bound(page, error, "accuracy", partial(_errors, "MiniMAE"))
    both = "On MiniSupViT it has {} and on MiniResNet {} of it"
    yield Bound(page, both, "accuracy", _errors_of_both)
    text = "On LoRAs {} among the concepts trained on, {} among those held out, and among all {} of"
    yield Bound(page, text, "accuracy", _words)
    text = "within a tree {} to {} on the chosen layer, across {} to {}, and"
    yield Bound(page, text, "transfer", lambda found: _across(found)[:4])
    text = (
        "Training ProbeX runs at {} of the rate of a large product, MVProbe at {}, LoRAs in "
        "factors at {}; {}, {} and {} times as fast as a plain PyTorch version"
    )
    yield Bound(page, text, "speed/cpu-train", _trained)
    text = "does {} files of 1 MB a second, the library {}: {} and {} of the rate of reading them"
    yield Bound(page, text, "speed/cpu-describe", _described)
    text = "small layers in one process is {} times as fast as 12 processes"
    yield Bound(page, text, "speed/cpu-sweep", _swept)
    text = (
        "of {} searches sent at once to an index of 10,000 models, 95 % were answered by `/api` "
        "within {} s and by the page within {} s, of {} descriptions within {} s, on"
    )
    yield Bound(page, text, "page", _at_once)
    text = (
        "shown to their routers. {} of {} test models of three trees of 600 found theirs, the "
        "farthest at {} of its tree's radius, and {} of {} models of three trees of the same "
        "architectures from another seed were answered *unknown tree*, the nearest at {} radii ({},"
    )
    yield Bound(page, text, "routing", _routed)
    text = "it was right on {} of them (95 % interval {})."
    figures = partial(_words_of_demo, "classify")
    yield Bound("docs/models.md", text, "demo", lambda found: figures(found)[:2])


def _of_attributes() -> Iterator[Bound]:
    page = "results/attributes.md"
    cells = "{} | {} | {} | {} |"
    for name in (*_NUMBERS, *_CLASSES):
        figure = "R²" if name in _NUMBERS else "accuracy"
        told, covers = (partial(of, name) for of in (_told, _covers))
        yield Bound(page, f"| {name} | {figure} | {cells}", "attributes", told)
        if name != "images":
            yield Bound(page, f"| {name} | {cells}\n", "attributes", covers)
    yield Bound(page, "Over all 194 of them {} (", "attributes", _covered)
    for row, asked in (
        ("classes alone, as `train` without `--config.task`", "classes alone"),
        ("classes as the one attribute of a joint expert", "classes, as an attribute"),
        ("classes and learning rate", "classes and one more"),
        ("all ten", "all"),
    ):
        yield Bound(page, f"| {row} | {{}} | {{}} |", "attributes", partial(_costs, asked))


def _of_anomalies() -> Iterator[Bound]:
    for kinds, trees in ((OF_MATRICES, TREES), (OF_FACTORS, (_LORAS,))):
        for kind in ("untouched", *kinds):
            row = f"| {kind.replace('0.', '.')} | {' | '.join('{}' for _ in trees)} |\n"
            figures = partial(_found, kind, trees)
            yield Bound("results/anomalies.md", row, "anomalies", figures)


BOUND = (*_readme(), *_of_summary(), *_of_attributes(), *_of_anomalies())
