"""Embeds a folder of models with an expert and keeps them in an index, to be searched.

Running again embeds what is new or has changed; --prune removes what is gone.

Example:
  python -m experiments.index --experts=out/probex --models=out/zoo/MiniLoRA --index=out/index
"""

import sys

from absl import flags
from tqdm import tqdm

import probex_jax as px
from experiments import cli
from probex_jax.search import Index, find_models

_EXPERTS = flags.DEFINE_string(
    "experts", None, "Work directory of a training, or one expert.", required=True
)
_MODELS = flags.DEFINE_string(
    "models", None, "Folder of models, at any depth: a zoo, several, or anyone's.", required=True
)
_INDEX = flags.DEFINE_string("index", None, "Folder of the index, made if absent.", required=True)
_PRUNE = flags.DEFINE_bool("prune", False, "Remove indexed models whose files are gone.")


def main() -> None:
    expert = px.Expert.load(_EXPERTS.value)
    models = find_models(_MODELS.value)
    index = Index.create_or_open(_INDEX.value, expert)
    with cli.progress(len(models), "indexing", "model") as bar:
        done = index.add_models(models, on_model=lambda fault: _indexed(bar, fault))
    pruned = index.prune() if _PRUNE.value else 0
    recall = index.optimise()
    row = {
        "tree": expert.card["tree"],
        "layer": expert.card["layer"],
        "added": done.added,
        "updated": done.updated,
        "unchanged": done.unchanged,
        "pruned": pruned,
        "failed": len(done.failed),
        "models": len(index),
    }
    print(cli.table([row if recall is None else {**row, "recall@10": recall}]))


def _indexed(bar: tqdm, fault: str) -> None:
    bar.update()
    if fault:
        bar.write(f"failed {fault}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
