r"""Evaluates a trained expert on a store; each figure has a 95 % interval.

Tasks: classify, which classes a model was trained on; zero_shot, the same for classes never seen in
training, by their texts; knn, occ (one-class classification) and retrieval, on the representations.
--baselines adds what scikit-learn's methods make of the same models.

Example:
  python -m experiments.evaluate --experts=out/align \
    --store=out/stores/MiniLoRA --tasks=classify,zero_shot,knn,occ,retrieval
"""

from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import baseline_steps, cli, steps
from probex_jax.experts import load_experts
from probex_jax.search import Subject

_EXPERTS = flags.DEFINE_string(
    "experts", None, "A --workdir of train, or one expert in it.", required=True
)
_STORE = flags.DEFINE_string("store", None, "Layer store made by pack.", required=True)
_SPLIT = flags.DEFINE_string(
    "split", "test", "Split to evaluate on. Held-out classes have splits of their own."
)
_TASKS = flags.DEFINE_list("tasks", ["classify"], "What to measure.")
_NEIGHBOURS = flags.DEFINE_integer(
    "neighbours", 5, "Neighbours that knn and retrieval look at.", lower_bound=1
)
_BASELINES = flags.DEFINE_bool(
    "baselines", False, "Also measure scikit-learn's methods on all tensors, beside the expert."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for metrics.json. Default: EXPERTS/evaluation."
)


def main() -> None:
    subject = Subject(
        load_experts(Path(_EXPERTS.value)),
        px.LayerStore.open(_STORE.value),
        _SPLIT.value,
        _NEIGHBOURS.value,
    )
    workdir = Path(_WORKDIR.value or f"{_EXPERTS.value}/evaluation")
    measured = steps.evaluate(subject, _TASKS.value, workdir)
    if rows := steps.class_rows(measured):
        print(cli.table(rows), end="\n\n")
    print(cli.table([steps.measured_row(figure) for figure in measured]))
    for line in steps.measured_not_above_chance(measured):
        print(line)
    if _BASELINES.value:
        found = baseline_steps.measure(subject, workdir)
        print("\n" + cli.table([baseline_steps.row(each) for each in (found.ours, *found.others)]))
        for line in baseline_steps.in_words(found):
            print(line)


if __name__ == "__main__":
    cli.run(main)
