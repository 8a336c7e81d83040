r"""Divides the models of a zoo into train, val and test by their labels; no file is copied.

Every part gets its share of each class, or, for numbers, of each fifth of their range. With
--group, models of one group, such as siblings of one device or author, stay together. The splits,
NAME-0, NAME-1, …, are added to ZOO/splits.json; pack takes them over, and train --config.split=NAME
runs all of them.

Example:
  probex split --zoo=my_zoo --by=gain --repeats=5 --group=device
"""

from absl import flags

from experiments import cli, label_steps
from probex_jax.bucket_paths import as_path

_ZOO = flags.DEFINE_string("zoo", None, "Folder of models.", required=True)
_BY = flags.DEFINE_string(
    "by", "", "Column of classes or numbers. Default: what labels.json or the models' headers say."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "How many splits, with consecutive seeds.", lower_bound=1
)
_GROUP = flags.DEFINE_string("group", None, "Column of groups, each of which stays in one part.")
_NAME = flags.DEFINE_string("name", None, 'Name of the splits. Default: --by, or "split".')
_LABELS = flags.DEFINE_string(
    "labels",
    None,
    "File of labels elsewhere, or sources as pack takes them. Default: files in ZOO.",
)
_FRACTIONS = flags.DEFINE_list("fractions", ["0.6", "0.15", "0.25"], "Of train, val and test.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first split.", lower_bound=0)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace splits of these names.")


def main() -> None:
    print(
        cli.table(
            label_steps.split(
                as_path(_ZOO.value),
                _BY.value,
                repeats=_REPEATS.value,
                group=_GROUP.value,
                name=_NAME.value or _BY.value or "split",
                labels=_LABELS.value,
                fractions=_FRACTIONS.value,
                seed=_SEED.value,
                overwrite=_OVERWRITE.value,
            )
        )
    )


if __name__ == "__main__":
    cli.run(main)
