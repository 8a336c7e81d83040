r"""Grows a forest, which recognises trees of models and holds their experts.

describe, serve and index use it. Each tree has its own folder in the forest, so a tree can be added
later without touching the others. Experts without calibration are calibrated on validation models.

Example:
  probex grow_forest --forest=out/forest \
    --stores=out/stores/MiniSupViT,out/stores/MiniLoRA \
    --experts=out/trained,out/align --roots=MiniLoRA=me/denoiser
"""

from absl import flags

import probex_jax as px
from experiments import cli, forest_steps, view_steps
from probex_jax.bucket_paths import as_path

_STORES = flags.DEFINE_list(
    "stores", None, "Layer stores made by pack, one for each tree.", required=True
)
_EXPERTS = flags.DEFINE_list(
    "experts",
    [],
    "A --workdir of train for each tree, or several, one for each label set. Models of a tree "
    "without one are recognised, but not described.",
)
_LABEL_SETS = flags.DEFINE_list(
    "label_sets",
    [],
    "What the classes of each of --experts are, such as gain: the titles of their tables. "
    "Default: what their cards or stores say.",
)
_TAGS = flags.DEFINE_string(
    "tags", None, "File of more tags, one a line, for --experts trained with config.text.tags."
)
_FOREST = flags.DEFINE_string(
    "forest", None, "Folder of the forest, made if absent.", required=True
)
_ROOTS = flags.DEFINE_list(
    "roots", [], "TREE=NAME: the model that a tree was fine-tuned from, best by its id on the hub."
)


def main() -> None:
    roots = dict(_named(item) for item in _ROOTS.value)
    stores = [px.LayerStore.open(path) for path in _STORES.value]
    experts = [px.Expert.load(path) for path in _EXPERTS.value]
    tags = forest_steps.read_tags(as_path(_TAGS.value)) if _TAGS.value else ()
    grown = forest_steps.grow_forest(
        as_path(_FOREST.value), stores, experts, roots, _LABEL_SETS.value, _as_trained, tags
    )
    print(cli.table(grown))


def _as_trained(store: px.LayerStore, number: int) -> px.LayerStore:
    """The store with the labels and the split that one of --experts was trained on."""
    return view_steps.store_of(_EXPERTS.value[number], str(store.path))


def _named(item: str) -> tuple[str, str]:
    tree, equals, name = item.partition("=")
    if not (tree and equals and name):
        raise px.ProbexError(f"--roots: {item!r} is not written TREE=NAME")
    return tree, name


if __name__ == "__main__":
    cli.run(main)
