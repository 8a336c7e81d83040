"""Writing the report of a run, as `train` and `demo` do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import steps
from experiments.costs import Costs
from probex_jax.claims import settings_of
from probex_jax.experts import Predictions
from probex_jax.experts.predictions import attribute_folder
from probex_jax.files import write_text
from probex_jax.reports import LabelledDescription, Run, Training, report
from probex_jax.search import Measured

NAME = "report.html"


def training(workdir: Path, metrics: Mapping[str, Any]) -> Training:
    """What is in the work directory of a training, for a report."""
    attributes = {
        name: Predictions.read(attribute_folder(workdir, name))
        for name in metrics.get("attributes", {})
    }
    found, settings = Predictions.read(workdir), settings_of(workdir)
    return Training(steps.method(metrics), metrics, found, settings, attributes)


def write_report(
    workdir: Path,
    title: str,
    trainings: Sequence[Training],
    *,
    measured: Mapping[str, Sequence[Measured]] | None = None,
    described: Sequence[LabelledDescription] = (),
) -> Path:
    """Writes `report.html`; what the steps cost is on record in the work directory."""
    costs = Costs(workdir)
    run = Run(title, costs.about, trainings, measured or {}, described, costs.steps)
    write_text(workdir / NAME, report(run))
    return workdir / NAME
