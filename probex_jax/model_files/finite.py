"""Finding NaN and infinite weights, which are refused."""

import math

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import quoted

# The length of one dot product; from 10,000 on, BLAS would start threads of its own.
_ROW = 4096


def count_unfit(values: np.ndarray) -> int:
    """The number of values that are NaN or infinite.

    The sum of squares takes one pass at the speed of memory. If it is finite, so are all values;
    otherwise squares may have overflowed, and the values are checked one by one.

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


def checked(
    where: str, name: str, values: np.ndarray, noted: dict[str, tuple[int, int]] | None = None
) -> np.ndarray:
    """Values that are finite.

    Args:
      where: the file, for the error.
      name: of the layer or tensor.
      values: contiguous float32, of the caller's own.
      noted: takes the name with how many of how many values are NaN or infinite; these become
        zeros. None to refuse them.

    Raises:
      ProbexError: if there are some, and they are refused.
    """
    bad = count_unfit(values.ravel())
    if bad and noted is None:
        raise ProbexError(
            f"{where}: layer {quoted(name)}: {bad} of {values.size} values are NaN or "
            "infinite in float32, expected finite weights"
        )
    if bad and noted is not None:
        noted[name] = max(noted.get(name, (0, 0)), (bad, values.size))
        return np.where(np.isfinite(values), values, np.float32(0))
    return values
