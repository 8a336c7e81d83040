"""Text of strangers in Markdown, and what the files of a model say of themselves."""

import re
from collections.abc import Mapping
from typing import Any

from probex_jax.model_files import Stated

_MAX_CHARACTERS = 100
_MAX_QUOTED = 20
# What is quoted of a model's files, in this order; classes, base and architecture stand elsewhere.
_QUOTED = {
    "title": "Title",
    "description": "Description",
    "triggers": "Trigger words",
    "topics": "Tags",
    "tags": "Tags of its images",
    "folders": "Folders of its images",
    "captions": "Example prompts",
    "datasets": "Datasets",
    "base_version": "Family of its base",
    "images": "Images",
    "resolution": "Resolution",
    "steps": "Steps",
    "epochs": "Epochs",
    "batch_size": "Batch size",
    "learning_rate": "Learning rate",
    "optimiser": "Optimiser",
    "method": "Method",
    "rank": "Rank",
    "alpha": "Alpha",
    "modules": "Modules",
    "task": "Task",
    "library": "Library",
    "author": "Author",
    "date": "Date",
    "licence": "Licence",
}


def quoted(said: Stated) -> str:
    """The other fields that files state, each with where it stands."""
    lines = []
    for name, what in _QUOTED.items():
        value = getattr(said, name)
        if not value:
            continue
        source = f" ({plain(said.sources[name])})" if name in said.sources else ""
        lines.append(f"- {what}: {_listed(value)}{source}\n")
    return "\n" + "".join(lines) if lines else ""


def _listed(value: Any) -> str:
    """A value that a file states: a text, a number, several, or several with numbers of images."""
    if isinstance(value, Mapping):
        each = [f"{code(name)} {count:,}" if count else code(name) for name, count in value.items()]
    elif isinstance(value, tuple):
        each = list(map(code, value))
    else:
        each = [code(value) if isinstance(value, str) else f"{value:,.10g}"]
    more = len(each) - _MAX_QUOTED
    return ", ".join(each[:_MAX_QUOTED]) + (f" and {more} more" if more > 0 else "")


def code(text: str) -> str:
    """Text of a stranger in a code span."""
    return f"`{plain(text).replace('`', chr(39))}`"


def escaped(text: str) -> str:
    """Text with Markdown escaped."""
    # GitHub makes links of the last two.
    return re.sub(r"([\\`*_\[\]<>|~&@]|:(?=//)|(?<=www)\.)", r"\\\1", plain(text))


def plain(text: str) -> str:
    """Text of a stranger on one line, cut; "?" for none."""
    shown = "".join(c if c.isprintable() else " " for c in text).strip() or "?"
    return shown if len(shown) <= _MAX_CHARACTERS else shown[: _MAX_CHARACTERS - 1] + "…"
