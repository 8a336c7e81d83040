"""The demo's end: a forest of its trees describes models whose labels were hidden."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import load_file, save_file

import probex_jax as px
from experiments import cli, demo_language, forest_steps, steps, zoo_steps
from experiments.costs import Costs
from probex_jax.forest import Forest
from probex_jax.model_files.locate import local_files
from probex_jax.reports import LabelledDescription
from probex_jax.reports.predictions import as_text
from probex_jax.search import Index, find_models

# Test models of each tree, and one of a tree that the forest does not know: a ViT of the same
# architecture, pre-trained from another seed.
N_HIDDEN = (4, 3, demo_language.N_HIDDEN)
STRANGER = {"trees": ("MiniSupViT",), "seed": 1, "models": 8}


class Described(NamedTuple):
    """What came of it.

    Args:
      lines: of the report.
      described: the models, with the truth.
    """

    lines: list[str]
    described: list[LabelledDescription]


def forest_part(
    workdir: Path,
    zoo_config: Mapping[str, Any],
    experts: Mapping[str, Path],
    joint: Mapping[str, Path],
    costs: Costs,
) -> Described:
    """Grows a forest of the trees and describes hidden models.

    Args:
      workdir: of the demo, with its zoo, stores and experts.
      zoo_config: what the zoo was built with.
      experts: tree to the work directory of its training.
      joint: tree to that of its training on attributes.
      costs: what is told what the steps cost.
    """
    print("7. Growing a forest of the trees and their experts", flush=True)
    forest = workdir / "forest"
    stores = [px.LayerStore.open(workdir / "stores" / tree) for tree in experts]
    with costs.step("growing the forest", forest):
        loaded = [px.Expert.load(path) for path in experts.values()]
        told = [px.Expert.load(path) for path in joint.values()]
        grown = forest_steps.grow_forest(forest, stores, [*loaded, *told], {})
    indexes = [_indexed(workdir, expert, costs) for expert in loaded]
    print("8. Describing models whose labels are hidden", flush=True)
    outside = workdir / "zoo_outside"
    with costs.step("fine-tuning models of no tree of the forest", outside):
        zoo_steps.build_zoo({**zoo_config, **STRANGER}, outside)
    truths = dict(_hidden(workdir, stores, outside / "MiniSupViT"))
    with costs.step("describing hidden models", workdir / "cards"):
        hidden = list(_described(workdir, forest, indexes, truths))
    n_right = sum(model.description.tree == model.tree for model in hidden)
    lines = [
        "## A forest\n",
        cli.table([{name: row[name] for name in row if name != "this run"} for row in grown]),
        f"\n## {len(hidden)} models whose labels were hidden\n",
        f"The tree is right for {n_right} of {len(hidden)}. One is of no tree of the forest: a ViT "
        "of the same architecture, pre-trained from another seed. Probabilities are calibrated. "
        "The whole cards are in `cards/`.\n",
        "```",
        as_text(hidden),
        "```\n",
    ]
    return Described(lines, hidden)


def _indexed(workdir: Path, expert: px.Expert, costs: Costs) -> Index:
    """The index of a tree's documented models: of its training models, where there is none yet."""
    tree = expert.card.tree
    path = demo_language.index_of(workdir, tree)
    if tree == demo_language.TREE:
        return Index.open(path)
    models = find_models(workdir / "zoo" / tree)
    with costs.step(f"indexing {tree}", path):
        return steps.index(expert, [m for m in models if m.split == "train"], path)[0]


def _described(
    workdir: Path,
    forest: Path,
    indexes: Sequence[Index],
    truths: Mapping[Path, tuple[str, tuple[str, ...]]],
) -> Iterator[LabelledDescription]:
    """Each hidden model as the forest describes it, with its tree and labels."""
    models = [model for model in find_models(workdir / "hidden") if model.path in truths]
    documented = forest_steps.nearest_in(indexes)
    for model, description in forest_steps.describe(
        Forest.load(forest), models, documented, workdir / "cards"
    ):
        if isinstance(description, px.ProbexError):
            raise description
        yield LabelledDescription(description, *truths[model.path])


def _hidden(
    workdir: Path, stores: Sequence[px.LayerStore], outside: Path
) -> Iterator[tuple[Path, tuple[str, tuple[str, ...]]]]:
    """Copies test models without a word about them; yields path, tree and labels of each."""
    chosen = [
        (model.source, (store.tree, model.labels))
        for store, count in zip(stores, N_HIDDEN, strict=True)
        for model in store.split("test")[:count]
    ]
    stranger = find_models(outside / "test")[0]
    with px.open_model(stranger.path) as file:
        chosen.append((str(stranger.path), ("", stranger.labels_in(file))))
    random.Random(0).shuffle(chosen)
    folder = workdir / "hidden"
    folder.mkdir(exist_ok=True)
    for number, (source, truth) in enumerate(chosen, start=1):
        path = folder / f"hidden_{number:02d}.safetensors"
        if not path.exists():
            [weights] = local_files(Path(source))
            partial = path.with_suffix(".partial")
            save_file(load_file(weights), partial)
            partial.rename(path)
        yield path, truth
