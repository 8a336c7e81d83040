"""How the values that a file states are read: as texts, words, numbers and counts, within limits.

Each function takes the values that stand at one place, of any type, and returns what is usable.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import literal_strings

MAX_LISTED, MAX_MEMBERS = 64, 1000
_MAX_CHARACTERS, _MAX_TEXT = 200, 1000
_MAX_LABELS, _MAX_TAGS = 10_000, 500
_MAX_COUNT, _MAX_NUMBER = 10**9, 1e9
_NOTHING = {"", "none", "null", "~", "[]", "{}"}  # kohya writes "None" for what it does not know
_NO_NAME = re.compile(r"(?:LABEL|label|class)_?\d+|\d+")  # classes that nobody named
# Of a folder: "10_" before its name, and " (2)" where it is in several datasets.
_REPEATS, _AGAIN = re.compile(r"^\d+_(?=.)"), re.compile(r" \(\d+\)$")


def name_of(value: Any, most: int = _MAX_CHARACTERS) -> str:
    """A text of one printable line; "" for anything else."""
    text = value.strip() if isinstance(value, str) else ""
    usable = len(text) <= most and text.isprintable() and text.lower() not in _NOTHING
    return text if usable else ""


def first_text(values: Sequence[Any]) -> str:
    """The first line that is a name; "" if none is."""
    return next((name for value in values if (name := name_of(value))), "")


def first_prose(values: Sequence[Any]) -> str:
    """The first text of any length, on one line, cut."""
    texts = (" ".join(v[: 4 * _MAX_TEXT].split()) for v in values if isinstance(v, str))
    cut = (text[:_MAX_TEXT] + "…" * (len(text) > _MAX_TEXT) for text in texts)
    return next((name for text in cut if (name := name_of(text, _MAX_TEXT + 1))), "")


def as_list(value: Any) -> list[Any]:
    """A list as it is, up to its limit; anything else as a list of one."""
    return value[:MAX_MEMBERS] if isinstance(value, list) else [value]


def texts(values: Sequence[Any]) -> tuple[str, ...]:
    """All texts, in lists or alone, each once."""
    found = (first_prose([one]) for value in values for one in as_list(value))
    return tuple(dict.fromkeys(filter(None, found)))[:MAX_LISTED]


def words(values: Sequence[Any]) -> tuple[str, ...]:
    """Lists, or texts with commas."""
    lines = [v[: 8 * _MAX_TEXT] for value in values for v in as_list(value) if isinstance(v, str)]
    found = (name_of(part) for line in lines for part in line.split(","))
    return tuple(dict.fromkeys(filter(None, found)))[:MAX_LISTED]


def first_number(values: Sequence[Any], most: float = _MAX_NUMBER) -> float:
    """The first positive number, also one written as text; 0 if there is none."""
    for value in values:
        try:
            number = float(value) if isinstance(value, str | int | float) else 0.0
        except (ValueError, OverflowError):
            continue
        if math.isfinite(number) and 0 < number <= most:
            return number
    return 0.0


def first_count(values: Sequence[Any]) -> int:
    """As `first_number`, rounded down."""
    return int(first_number(values, _MAX_COUNT))


def image_counts(values: Sequence[Any]) -> dict[str, int]:
    """{folder: {tag: images}}; a folder of several datasets, as of two resolutions, counts once."""
    counts: Counter[str] = Counter()
    folders: dict[str, Counter[str]] = {}
    for value in values:
        for folder, inner in value.items() if isinstance(value, dict) else ():
            of_folder: Counter[str] = Counter()
            for tag, count in (inner if isinstance(inner, dict) else {}).items():
                if (name := name_of(tag)) and type(count) is int and 0 < count <= _MAX_COUNT:
                    of_folder[name] += count
            folders[folder] = folders.get(folder, of_folder) | of_folder  # the larger count
    for of_folder in folders.values():
        counts.update(of_folder)
    return dict(counts.most_common(_MAX_TAGS))


def folder_counts(values: Sequence[Any]) -> dict[str, int]:
    """{folder: {"img_count": images}}; the keys of tags name folders, too.

    The same folder in several datasets, as of two resolutions, is "10_cat", "10_cat (2)" and so on,
    or stands there again.
    """
    once: dict[str, int] = {}
    for value in values:
        if isinstance(value, dict) and isinstance(value.get("image_dir"), str):
            value = {value["image_dir"]: value}  # a subset of ss_datasets
        for folder, inner in value.items() if isinstance(value, dict) else ():
            first = _AGAIN.sub("", folder)
            folder = first if first in value else folder
            count = first_count([inner.get("img_count")] if isinstance(inner, dict) else [])
            once[folder] = max(count, once.get(folder, 0))
    found: Counter[str] = Counter()
    for folder, count in once.items():
        if name := name_of(_REPEATS.sub("", last_name(folder))):
            found[name] += count
    return dict(found.most_common())


def last_name(folder: str) -> str:
    """The last folder of a path, of any system."""
    return re.split(r"[/\\]", folder.rstrip("/\\"))[-1]


def listed_labels(values: Sequence[Any]) -> tuple[str, ...]:
    """A list of classes, as JSON or as Python writes it."""
    value = values[0] if values else ()
    try:
        value = literal_strings(value, "") if isinstance(value, str) else value
    except ProbexError:
        return ()
    return _distinct(value)


def one_label(values: Sequence[Any]) -> tuple[str, ...]:
    """A class each."""
    return _distinct(list(values))


def named_labels(values: Sequence[Any]) -> tuple[str, ...]:
    """The classes of an `id2label`; none if nobody named them."""
    labels = _distinct(list(values[0].values())) if values and isinstance(values[0], dict) else ()
    return () if all(map(_NO_NAME.fullmatch, labels)) else labels


def _distinct(names: Any) -> tuple[str, ...]:
    """Names of classes; none if one is no name."""
    if not isinstance(names, list) or len(names) > _MAX_LABELS or not all(map(name_of, names)):
        return ()
    return tuple(dict.fromkeys(map(name_of, names)))
