"""Packs the model files of a zoo into a layer store; run again to resume or to add models.

Example:
  python -m experiments.pack --zoo=out/zoo/MiniSupViT --store=out/stores/MiniSupViT
"""

from pathlib import Path

from absl import flags

from experiments import cli, steps

_ZOO = flags.DEFINE_string("zoo", None, "Folder with train/, val/, test/.", required=True)
_STORE = flags.DEFINE_string("store", None, "Folder of the store.", required=True)
_LAYERS = flags.DEFINE_string(
    "layers", "", "Names, numbers or regular expressions, separated by commas; empty for all."
)


def main() -> None:
    summary = steps.pack(Path(_ZOO.value), Path(_STORE.value), _LAYERS.value)
    print(cli.table([steps.pack_row(summary)]))


if __name__ == "__main__":
    cli.run(main)
