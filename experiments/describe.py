"""Describes undocumented models: their tree, and what they were trained on.

MODEL is a file, a model's folder or a folder of models, here or in a bucket (s3://, gs://), or
hf://ORG/NAME or an https:// address. One model's card is printed; several models get a line each,
and --out writes their cards. A model that cannot be read is reported and the others go on; the exit
code is then 1, or 2 if none was read.

Example:
  python -m experiments.describe --forest=out/demo/forest model.safetensors
  python -m experiments.describe --forest=out/demo/forest --out=cards my_models
"""

import json
from collections.abc import Sequence

from absl import flags

import probex_jax as px
from experiments import cli, forest_steps
from probex_jax.bucket_paths import as_path
from probex_jax.forest import Forest
from probex_jax.reports import model_card
from probex_jax.search import Index

_FOREST = flags.DEFINE_string("forest", None, "Forest made by grow_forest.", required=True)
_INDEX = flags.DEFINE_list(
    "index",
    [],
    "Indexes made by index, at most one for each tree: cards then name the nearest models.",
)
_LIST = flags.DEFINE_string("list", None, "File with a model a line, as harvest writes one.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for the cards, a Markdown and a JSON file for each model."
)
_JSON = flags.DEFINE_bool("json", False, "Print a line of JSON for each model instead.")
_COMPARE = flags.DEFINE_bool(
    "compare",
    False,
    "Compare with what the models' own files say, most surprising first: this finds mislabelled "
    "models.",
)


def main(paths: Sequence[str]) -> int:
    paths = [*paths, *(forest_steps.listed_in(_LIST.value) if _LIST.value else ())]
    if not paths:
        raise px.ProbexError("give one or more models: files, or folders of them")
    forest = Forest.load(_FOREST.value)
    nearest = forest_steps.nearest_in([Index.open(path) for path in _INDEX.value])
    models = forest_steps.found_models(paths)
    failed, described = 0, []
    out = as_path(_OUT.value) if _OUT.value else None
    for model, description in forest_steps.describe(forest, models, nearest, out):
        failed += isinstance(description, px.ProbexError)
        if _JSON.value:
            print(json.dumps(forest_steps.as_json(model, description)), flush=True)
        else:
            described.append((model, description))
    if failed < len(models) and described:
        _show(described)
    return 0 if not failed else 1 if failed < len(models) else 2


def _show(described: Sequence[forest_steps.Described]) -> None:
    [(_, first), *others] = described
    if _COMPARE.value:
        rows = forest_steps.compared_rows(described)
        print(cli.table(rows) if rows else "no model says what it was trained on")
        print(f"{len(rows)} of {len(described)} models compared")
    elif not others and isinstance(first, px.Description):
        print(model_card(first))
    else:
        print(cli.table([forest_steps.described_row(*one) for one in described]))


if __name__ == "__main__":
    cli.run_with_arguments(main)
