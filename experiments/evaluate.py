r"""Evaluates a trained expert on a store; each figure has a 95 % interval.

Tasks: classify, which classes a model was trained on; zero_shot, the same for classes never seen in
training, by their texts; tags, free tags ranked by similarity; knn, occ (one-class classification)
and retrieval, on the representations. If train repeated a split in a WORKDIR, all repeats are
evaluated: mean and spread. --baselines adds scikit-learn's methods on the same models.

Example:
  probex evaluate --experts=out/align \
    --store=out/stores/MiniLoRA --tasks=classify,zero_shot,knn,occ,retrieval
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import baseline_steps, cli, repeats, steps, view_steps
from probex_jax.bucket_paths import as_path
from probex_jax.claims import settings_of
from probex_jax.experts import load_experts
from probex_jax.files import read_json
from probex_jax.search import Baselines, Measured, Subject

_EXPERTS = flags.DEFINE_string(
    "experts", None, "A --workdir of train, or one expert in it.", required=True
)
_STORE = flags.DEFINE_string(
    "store", None, "Layer store made by pack. Default: the one trained on with labels or a split."
)
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
    experts = as_path(_EXPERTS.value)
    workdir = as_path(_WORKDIR.value or experts / "evaluation")
    names = repeats.of(experts)
    if not names:
        _print(*_evaluated(experts, workdir))
        return
    for name in names:
        _evaluated(experts / name, workdir / name)
    found = {name: read_json(workdir / name / "metrics.json") for name in names}
    about = {name: settings_of(experts)[name] for name in ("labels", "split")}
    summary = repeats.write_summary(workdir / "metrics.json", about, found)
    print(cli.table(repeats.rows(summary, without="baselines.")))
    for line in repeats.not_above_chance(summary, without="baselines."):
        print(line)
    if _BASELINES.value:
        print("\n" + cli.table(baseline_steps.rows_over_repeats(found)))


def _evaluated(experts: Path, workdir: Path) -> tuple[list[Measured], Baselines | None]:
    """The figures of one expert and, where they are asked for, of the baselines."""
    loaded = load_experts(experts)
    if loaded["val"].card.attributes:
        raise px.ProbexError(
            f"{experts}: an expert of several attributes, whose figures train printed and keeps in "
            "metrics.json; train on one of them, --config.task=NAME, to evaluate that"
        )
    store = view_steps.store_of(experts, _STORE.value)
    subject = Subject(loaded, store, _SPLIT.value, _NEIGHBOURS.value)
    measured = steps.evaluate(subject, _TASKS.value, workdir)
    known = {"train", "val"} if loaded["val"].card.selected_on != "val" else {"train"}
    if _SPLIT.value in known:
        print(
            f"{_SPLIT.value}: the expert was fitted to these models; of others it knows less",
            file=sys.stderr,
        )
    return measured, baseline_steps.measure(subject, workdir) if _BASELINES.value else None


def _print(measured: Sequence[Measured], compared: Baselines | None) -> None:
    if rows := steps.class_rows(measured):
        print(cli.table(rows), end="\n\n")
    print(cli.table([steps.measured_row(figure) for figure in measured]))
    for line in steps.measured_not_above_chance(measured):
        print(line)
    if compared is not None:
        each = (compared.ours, *compared.others)
        print("\n" + cli.table([baseline_steps.row(method) for method in each]))
        for line in baseline_steps.in_words(compared):
            print(line)


if __name__ == "__main__":
    cli.run(main)
