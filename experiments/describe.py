"""Describes models that nobody described: their tree, what they were trained on, how sure that is.

MODEL is a file, a model's folder, or a folder of models at any depth. One model's card is printed;
of several a line each, and --out writes the cards (Markdown) and JSON. A model that cannot be read
is reported in its place, and the others go on; the exit code is then 1, or 2 where none could be.

Example:
  python -m experiments.describe --forest=out/forest --index=out/index model.safetensors
  python -m experiments.describe --forest=out/forest --out=out/cards --compare my_models
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli, forest_steps
from probex_jax.forest import Forest
from probex_jax.reports import model_card
from probex_jax.search import Index

_FOREST = flags.DEFINE_string("forest", None, "Folder of the forest.", required=True)
_INDEX = flags.DEFINE_list("index", [], "Indexes of documented models, at most one a tree.")
_OUT = flags.DEFINE_string("out", None, "Folder for a card and a JSON file a model.")
_JSON = flags.DEFINE_bool("json", False, "Print a line of JSON a model instead.")
_COMPARE = flags.DEFINE_bool(
    "compare",
    False,
    "Print predicted against stated, the most surprising first: to find mislabelled models.",
)


def main(paths: Sequence[str]) -> int:
    if not paths:
        raise px.ProbexError("give one or more models: files, or folders of them")
    forest = Forest.load(_FOREST.value)
    nearest = forest_steps.nearest_in([Index.open(path) for path in _INDEX.value])
    models = forest_steps.found_models(paths)
    failed, described = 0, []
    out = Path(_OUT.value) if _OUT.value else None
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
