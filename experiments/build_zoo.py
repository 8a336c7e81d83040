"""Fine-tunes the miniature trees and writes them in Model-J's layout; run again to resume.

Example:
  python -m experiments.build_zoo --config=configs/zoo_miniature.py:demo --out=out/zoo
"""

from pathlib import Path

from absl import flags

from experiments import cli, steps
from probex_jax.files import write_json

_CONFIG = cli.config(
    "configs/zoo_miniature.py", "The zoo's config; append :default, :demo or :tiny for a size."
)
_OUT = flags.DEFINE_string("out", None, "Folder to build in.", required=True)


def main() -> None:
    rows = [
        steps.zoo_row(tree) for tree in steps.build_zoo(_CONFIG.value.to_dict(), Path(_OUT.value))
    ]
    write_json(Path(_OUT.value) / "metrics.json", rows)
    print(cli.table(rows))


if __name__ == "__main__":
    cli.run(main)
