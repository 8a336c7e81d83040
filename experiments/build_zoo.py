"""Fine-tunes the miniature trees and writes them in Model-J's layout; run again to resume.

Example:
  python -m experiments.build_zoo --config=configs/zoo_miniature.py:demo --out=out/zoo
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import cli, steps

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/zoo_miniature.py",
    "The zoo's config; append :default, :demo or :tiny for a size.",
)
_OUT = flags.DEFINE_string("out", None, "Folder to build in.", required=True)


def main() -> None:
    summaries = steps.build_zoo(_CONFIG.value.to_dict(), Path(_OUT.value))
    print(cli.table([steps.zoo_row(summary) for summary in summaries]))


if __name__ == "__main__":
    cli.run(main)
