"""Markdown tables that read well in a terminal, too."""

from collections.abc import Mapping, Sequence
from typing import Any

from probex_jax.errors import one_line


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned Markdown table.

    Args:
      rows: mappings with the same keys, which are the header; floats are shown with three digits.

    Returns:
      The lines of the table.

    Example:
      >>> rows = [{"method": "ProbeX", "accuracy": 0.876}, {"method": "Dense", "accuracy": 0.9}]
      >>> print(table(rows))
      | method | accuracy |
      | ------ | -------- |
      | ProbeX | 0.876    |
      | Dense  | 0.900    |
    """
    header = list(rows[0])
    lines = [header, *([_text(row[key]) for key in header] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    # Names of layers and classes come from strangers.
    return one_line(value).replace("|", "\\|")
