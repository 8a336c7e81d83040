r"""Grows a forest: what tells some trees apart, and the expert of each.

describe, serve and index use it. Each tree has its own folder in the forest, so a tree can be added
later without touching the others. Experts without calibration are calibrated on validation models.

Example:
  python -m experiments.grow_forest --forest=out/forest \
    --stores=out/stores/MiniSupViT,out/stores/MiniLoRA \
    --experts=out/trained,out/align --roots=MiniLoRA=me/denoiser
"""

from collections.abc import Mapping
from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli, forest_steps, label_steps

_STORES = flags.DEFINE_list(
    "stores", None, "Layer stores made by pack, one for each tree.", required=True
)
_EXPERTS = flags.DEFINE_list(
    "experts",
    [],
    "A --workdir of train for each tree. Models of a tree without one are recognised, but not "
    "described.",
)
_FOREST = flags.DEFINE_string(
    "forest", None, "Folder of the forest, made if absent.", required=True
)
_ROOTS = flags.DEFINE_list(
    "roots", [], "TREE=NAME: the model that a tree was fine-tuned from, best by its id on the hub."
)


def main() -> None:
    roots = dict(_named(item) for item in _ROOTS.value)
    experts = [px.Expert.load(path) for path in _EXPERTS.value]
    trained = {expert.card.tree: path for path, expert in zip(_EXPERTS.value, experts, strict=True)}
    stores = [_store(path, trained) for path in _STORES.value]
    print(cli.table(forest_steps.grow_forest(Path(_FOREST.value), stores, experts, roots)))


def _store(path: str, trained: Mapping[str, str]) -> px.LayerStore:
    """A store, with the labels and split that the expert of its tree was trained on."""
    store = px.LayerStore.open(path)
    return label_steps.store_of(trained[store.tree], path) if store.tree in trained else store


def _named(item: str) -> tuple[str, str]:
    tree, equals, name = item.partition("=")
    if not (tree and equals and name):
        raise px.ProbexError(f"--roots: {item!r} is not written TREE=NAME")
    return tree, name


if __name__ == "__main__":
    cli.run(main)
