"""Downloads Model-J from the hub: whole models, or only the layers named, into a layer store.

Whole models come to OUT/SUBSET in the reference implementation's layout, as `pack` takes it; with
--layers, OUT/SUBSET is a store. Run again to go on after a kill, or to try again what failed; the
exit code is 1 where models are missing, 2 where none could be had.

Example:
  python -m experiments.download_model_j --subset=SupViT --layers=59 --out=out/stores
  python -m experiments.download_model_j --subset=SD_200 --splits=train,val --out=zoo --dry_run
"""

from absl import flags

import probex_jax as px
from experiments import cli, download_steps
from probex_jax.zoo.model_j_table import DATASET, SUBSETS

_SUBSET = flags.DEFINE_string("subset", None, f"Of the table: {', '.join(SUBSETS)}.", required=True)
_SPLITS = flags.DEFINE_list("splits", [], "Of train, val, test, val_holdout, test_holdout; or all.")
_LAYERS = flags.DEFINE_string(
    "layers",
    "",
    "Names, numbers or regular expressions, separated by commas; empty for whole models.",
)
_OUT = flags.DEFINE_string("out", None, "Folder; what is downloaded is in a folder in it.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the models and their bytes, and stop.")
_CLASS_NAMES = flags.DEFINE_string(
    "class_names",
    None,
    'JSON, {"n02111277": "a dog", …}, or lines of ids and words; or else the table\'s words.',
)
_JOBS = flags.DEFINE_integer("jobs", 8, "Models at a time.", lower_bound=1, upper_bound=12)
_DATASET = flags.DEFINE_string("dataset", DATASET, "The table of models, a dataset on the hub.")


def main() -> int:
    table = download_steps.read_table(
        _SUBSET.value, _SPLITS.value, _CLASS_NAMES.value, _DATASET.value
    )
    if _DRY_RUN.value:
        print(cli.table(download_steps.planned_rows(table, _LAYERS.value, _JOBS.value)))
        return 0
    if _OUT.value is None:
        raise px.ProbexError("give --out, the folder to download to")
    row, failed = download_steps.download(table, _OUT.value, _LAYERS.value, _JOBS.value)
    print(cli.table([row]))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
