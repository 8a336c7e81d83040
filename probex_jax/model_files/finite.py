"""Whether weights are numbers: NaN and infinite ones are refused."""

import math

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import quoted

# One row of a dot product; the library behind it would use threads of its own for 10,000.
_ROW = 4096


def count_unfit(values: np.ndarray) -> int:
    """How many values are NaN or infinite.

    The sum of squares, one pass at the speed of memory, is finite if all values are. Where it is
    not, squares may have overflowed, and the values are looked at one by one.

    Args:
      values: float32 [n].

    Example:
      >>> count_unfit(np.array([1, np.inf, np.nan], np.float32))
      2
      >>> count_unfit(np.array([3e38, -3e38], np.float32))
      0
    """
    whole = len(values) // _ROW * _ROW
    rows = values[:whole].reshape(-1, _ROW)
    with np.errstate(all="ignore"):
        total = float(np.vecdot(rows, rows).sum())
        if whole < len(values):
            total += float(np.vecdot(values[whole:], values[whole:]))
    return 0 if math.isfinite(total) else len(values) - int(np.count_nonzero(np.isfinite(values)))


def unfit(where: str, name: str, bad: int, size: int) -> ProbexError:
    """The error for a layer some of whose values are NaN or infinite."""
    return ProbexError(
        f"{where}: layer {quoted(name)}: {bad} of {size} values are NaN or "
        "infinite in float32, expected finite weights"
    )
