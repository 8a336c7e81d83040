r"""Downloads Model-J from the hub: whole models, or only some of their layers.

Whole models go to OUT/SUBSET, a zoo for pack. With --layers only these layers are read, and
OUT/SUBSET is a layer store for train. Run the same command again to resume, or to retry what
failed; the exit code is 1 if some models are missing, 2 if there are none.

Example:
  probex download_model_j --subset=SupViT --layers=59 \
    --out=out/stores
  probex download_model_j --subset=SD_200 --splits=train,val \
    --dry_run
"""

from absl import flags

import probex_jax as px
from experiments import cli, download_steps
from probex_jax.bucket_paths import on_a_disk
from probex_jax.zoo.model_j_table import DATASET, SUBSETS, Table

_SUBSET = flags.DEFINE_string("subset", None, f"One of {', '.join(SUBSETS)}.", required=True)
_SPLITS = flags.DEFINE_list(
    "splits", [], "Some of train, val, test, val_holdout, test_holdout. Default: all."
)
_LAYERS = flags.DEFINE_string(
    "layers",
    "",
    "Layers to read: names, numbers or regular expressions, separated by commas. Default: whole "
    "models.",
)
_OUT = flags.DEFINE_string("out", None, "Folder to download to. Needed unless --dry_run.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print how many models and bytes there are.")
_CLASS_NAMES = flags.DEFINE_string(
    "class_names",
    None,
    'File with words for WordNet ids: {"n02111277": "a dog", …} as JSON, or a line for each id. '
    "Default: the table's words.",
)
_JOBS = flags.DEFINE_integer(
    "jobs", 8, "Models to download at the same time.", lower_bound=1, upper_bound=12
)
_DATASET = flags.DEFINE_string("dataset", DATASET, "Dataset on the hub that lists the models.")


def main() -> int:
    if _DRY_RUN.value:
        print(cli.table(download_steps.planned_rows(_table(), _LAYERS.value, _JOBS.value)))
        return 0
    if _OUT.value is None:
        raise px.ProbexError("give --out, the folder to download to")
    out = str(on_a_disk(_OUT.value))
    row, failed = download_steps.download(_table(), out, _LAYERS.value, _JOBS.value)
    print(cli.table([row]))
    return 1 if failed else 0


def _table() -> Table:
    return download_steps.read_table(
        _SUBSET.value, _SPLITS.value, _CLASS_NAMES.value, _DATASET.value
    )


if __name__ == "__main__":
    cli.run(main)
