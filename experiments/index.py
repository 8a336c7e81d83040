"""Embeds a folder of models with an expert and keeps them in an index, to be searched.

Running again embeds what is new or has changed; --prune removes what is gone.

Example:
  python -m experiments.index --experts=out/align --models=out/zoo/MiniLoRA --index=out/index
"""

from pathlib import Path

from absl import flags

from experiments import cli, steps
from probex_jax.experts import load_experts
from probex_jax.search import find_models

_EXPERTS = flags.DEFINE_string(
    "experts",
    None,
    "One expert, or the work directory of a training: of its experts the one that was best on "
    "held-out classes, where there is one.",
    required=True,
)
_MODELS = flags.DEFINE_string(
    "models", None, "Folder of models, at any depth: a zoo, several, or anyone's.", required=True
)
_INDEX = flags.DEFINE_string("index", None, "Folder of the index, made if absent.", required=True)
_PRUNE = flags.DEFINE_bool("prune", False, "Remove indexed models whose files are gone.")


def main() -> None:
    # Free sentences are mostly of kinds that it was not trained on.
    expert = load_experts(Path(_EXPERTS.value))["val_holdout"]
    index = Path(_INDEX.value)
    emptied = _PRUNE.value and (index / "index.json").exists()
    models = find_models(_MODELS.value, may_be_empty=emptied)
    print(cli.table([steps.index(expert, models, index, prune=_PRUNE.value)[1]]))


if __name__ == "__main__":
    cli.run(main)
