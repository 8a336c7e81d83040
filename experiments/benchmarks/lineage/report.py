"""All figures of the benchmark, and its tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.lineage import p_values, rivals, score
from experiments.benchmarks.lineage.score import ALL, OURS, Record
from probex_jax.reports import table

Metrics = dict[str, Any]

_KINDS = ("fine-tune", "LoRA merged", "merge", "pruned", "quantised", "noised", "permuted")
_OTHERS = ("others", "others_without_merges")  # in records
_SURE = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # lower ends of bins of confidence
_NEAR = 0.02  # that coefficients should be within


def metrics(records: Sequence[Record], independent: Mapping[str, Sequence[float]]) -> Metrics:
    """Everything that is measured, as JSON values.

    Args:
      records: of families.
      independent: p-values of pairs of independent models, by the kind of model.
    """
    found: Metrics = {}
    there = {said["kind"] for record in records for said in record["truth"].values()} | {ALL}
    if records:
        found = {
            "families": len(records),
            "models": sum(len(record["truth"]) for record in records),
            "seconds": sum(record["seconds"] for record in records),
            "by_edge": {
                others: {
                    kind: _methods(records, kind, others)
                    for kind in (*_KINDS, ALL)
                    if kind in there and (kind, others) != ("merge", _OTHERS[1])
                }
                for others in _OTHERS
            },
            "by_architecture": {
                of: _methods([record for record in records if record["kind"] == of], ALL)
                for of in dict.fromkeys(record["kind"] for record in records)
            },
            "edges": _edges(records),
            "merges": _merges(records),
            "others": _others(records),
            "reliability": _reliability(records),
            "true_pairs": _true_pairs(records),
        }
    found["independent"] = {
        kind: {"pairs": len(pairs), "below": p_values.shares_below(pairs)}
        for kind, pairs in independent.items()
    }
    return found


def _methods(records: Sequence[Record], kind: str, others: str = "others") -> Metrics:
    """Of each method the shares right of one kind of edge, and how much better ours is.

    Without merges among the models of the other methods, ours has them still.
    """

    def rights(method: str, what: str) -> Any:
        return lambda record: [
            getattr(answer, what)
            for answer in score.answers(record, method, others)
            if kind in (ALL, answer.kind)
        ]

    def of(method: str) -> Metrics:
        found: Metrics = {}
        for what in ("undirected", "directed"):
            ours, its = rights(OURS, what), rights(method, what)
            found[what] = score.share(records, its)
            found[f"{what}_better"] = score.difference(records, ours, its)
        return found

    variants = [variant for each in rivals.METHODS.values() for variant in each]
    return {method: of(method) for method in (OURS, *variants)}


def _best(methods: Mapping[str, Any]) -> list[str]:
    """Ours, and of each other method the variant that tells most directed edges."""
    best = [
        max(variants, key=lambda variant: methods[variant]["directed"][0])
        for variants in rivals.METHODS.values()
    ]
    return [OURS, *best]


def _edges(records: Sequence[Record]) -> Metrics:
    """True edges that are found, each parent of a merge counted; and stated edges that are true."""

    def found(record: Record, *, either_way: bool) -> Iterator[bool]:
        parents = score.named(record)
        for child, said in record["truth"].items():
            if said["kind"] not in ("LoRA", "copy"):
                for parent in said["parents"]:
                    turned = either_way and child in parents.get(parent, ())
                    yield turned or parent in parents.get(child, ())

    def true(record: Record) -> Iterator[bool]:
        for edge, said in score.edges(record):
            yield edge["parent"] in said["parents"]

    def kinds(record: Record) -> Iterator[bool]:
        for edge, said in score.edges(record):
            if edge["parent"] in said["parents"]:
                yield edge["kind"] == said["kind"]

    return {
        "true edges found, undirected": score.share(records, lambda r: found(r, either_way=True)),
        "true edges found, directed": score.share(records, lambda r: found(r, either_way=False)),
        "stated edges that are true": score.share(records, true),
        "kind right, of these": score.share(records, kinds),
    }


def _merges(records: Sequence[Record]) -> Metrics:
    """By the method of merging: whether all parents are right, and errors of coefficients."""
    found: Metrics = {}
    roles = {
        said["role"]: said["method"]
        for record in records
        for said in record["truth"].values()
        if said["kind"] == "merge"
    }
    for role in roles:

        def all_right(record: Record, role: str = role) -> Iterator[bool]:
            parents = score.named(record)
            for name, said in record["truth"].items():
                if said["role"] == role:
                    yield parents.get(name, set()) == set(said["parents"])

        errors = [
            abs(edge["coefficient"] - said["parents"][edge["parent"]])
            for record in records
            for edge, said in score.edges(record)
            if said["role"] == role
            and edge["coefficient"] is not None
            and edge["parent"] in said["parents"]
        ]
        found[role] = {
            "parents": score.share(records, all_right),
            "coefficients": len(errors),
            "mean_error": float(np.mean(errors)) if errors else None,
            "largest_error": max(errors, default=None),
            "within": float(np.mean([error <= _NEAR for error in errors])) if errors else None,
        }
    return found


def _others(records: Sequence[Record]) -> Metrics:
    """Models without parents, copies, and adapters."""

    def without(kind: str) -> Any:
        return lambda record: [
            not score.named(record).get(name)
            for name, said in record["truth"].items()
            if said["kind"] == kind
        ]

    def adapters(record: Record, *, told: bool) -> Iterator[bool]:
        parents = score.named(record)
        for name, said in record["truth"].items():
            if said["kind"] == "LoRA" and not (told and not parents.get(name)):
                yield parents.get(name, set()) == set(said["parents"])

    return {
        "unrelated models left without parents": score.share(records, without("unrelated")),
        "roots left without parents": score.share(records, without("root")),
        "copies found": score.share(records, lambda record: score.copies(record)[0]),
        "false copies": sum(score.copies(record)[1] for record in records),
        "bases of LoRAs found": score.share(records, lambda r: adapters(r, told=False)),
        "bases of LoRAs right, of those told": score.share(
            records, lambda r: adapters(r, told=True)
        ),
    }


def _reliability(records: Sequence[Record]) -> list[Metrics]:
    stated = [
        (edge["confidence"], edge["parent"] in said["parents"])
        for record in records
        for edge, said in score.edges(record)
    ]
    found = []
    for low, high in zip(_SURE, (*_SURE[1:], 1.01), strict=True):
        inside = [pair for pair in stated if low <= pair[0] < high]
        if inside:
            sure, right = np.mean(inside, axis=0).tolist()
            found.append({"from": low, "edges": len(inside), "confidence": sure, "right": right})
    return found


def _true_pairs(records: Sequence[Record]) -> Metrics:
    """P-values of parent and child: how many pairs, the share below .001, and the largest."""
    found: Metrics = {}
    for record in records:
        for child, values in record["p_values"].items():
            found.setdefault(record["truth"][child]["kind"], []).extend(values)
    return {
        kind: {
            "pairs": len(values),
            "below_0.001": float(np.mean(np.array(values) < 0.001)),
            "largest": max(values),
        }
        for kind, values in found.items()
    }


def text(found: Metrics) -> str:
    """The tables of `metrics`."""
    parts: list[str] = []
    if "families" in found:
        parts += _tables(found)
    if found["independent"]:
        rows = [
            {"independent pairs": kind, "pairs": said["pairs"]}
            | {f"below {level}": _share(s) for level, s in said["below"].items()}
            for kind, said in found["independent"].items()
        ]
        parts.append(table(rows))
    return "\n\n".join(parts)


def _tables(found: Metrics) -> Iterator[str]:
    yield f"{found['families']} families, {found['models']} models, {found['seconds']:.0f} s"
    overall = found["by_edge"]["others"][ALL]
    overall = _best(found["by_edge"][_OTHERS[0]][ALL])
    grouped = [
        (others.replace("_", " "), found["by_edge"][others], _best(found["by_edge"][others][ALL]))
        for others in _OTHERS
    ]
    for what in ("directed", "undirected"):
        for title, by, best in (*grouped, ("architecture", found["by_architecture"], overall)):
            yield table(
                [
                    {f"{what}, {title}": kind, "models": methods[OURS][what][3]}
                    | {method: _share(methods[method][what]) for method in best}
                    for kind, methods in by.items()
                ]
            )
    for others in _OTHERS:
        yield table(
            [
                {f"all kinds, {others.replace('_', ' ')}": method}
                | {what: _share(said[what]) for what in ("undirected", "directed")}
                | {"ours is better by": _share(said["directed_better"])}
                for method, said in found["by_edge"][others][ALL].items()
            ]
        )
    yield table(
        [
            {"ours": what, "share": _share(said), "of": said[3]}
            if isinstance(said, list)
            else {"ours": what, "share": said, "of": ""}
            for what, said in {**found["edges"], **found["others"]}.items()
            if said is not None
        ]
    )
    yield table(
        [
            {
                "merge": role,
                "all parents right": _share(said["parents"]),
                "of": said["parents"][3],
                "coefficients": said["coefficients"],
                "mean error": _small(said["mean_error"]),
                "largest": _small(said["largest_error"]),
                f"within {_NEAR}": "" if said["within"] is None else said["within"],
            }
            for role, said in found["merges"].items()
        ]
    )
    yield table(found["reliability"])
    yield table(
        [
            {"true pairs": kind, "pairs": said["pairs"], "p < .001": said["below_0.001"]}
            | {"largest p": f"{said['largest']:.4f}"}
            for kind, said in found["true_pairs"].items()
        ]
    )


def _share(said: Sequence[float] | None) -> str:
    return "" if said is None else f"{said[0]:.3f} [{said[1]:.3f}, {said[2]:.3f}]"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
