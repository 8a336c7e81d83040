"""Runs the whole of probex_jax on the miniature zoo; run it again to resume.

Fine-tunes real small models, packs their weights, and trains probing experts on every layer. Then
it aligns the weights of LoRAs with text, recognises concepts that it was not trained on, and finds
LoRAs by a sentence. Last, it describes models whose labels it has hidden, and shows the truth.

Example:
  probex demo --workdir=out/demo
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from configs import default, probex, statnn, zoo_miniature
from experiments import (
    cli,
    demo_forest,
    demo_language,
    joint_steps,
    report_steps,
    steps,
    zoo_steps,
)
from experiments.costs import Costs
from probex_jax.bucket_paths import on_a_disk
from probex_jax.files import one_writer, write_json
from probex_jax.reports import accuracy_by_layer

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all that the demo makes.", required=True)
_SIZE = flags.DEFINE_enum("size", "demo", ["demo", "tiny"], "Size of the zoo.")

TREES = ("MiniSupViT", "MiniMAE")
OURS = "default"
TITLE = "Demo: what hidden models were trained on, told from their weights"
ATTRIBUTES = "attributes"
METHODS = {
    OURS: default.get_config,
    "ProbeX": lambda: probex.get_config("mini"),
    "StatNN": statnn.get_config,
}
# Of a tiny zoo, which shows that all of it runs, no more.
TINY_LAYERS = r"vit\.encoder\.layer\.0\.(intermediate|output)\.dense\.weight"


def demo(workdir: Path, size: str) -> str:
    """Runs every step; returns the report, which is also in `workdir`."""
    costs = Costs(workdir)
    print("1. Fine-tuning small models on handwritten digits", flush=True)
    config = zoo_miniature.get_config(size).to_dict() | {"trees": (*TREES, demo_language.TREE)}
    with costs.step("fine-tuning small models", workdir / "zoo"):
        zoo_steps.build_zoo(config, workdir / "zoo")
    print("2. Packing their weights, layer by layer", flush=True)
    with costs.step(f"packing {' and '.join(TREES)}", workdir / "stores"):
        packed = [steps.pack(workdir / "zoo" / tree, workdir / "stores" / tree) for tree in TREES]
    print("3. Training an expert on each layer", flush=True)
    metrics = {
        tree: {
            name: _train(method(), workdir, tree, name, size, costs)
            for name, method in METHODS.items()
        }
        for tree in TREES
    }
    write_json(workdir / "metrics.json", metrics)
    attributes = {tree: _train_attributes(workdir, tree, size, costs) for tree in TREES}
    chance = {tree: methods[OURS].get("val_chance") for tree, methods in metrics.items()}
    accuracy_by_layer(_by_layer(metrics), workdir / "accuracy_by_layer.png", chance)
    words = demo_language.language_half(workdir, size, costs)
    experts = {tree: workdir / "experts" / tree / OURS for tree in TREES}
    experts |= {demo_language.TREE: demo_language.experts_of(workdir)}
    joint = {tree: workdir / "experts" / tree / ATTRIBUTES for tree in TREES}
    forest = demo_forest.forest_part(workdir, config, experts, joint, costs)
    told = [line for tree, found in attributes.items() for line in _attribute_lines(tree, found)]
    report = _report(packed, metrics, [*told, *words.lines, *forest.lines])
    (workdir / "report.md").write_text(report)
    trainings = [
        report_steps.training(workdir / "experts" / tree / name, found)
        for tree, methods in metrics.items()
        for name, found in methods.items()
    ]
    trainings += [report_steps.training(joint[tree], found) for tree, found in attributes.items()]
    aligned = report_steps.training(experts[demo_language.TREE], words.metrics)
    report_steps.write_report(
        workdir,
        TITLE,
        [*trainings, aligned],
        measured={demo_language.TREE: words.measured},
        described=forest.described,
    )
    return report


def _train(
    config: Any, workdir: Path, tree: str, method: str, size: str, costs: Costs
) -> Mapping[str, Any]:
    print(f"   {tree}: {method}", flush=True)
    config = config.to_dict() | {"store": str(workdir / "stores" / tree)}
    if size == "tiny":
        if "layers" in config:
            config["layers"] = TINY_LAYERS
        else:
            config["encoder"] = {**config["encoder"], "n_trees": 20}
    folder = workdir / "experts" / tree / method
    with costs.step(f"training on {tree}: {method}", folder):
        return steps.train(config, folder)


def _train_attributes(workdir: Path, tree: str, size: str, costs: Costs) -> Mapping[str, Any]:
    """Trains one expert on all that the zoo's table says of how its models were trained."""
    print(f"   {tree}: learning rate, steps and what else the weights may tell", flush=True)
    store, folder = workdir / "stores" / tree, workdir / "experts" / tree / ATTRIBUTES
    config = default.get_config().to_dict() | {"store": str(store), "task": "all"}
    if size == "tiny":
        config["layers"] = TINY_LAYERS
    with costs.step(f"training on {tree}: {ATTRIBUTES}", folder):
        return steps.train(config, folder)


def _attribute_lines(tree: str, metrics: Mapping[str, Any]) -> list[str]:
    """Of a report: what else the weights of a tree's models tell."""
    return [f"\n## What else the weights of {tree} tell\n", cli.table(joint_steps.rows(metrics))]


def _by_layer(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Accuracy of the layers that all methods read, but those that read no single ones."""
    key, drawn = "val_accuracy_by_layer", {}
    for tree, methods in metrics.items():
        of_methods = {name: found[key] for name, found in methods.items() if key in found}
        common = set.intersection(*map(set, of_methods.values()))
        drawn[tree] = {
            name: {layer: told for layer, told in found.items() if layer in common}
            for name, found in of_methods.items()
        }
    return drawn


def _report(
    packed: Sequence[Any],
    metrics: Mapping[str, Any],
    others: Sequence[str],
) -> str:
    trained = [found for methods in metrics.values() for found in methods.values()]
    results = [steps.train_row(found) for found in trained]
    short = [
        f"\n{found['tree']}, {steps.method(found)}: {line}."
        for found in trained
        for line in steps.not_above_chance(found)
    ]
    return "\n".join(
        [
            f"# {TITLE}\n",
            "## The models\n",
            cli.table([steps.pack_row(summary) for summary in packed]),
            "\n## Accuracy on test models\n",
            cli.table(results),
            *short,
            "\n![validation accuracy by layer](accuracy_by_layer.png)\n",
            *others,
        ]
    )


def main() -> None:
    workdir = on_a_disk(_WORKDIR.value)
    with one_writer(workdir):
        print(demo(workdir, _SIZE.value))
    print(f"report: {workdir / 'report.md'}, {workdir / 'accuracy_by_layer.png'}")
    print(f"open in a browser: {workdir / report_steps.NAME}")


if __name__ == "__main__":
    cli.run(main)
