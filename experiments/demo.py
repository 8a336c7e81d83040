"""The whole of probex_jax on the miniature zoo; run again, it takes up what is there.

Fine-tunes real small models, packs their weights, trains probing experts on every layer, and tells
what ten hidden models of two trees were trained on. Then it aligns the weights of LoRAs with text,
tells concepts that it has never seen, and finds LoRAs by a sentence.

Example:
  python -m experiments.demo --workdir=out/demo
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import probex_jax as px
from configs import default, probex, statnn, zoo_miniature
from experiments import cli, demo_language, steps
from probex_jax.experts import evaluate
from probex_jax.files import write_json
from probex_jax.reports import HiddenModel, accuracy_by_layer, hidden_models

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all that the demo makes.", required=True)
_SIZE = flags.DEFINE_enum("size", "demo", ["demo", "tiny"], "Size of the zoo.")

TREES = ("MiniSupViT", "MiniMAE")
OURS = "default"
METHODS = {
    OURS: default.get_config,
    "ProbeX": lambda: probex.get_config("mini"),
    "StatNN": statnn.get_config,
}
N_HIDDEN = 10
# Of a tiny zoo, which shows that all of it runs, no more.
TINY_LAYERS = r"vit\.encoder\.layer\.0\.(intermediate|output)\.dense\.weight"


def demo(workdir: Path, size: str) -> str:
    """Runs every step; returns the report, which is also in `workdir`."""
    print("1. Fine-tuning small models on handwritten digits", flush=True)
    config = zoo_miniature.get_config(size).to_dict() | {"trees": (*TREES, demo_language.TREE)}
    steps.build_zoo(config, workdir / "zoo")
    print("2. Packing their weights, layer by layer", flush=True)
    packed = [steps.pack(workdir / "zoo" / tree, workdir / "stores" / tree) for tree in TREES]
    print("3. Training an expert on each layer", flush=True)
    metrics = {
        tree: {
            name: _train(method(), workdir, tree, name, size) for name, method in METHODS.items()
        }
        for tree in TREES
    }
    write_json(workdir / "metrics.json", metrics)
    accuracy_by_layer(_by_layer(metrics), workdir / "accuracy_by_layer.png")
    hidden = [
        model
        for summary in packed
        for model in _hidden(summary.store, workdir, N_HIDDEN // len(TREES))
    ]
    report = _report(packed, metrics, hidden, demo_language.language_half(workdir))
    (workdir / "report.md").write_text(report)
    return report


def _train(config: Any, workdir: Path, tree: str, method: str, size: str) -> Mapping[str, Any]:
    print(f"   {tree}: {method}", flush=True)
    config = config.to_dict() | {"store": str(workdir / "stores" / tree)}
    if size == "tiny" and "layers" in config:
        config["layers"] = TINY_LAYERS
    return steps.train(config, workdir / "experts" / tree / method)


def _by_layer(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    key = "val_accuracy_by_layer"
    return {
        tree: {name: found[key] for name, found in methods.items() if key in found}
        for tree, methods in metrics.items()
    }


def _hidden(store: px.LayerStore, workdir: Path, count: int) -> list[HiddenModel]:
    """The first test models, as the default expert of their tree sees them."""
    expert = px.Expert.load(workdir / "experts" / store.tree / OURS)
    _, logits = evaluate(expert, store, "test")
    return [
        HiddenModel(
            model.id.rpartition("__")[2],
            store.tree,
            dict(zip(store.classes, map(float, np.ravel(row)), strict=True)),
            model.labels,
        )
        for model, row in zip(
            store.split("test")[:count], expert.as_probabilities(logits), strict=False
        )
    ]


def _report(
    packed: Sequence[Any],
    metrics: Mapping[str, Any],
    hidden: Sequence[HiddenModel],
    on_language: Sequence[str],
) -> str:
    results = [steps.train_row(found) for methods in metrics.values() for found in methods.values()]
    return "\n".join(
        [
            "# Demo: what hidden models were trained on, told from their weights\n",
            "## The models\n",
            cli.table([steps.pack_row(summary) for summary in packed]),
            "\n## Accuracy on test models (chance 0.500)\n",
            cli.table(results),
            "\n![validation accuracy by layer](accuracy_by_layer.png)\n",
            f"## {len(hidden)} hidden models\n",
            "Classes that the weights of a few layers give away, and how surely.\n",
            "```",
            hidden_models(hidden),
            "```\n",
            *on_language,
        ]
    )


def main() -> None:
    workdir = Path(_WORKDIR.value)
    print(demo(workdir, _SIZE.value))
    pictures = f"{workdir / 'accuracy_by_layer.png'}, {workdir / demo_language.MAP}"
    print(f"report: {workdir / 'report.md'}; pictures: {pictures}")


if __name__ == "__main__":
    cli.run(main)
