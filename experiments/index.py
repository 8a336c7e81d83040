"""Embeds a folder of models with an expert and keeps them in an index, to be searched.

Running again embeds what is new or has changed; --prune removes what is gone.

Example:
  python -m experiments.index --experts=out/align --models=out/zoo/MiniLoRA --index=out/index
"""

from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli, steps
from probex_jax.search import find_models

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
    print(cli.table([steps.index(expert, models, Path(_INDEX.value), prune=_PRUNE.value)[1]]))


if __name__ == "__main__":
    cli.run(main)
