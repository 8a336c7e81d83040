"""Fields of a store's tables, which may be damaged: each raises a TypeError or a ValueError."""

from collections.abc import Callable
from typing import Any, TypeVar

from probex_jax.layer_store.arrays import Place

_Field = TypeVar("_Field")


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def text(value: Any) -> str:
    """A text."""
    return _of(str, value)


def listed(value: Any) -> list[Any]:
    """A list."""
    return _of(list, value)


def table(value: Any, read: Callable[[Any], _Field]) -> dict[str, _Field]:
    """An object, each field of which `read` takes."""
    return {name: read(field) for name, field in _of(dict, value).items()}


def positive(value: Any) -> int:
    """A whole number from 1 on."""
    if _of(int, value) < 1:
        raise ValueError(f"{value} is less than 1")
    return value


def place(value: Any) -> Place:
    """Where a vector is: array and first entry."""
    array, start = listed(value)
    return Place(positive(array + 1) - 1, positive(start + 1) - 1)


def shape(value: Any) -> tuple[int, int]:
    """Rows and columns."""
    rows, columns = listed(value)
    return positive(rows), positive(columns)
