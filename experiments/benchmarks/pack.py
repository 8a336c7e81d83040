"""Suite `pack`: packing model files into a store, against copying the same bytes."""

from importlib import import_module, util
from typing import Any

from experiments.benchmarks.figures import Figure

_MODULE = "experiments.benchmarks.packing"
# Arguments of `packing.measure`.
DEFAULT: dict[str, Any] = {}
QUICK: dict[str, Any] = {}


def measure(sizes: dict[str, Any], repeats: int) -> list[Figure]:
    """The figures of the suite."""
    if util.find_spec(_MODULE) is None:
        return []
    return import_module(_MODULE).measure(repeats=repeats, **sizes)
