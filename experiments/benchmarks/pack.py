"""Suite `pack`: packing model files from a warm page cache, against copying the same bytes.

The measurement is that of `experiments/benchmarks/packing.py`, which gives medians: of each way
there is that one time here. The limit is copying in the kernel; beside it stands reading into a
buffer and writing that. Peaks of memory are for zoos of several sizes.
"""

from collections.abc import Mapping
from importlib import import_module, util
from typing import Any

from experiments.benchmarks.figures import Figure

_MODULE = "experiments.benchmarks.packing"
# Arguments of `packing.measure`.
DEFAULT: dict[str, Any] = {}
QUICK: dict[str, Any] = {"memory_models": ()}


def measure(sizes: Mapping[str, Any], repeats: int) -> list[Figure]:
    """The figures of the suite."""
    if util.find_spec(_MODULE) is None:
        return []
    rows = import_module(_MODULE).measure(repeats=repeats, **sizes)
    figures = {"rate": _rate, "memory": _memory}
    return [figures[row["what"]](row) for row in rows]


def _rate(row: Mapping[str, Any]) -> Figure:
    rates = {name: row[f"{name}, GB/s"] for name in ("pack", "copyfile", "read and write")}
    gigabytes = row["MB"] / 1e3
    return Figure(
        f"{row['models']}, {row['MB']:,.0f} MB",
        "GB/s",
        dict.fromkeys(rates, gigabytes),
        {name: [gigabytes / rate] for name, rate in rates.items()},
        limit="copyfile",
        limit_is=f"copying in the kernel, {rates['copyfile']:.2f} GB/s",
        notes={"by CPU time": row["pack / copyfile, by CPU time"]},
    )


def _memory(row: Mapping[str, Any]) -> Figure:
    models = float(row["models"])
    return Figure(
        f"memory, {row['models']} models of {row['GB']:.2f} GB",
        "models/s",
        {"pack": models},
        {"pack": [models / row["models/s"]]},
        notes={name: row[name] for name in ("imports, MiB", "peak, MiB")},
    )
