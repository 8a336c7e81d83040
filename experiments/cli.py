"""What the commands share: exit codes, progress bars, tables."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from tqdm import tqdm

from probex_jax.errors import ProbexError


def run(main: Callable[[], None], *, required: Sequence[str] = ()) -> None:
    """Runs a command: 0 on success; 2, with one line and no traceback, on a user's mistake."""
    flags.mark_flags_as_required(list(required))

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise ProbexError(f"unexpected argument {argv[1]!r}: options are --name=value")
            main()
        except ProbexError as error:
            _exit(str(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            _exit(f"{error.filename or 'output'}: {os.strerror(error.errno).lower()}")

    app.run(guarded)


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def progress(total: int, what: str, unit: str = "it") -> tqdm:
    """A progress bar with ETA on standard error; silent where that is not a terminal."""
    return tqdm(total=total, desc=what, unit=unit, disable=None, dynamic_ncols=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table, aligned to be read in a terminal as well."""
    header = list(rows[0])
    cells = [header] + [[_cell(row[key]) for key in header] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
             for line in cells)
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

