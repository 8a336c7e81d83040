"""Calls of LanceDB, repeated where a bucket's answers break off."""

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from probex_jax.buckets import Unreachable, stores

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
