"""The page of what was measured where: written anew from the records beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks import figures
from probex_jax.files import write_text

_ABOUT = """# Speed

Written by `python -m experiments.benchmark --results=results/speed` from the records in
[speed/](speed/), which hold every single time. Rates are those of the median run; limit, PyTorch
and the alternatives took turns with ours in one process, so that ratios hold on a noisy machine,
too. What a suite does is told in `experiments/benchmarks/NAME.py`.
"""


def keep(record: Mapping[str, Any], folder: Path) -> None:
    """Writes the record of one suite, replacing that of the same device, and the page."""
    figures.save(folder / f"{_device(record)}-{record['suite']}.json", [record])
    records = [figures.load(path)[0] for path in sorted(folder.glob("*.json"))]
    write_text(folder.with_suffix(".md"), page(records))


def page(records: list[dict[str, Any]]) -> str:
    """Markdown: a section a device and suite."""
    parts = [_ABOUT]
    for record in records:
        machine, quick = record["machine"], ", smaller sizes (`--quick`)" if record["quick"] else ""
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        parts.append(
            f"## {record['suite']}, {_device(record)}{quick}\n\n"
            f"{figures.summary(record['figures'])}\n\n"
            f"`{record['command']}`, {record['date']}, commit {record['commit'] or 'unknown'}, "
            f"{record['figures'][0]['repeats']} repeats. {machine['cores']} cores of "
            f"{machine['cpu']}, {machine['devices']} x {machine['device']}, load at the end "
            f"{machine['load']:.1f}; {versions}.\n"
        )
    return "\n".join(parts)


def _device(record: Mapping[str, Any]) -> str:
    """Backend and device, as a file may be called: cpu, gpu-nvidia-h200."""
    machine = record["machine"]
    names = dict.fromkeys((machine["backend"], machine["device"].lower()))
    return "".join(c if c.isalnum() else "-" for c in "-".join(names))
