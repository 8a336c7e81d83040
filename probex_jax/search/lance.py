"""Calls of LanceDB: its errors in words, and again where a bucket's answer broke off."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from probex_jax.buckets import Unreachable, stores

LANCE_ERRORS = (ValueError, RuntimeError, OSError)
_MAX_REASON = 500  # characters of an error message of LanceDB
_T = TypeVar("_T")


def persisting(method: Callable[..., _T]) -> Callable[..., _T]:
    """The method, called again where an answer of a bucket broke off.

    Lance tries requests again, but for a list of files that breaks off. What is done twice is
    harmless: a row is of one path.
    """

    @functools.wraps(method)
    def again(*args: Any, **named: Any) -> _T:
        for wait_s in stores.PATIENCE.waits_s():
            try:
                return method(*args, **named)
            except Unreachable:
                time.sleep(wait_s)
        return method(*args, **named)

    return again


def in_sql(paths: Sequence[str]) -> str:
    """Texts as a list in SQL."""
    return ", ".join("'" + path.replace("'", "''") + "'" for path in paths)


def reason_of(error: BaseException) -> str:
    """What an error says, on one line without paths of its sources."""
    return " ".join(str(error).split())[:_MAX_REASON].partition(", /")[0]
