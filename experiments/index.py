r"""Makes an index of a folder of models, which search looks through.

Each model is embedded by an expert. Run the same command again to add new and changed models;
--prune removes those that are gone. With --forest, models of other trees are refused. Models on
disk with the same weights are reported when new ones are added.

Example:
  probex index --experts=out/align --models=out/zoo/MiniLoRA \
    --index=out/index
  probex index --forest=out/forest --tree=MiniLoRA \
    --models=my_loras --index=out/mine
"""

from absl import flags

import probex_jax as px
from experiments import cli, copy_steps, engines, steps
from experiments.models import Models
from probex_jax.bucket_paths import as_path
from probex_jax.experts import load_experts
from probex_jax.forest import Forest
from probex_jax.zoo.listed_path import zoo_path

_EXPERTS = flags.DEFINE_string(
    "experts",
    None,
    "A --workdir of train, or one expert in it. Give this, --forest or both. If the training kept "
    "two experts, the one for held-out classes is used.",
)
_MODELS = flags.DEFINE_string(
    "models", None, "Folder of models, at any depth, or its s3:// or gs:// address."
)
_LIST = flags.DEFINE_string(
    "list",
    None,
    "File with one model per line, such as hf://ORG/NAME. Give this, --models or both.",
)
_FOREST = flags.DEFINE_string("forest", None, "Forest whose expert embeds the models.")
_TREE = flags.DEFINE_string("tree", None, "Tree of the forest to index, if it has several.")
_INDEX = flags.DEFINE_string("index", None, "Folder of the index, made if absent.", required=True)
_PRUNE = flags.DEFINE_bool("prune", False, "Remove models from the index whose files are gone.")
_READERS = engines.readers_flag(4)


def main() -> None:
    engine = engines.engine()  # before anything takes a device
    forest = None if _FOREST.value is None else Forest.load(_FOREST.value)
    expert = _expert(forest)
    index = as_path(_INDEX.value)
    emptied = _PRUNE.value and (index / "index.json").exists()
    models = _models(may_be_empty=emptied)
    row = steps.index(
        expert,
        models,
        index,
        prune=_PRUNE.value,
        forest=forest,
        engine=engine,
        readers=_READERS.value,
    )[1]
    print(cli.table([row]))
    if row["added"] or row["updated"]:
        copy_steps.tell(copy_steps.find(models, engine))


def _models(may_be_empty: bool) -> Models:
    if not (_MODELS.value or _LIST.value):
        raise px.ProbexError("give --models, a folder, or --list, a file with one model per line")
    folders = [_MODELS.value] if _MODELS.value else []
    for folder in folders:
        if not zoo_path(folder).is_dir():
            raise px.ProbexError(f"{folder}: no such folder; expected one with models in it")
    models = Models(folders, _LIST.value or "", whole=True)
    if not (may_be_empty or len(models)):
        where = _MODELS.value or _LIST.value
        raise px.ProbexError(
            f"{where}: no models in it; expected folders or files such as .safetensors"
        )
    return models


def _expert(forest: Forest | None) -> px.Expert:
    if _EXPERTS.value is not None:
        # Free sentences are mostly of kinds that it was not trained on.
        return load_experts(as_path(_EXPERTS.value))["val_holdout"]
    if forest is None:
        raise px.ProbexError("give --experts or --forest")
    trees = [name for name, tree in forest.trees.items() if tree.layers]
    tree = _TREE.value or (trees[0] if len(trees) == 1 else "")
    expert = forest.trees[tree].expert if tree in trees else None
    if expert is None:
        raise px.ProbexError(f"--tree: give one of {', '.join(trees)}")
    return expert


if __name__ == "__main__":
    cli.run(main)
