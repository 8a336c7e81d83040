"""Trains one expert per layer, chooses the best on validation and tests them once; resumes.

Without --config it is configs/default.py: centred ridge regression, the best layers together.

Example:
  python -m experiments.train --workdir=out/trained --config.store=out/stores/MiniSupViT
"""

from pathlib import Path

from absl import flags

from experiments import cli, processes, steps

_CONFIG = cli.config("configs/default.py", "What to train, and how.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)


def main() -> None:
    devices, share = processes.join()
    metrics = steps.train(
        _CONFIG.value.to_dict(), Path(_WORKDIR.value), devices=devices, share=share
    )
    if not devices.writes:
        return
    rows = steps.layer_rows(metrics)
    if rows:
        print(cli.table(rows), end="\n\n")
    print(cli.table([steps.train_row(metrics)]))


if __name__ == "__main__":
    cli.run(main)
