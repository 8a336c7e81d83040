"""Describes undocumented models: their tree, and what they were trained on.

MODEL is a file, a model's folder or a folder of models, on disk or in a bucket (s3://, gs://), or
hf://ORG/NAME or an https:// address. The card of a single model is printed; several models get a
line each, and --out writes their cards. A model that cannot be read is reported and the others go
on; the exit code is then 1, or 2 if none was read.

Example:
  probex describe --forest=out/demo/forest model.safetensors
  probex describe --forest=out/demo/forest --out=cards my_models
"""

import json
from collections.abc import Sequence

from absl import flags

import probex_jax as px
from experiments import attribute_steps, cli, engines, forest_steps
from experiments.models import Models
from probex_jax.bucket_paths import as_path
from probex_jax.forest import Forest, RelativesIn
from probex_jax.lineage import load_lineage
from probex_jax.reports import model_card
from probex_jax.search import Index

_FOREST = flags.DEFINE_string("forest", None, "Forest made by grow_forest.", required=True)
_INDEX = flags.DEFINE_list(
    "index",
    [],
    "Indexes made by index, those of a tree by one expert: cards then name the nearest models.",
)
_LINEAGE = flags.DEFINE_string(
    "lineage", None, "Folder made by lineage: cards then name parents and copies of its models."
)
_LIST = flags.DEFINE_string("list", None, "File with one model per line, as harvest writes.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for the cards, a Markdown and a JSON file for each model."
)
_JSON = flags.DEFINE_bool("json", False, "Print a line of JSON for each model instead.")
_COMPARE = flags.DEFINE_bool(
    "compare",
    False,
    "Compare with what the models' own files and tables of labels beside them say, most surprising "
    "first: this finds mislabelled models.",
)

_READERS = engines.readers_flag(4)
# Models of which the table has a line.
_MOST = 2000


def main(paths: Sequence[str]) -> int:
    if not (paths or _LIST.value):
        raise px.ProbexError("give one or more models: files, or folders of them")
    engine = engines.engine()  # before anything takes a device
    models = Models(paths, _LIST.value or "", tables=_COMPARE.value)
    forest = Forest.load(_FOREST.value)
    nearest = forest_steps.nearest_in([Index.open(path) for path in _INDEX.value])
    failed = n_compared = 0
    relatives = RelativesIn(load_lineage(_LINEAGE.value)) if _LINEAGE.value else None
    kept: list[forest_steps.Described] = []
    beside = attribute_steps.Beside(_MOST)
    out = as_path(_OUT.value) if _OUT.value else None
    for one in forest_steps.describe(
        forest, models, nearest, out, engine, _READERS.value, relatives
    ):
        failed += isinstance(one[1], px.ProbexError)
        if _JSON.value:
            print(json.dumps(forest_steps.as_json(*one)), flush=True)
        elif _COMPARE.value:
            found = forest_steps.compared([one])
            n_compared += bool(found) | beside.add(one[1])
            kept = forest_steps.compared([*kept, *found])[:_MOST] if found else kept
        elif len(kept) < _MOST:
            kept.append(one)
    if _COMPARE.value and not _JSON.value and failed < len(models):
        tables = [t for t in (forest_steps.compared_rows(kept), *beside.tables()) if t]
        print("\n\n".join(map(cli.table, tables)) or "no model says what it was trained on")
        print(f"{n_compared} of {len(models)} models compared")
    elif kept and failed < len(models):
        _show(kept, len(models))
    return 0 if not failed else 1 if failed < len(models) else 2


def _show(described: Sequence[forest_steps.Described], count: int) -> None:
    if count == 1 and isinstance(described[0][1], px.Description):
        print(model_card(described[0][1]))
        return
    print(cli.table([forest_steps.described_row(*one) for one in described]))
    if count > len(described):
        print(f"and {count - len(described)} more; --out and --json tell of all")


if __name__ == "__main__":
    cli.run_with_arguments(main)
