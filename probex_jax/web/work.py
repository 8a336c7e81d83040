"""Who does the work: threads, few of them at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

_T = TypeVar("_T")

# Models that are read at the same time, and searches.
_READERS, _SEARCHERS = 2, 2


class Work:
    """Runs blocking functions in threads, one kind not waiting for the other."""

    def __init__(self) -> None:
        self._readers, self._searchers = CapacityLimiter(_READERS), CapacityLimiter(_SEARCHERS)

    async def read(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What reads models."""
        return await to_thread.run_sync(function, *arguments, limiter=self._readers)

    async def search(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What reads no model."""
        return await to_thread.run_sync(function, *arguments, limiter=self._searchers)
