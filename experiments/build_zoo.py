"""Fine-tunes the miniature trees and writes them in Model-J's layout.

Example:
  python -m experiments.build_zoo --config=configs/zoo_miniature.py:demo --out=out/zoo
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import cli
from probex_jax.zoo import miniature

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/zoo_miniature.py",
    "The zoo's config; append :default, :demo or :tiny for a size.",
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder to build in; an interrupted build resumes.", required=True
)


def main() -> None:
    config = _CONFIG.value
    settings = miniature.Settings(**config.to_dict())
    with cli.progress(settings.models * len(settings.trees), "fine-tuning", "model") as bar:
        summaries = miniature.build(settings, Path(_OUT.value), bar.update)
    print(cli.table([_row(summary) for summary in summaries]))


def _row(summary: miniature.TreeSummary) -> dict[str, object]:
    return {
        "tree": summary.tree,
        "models": sum(summary.models.values()),
        **{split: summary.models.get(split, 0) for split in ("train", "val", "test")},
        "accuracy": summary.accuracy,
        "seconds": summary.seconds,
    }


if __name__ == "__main__":
    cli.run(main)
