"""Finds the Model Trees in a folder of models: those of one ancestor.

No expert is needed. It also reports models with the same weights, whatever their dtype, format and
names. A model that cannot be read is reported and the others go on; the exit code is then 1.
--write_zoos makes a zoo of each tree, for split and pack; the models stay where they are.

Example:
  probex discover --models=downloads --out=out/trees.json
"""

import sys
from collections.abc import Sequence

from absl import flags

import probex_jax as px
from experiments import cli, copy_steps, engines, label_steps
from probex_jax.bucket_paths import as_path
from probex_jax.files import one_writer, write_json
from probex_jax.forest import discover
from probex_jax.search import find_models

_MODELS = flags.DEFINE_string("models", None, "Folder of models, at any depth.", required=True)
_OUT = flags.DEFINE_string("out", None, "JSON file to write: the models of each tree, and copies.")
_WRITE_ZOOS = flags.DEFINE_string(
    "write_zoos", None, "Folder to write a zoo of each tree to: tree-1, the largest, and so on."
)
_LABELS = flags.DEFINE_string("labels", None, "File of labels for these zoos.")
_MOST = flags.DEFINE_integer("most", 20, "Trees to list, the largest first.", lower_bound=1)


def main(rest: Sequence[str]) -> int:
    if rest:
        raise px.ProbexError(f"unexpected argument {rest[0]!r}; give --models=FOLDER")
    if _LABELS.value and not _WRITE_ZOOS.value:
        raise px.ProbexError("--labels are for the zoos of --write_zoos; give that, too")
    models = find_models(_MODELS.value)
    with cli.progress(len(models), "discovering", "model") as bar:

        def seen(fault: str) -> None:
            bar.update()
            if fault:
                bar.write(cli.one_line(f"failed {fault}"), file=sys.stderr)

        each = (model.path for model in models)
        found = discover(each, engine=engines.engine(), on_model=seen)
    if not found.trees:
        raise px.ProbexError(f"{_MODELS.value}: no model could be read")
    trees = [
        {
            "architecture": tree.fingerprint,
            "base": tree.base,
            "kind": tree.kind,
            "models": [models[number].id for number in tree.members],
        }
        for tree in found.trees
    ]
    copies = copy_steps.confirm(found.marks, models, engines.engine())
    if _OUT.value:
        failed = {models[number].id: reason for number, reason in found.failed.items()}
        told = {"trees": trees, "failed": failed, "copies": copy_steps.as_json(copies)}
        write_json(as_path(_OUT.value), told)
    if _WRITE_ZOOS.value:
        paths = {model.id: model.path for model in models}
        with one_writer(as_path(_WRITE_ZOOS.value)):
            label_steps.write_zoos(
                as_path(_WRITE_ZOOS.value),
                [{id: paths[id] for id in tree["models"]} for tree in trees],
                _LABELS.value,
            )
    rows = [
        {"tree": number, **tree, "models": len(tree["models"]), "such as": tree["models"][0]}
        for number, tree in enumerate(trees[: _MOST.value], start=1)
    ]
    print(cli.table(rows))
    several = "tree" if len(trees) == 1 else "trees"
    print(f"{len(trees)} {several} of {len(models) - len(found.failed)} models")
    copy_steps.tell(copies)
    return 1 if found.failed else 0


if __name__ == "__main__":
    cli.run_with_arguments(main)
