r"""Grows a forest: what tells the trees of some stores apart, and the expert of each.

A tree is a folder of its own in the forest: growing it by another later touches no other. An expert
that was never calibrated is, on the validation split of its tree's store.

Example:
  python -m experiments.grow_forest --stores=out/stores/MiniSupViT,out/stores/MiniLoRA \
    --experts=out/trained,out/align --forest=out/forest --roots=MiniLoRA=me/denoiser
"""

from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli, forest_steps

_STORES = flags.DEFINE_list("stores", None, "Layer stores, one a tree.", required=True)
_EXPERTS = flags.DEFINE_list(
    "experts",
    [],
    "Experts, or work directories of trainings; at most one a tree. Models of a tree without one "
    "are told from others, no more.",
)
_FOREST = flags.DEFINE_string(
    "forest", None, "Folder of the forest, made if absent.", required=True
)
_ROOTS = flags.DEFINE_list(
    "roots", [], "TREE=NAME: the model that a tree was fine-tuned from, best its id on the hub."
)


def main() -> None:
    roots = dict(_named(item) for item in _ROOTS.value)
    stores = [px.LayerStore.open(path) for path in _STORES.value]
    experts = [px.Expert.load(path) for path in _EXPERTS.value]
    print(cli.table(forest_steps.grow_forest(Path(_FOREST.value), stores, experts, roots)))


def _named(item: str) -> tuple[str, str]:
    tree, equals, name = item.partition("=")
    if not (tree and equals and name):
        raise px.ProbexError(f"--roots: {item!r} is not written TREE=NAME")
    return tree, name


if __name__ == "__main__":
    cli.run(main)
