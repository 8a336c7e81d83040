"""What a suite measured: figures, the table of them, and the record of where they were measured."""

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from probex_jax.files import write_json
from probex_jax.reports import table

PYTORCH = "PyTorch"


@dataclass(frozen=True)
class Figure:
    """A rate, more being better, beside a limit and other ways to do the same work.

    Args:
      name: what was done.
      unit: of the rate, such as "models/s".
      work: how much one run of a candidate does, in that unit times seconds, by candidate.
      seconds: wall-clock seconds of every run of each candidate, all in one process and in turns.
        The first candidate is ours.
      limit: the candidate whose rate is the limit; None where there is none.
      limit_is: the limit in words.
      notes: further results, by name.
    """

    name: str
    unit: str
    work: Mapping[str, float]
    seconds: Mapping[str, Sequence[float]]
    limit: str | None = None
    limit_is: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def rate(self, candidate: str) -> float:
        """Of the median run."""
        return self.work[candidate] / statistics.median(self.seconds[candidate])

    def as_json(self) -> dict[str, Any]:
        """All of it, fraction and ratios worked out."""
        ours = next(iter(self.seconds))
        value = self.rate(ours)
        limit = None if self.limit is None else self.rate(self.limit)
        others = {n: self.rate(n) for n in self.seconds if n not in (ours, self.limit)}
        torch = others.pop(PYTORCH, None)
        return {
            "name": self.name,
            "value": value,
            "unit": self.unit,
            "limit": limit,
            "limit_is": self.limit_is,
            "fraction": None if limit is None else value / limit,
            "torch": torch,
            "torch_ratio": None if torch is None else value / torch,
            "others": others,
            "other_ratios": {name: value / rate for name, rate in others.items()},
            "repeats": len(self.seconds[ours]),
            "seconds": {name: list(runs) for name, runs in self.seconds.items()},
            "notes": dict(self.notes),
        }


def record(suite: str, figures: Sequence[Figure], *, quick: bool) -> dict[str, Any]:
    """The figures of one suite with all that they depend on."""
    return {
        "suite": suite,
        "quick": quick,
        **about(),
        "figures": [figure.as_json() for figure in figures],
    }


def about() -> dict[str, Any]:
    """When, where, how and of which commit something is measured."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
    }


def keep(path: str | Path | None, figures: Any, **more: Any) -> None:
    """Writes what a benchmark measured, with all that it depends on; nothing without a path.

    Args:
      path: of the JSON file, in a folder that is made.
      figures: rows, or anything else that JSON holds.
      **more: such as seeds.
    """
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(path), {**about(), **more, "figures": figures})


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and number of values, and all of them."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "n": len(values), "values": list(values)}


def machine() -> dict[str, Any]:
    """What it was measured on; the load is what ran on average in the last minute."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "numpy", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def pytorch() -> ModuleType | None:
    """The versions in PyTorch to compare with, where it is installed."""
    try:
        from experiments.benchmarks import pytorch
    except ImportError:
        return None
    return pytorch


def summary(figures: Sequence[Mapping[str, Any]]) -> str:
    """Figures as `as_json` gives them, one a row."""
    return table([_row(figure) for figure in figures])


def _row(figure: Mapping[str, Any]) -> dict[str, str]:
    others = [f"{ratio:.3g}x {name}" for name, ratio in figure["other_ratios"].items()]
    notes = [f"{name} {_short(value)}" for name, value in figure["notes"].items()]
    return {
        "figure": figure["name"],
        "rate": f"{_short(figure['value'])} {figure['unit']}",
        "of the limit": _short(figure["fraction"]),
        "limit": figure["limit_is"],
        "against PyTorch": "" if figure["torch"] is None else f"{figure['torch_ratio']:.3g}x",
        "and": "; ".join(others + notes),
    }


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def save(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records as one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, list(records))


def load(path: Path) -> list[dict[str, Any]]:
    """Reads what `save` wrote."""
    return json.loads(path.read_text())


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this checkout; a plus sign after it where files were changed."""
    here = Path(__file__).parent
    try:
        told = [
            subprocess.run(["git", *what], cwd=here, capture_output=True, text=True, check=True)
            for what in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[0].stdout.strip() + ("+" if told[1].stdout.strip() else "")
