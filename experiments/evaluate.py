r"""Evaluates a trained expert on the models of a store, each task with a 95 % interval.

classify: which classes a model was trained on. zero_shot: the same for classes never seen in
training, by their texts alone. knn, occ (one-class classification) and retrieval: on the
representations, without text.

Example:
  python -m experiments.evaluate --experts=out/align --store=out/stores/MiniLoRA \
    --tasks=classify,zero_shot,knn,occ,retrieval
"""

from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli, steps
from probex_jax.experts import load_experts
from probex_jax.search import Subject

_EXPERTS = flags.DEFINE_string(
    "experts", None, "Work directory of a training, or one expert.", required=True
)
_STORE = flags.DEFINE_string("store", None, "Layer store to evaluate on.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Split of the store, for seen classes.")
_TASKS = flags.DEFINE_list(
    "tasks", ["classify"], "What to measure: classify, zero_shot, knn, occ, retrieval."
)
_NEIGHBOURS = flags.DEFINE_integer(
    "neighbours", 5, "Neighbours that vote in knn and are looked at in retrieval.", lower_bound=1
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where metrics.json goes; EXPERTS/evaluation.")


def main() -> None:
    subject = Subject(
        load_experts(Path(_EXPERTS.value)),
        px.LayerStore.open(_STORE.value),
        _SPLIT.value,
        _NEIGHBOURS.value,
    )
    workdir = Path(_WORKDIR.value or f"{_EXPERTS.value}/evaluation")
    measured = steps.evaluate(subject, _TASKS.value, workdir)
    for figure in measured:
        rows = [{"class": name, "accuracy": value} for name, value in figure.by_class.items()]
        if rows:
            print(cli.table(rows), end="\n\n")
    print(cli.table([steps.measured_row(figure) for figure in measured]))


if __name__ == "__main__":
    cli.run(main)
