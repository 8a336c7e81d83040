"""Thread pools, small so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from probex_jax.web.uploads import Full

_T = TypeVar("_T")

# Concurrent local models, hub models, searches, and rendered answers.
_READERS, _FETCHERS, _SEARCHERS, _DRAWERS = 2, 2, 2, 2
_MOST_WAITING = 1000


class Work:
    """Runs blocking functions in threads, with a separate limit for each kind of work."""

    def __init__(self) -> None:
        self._readers, self._fetchers = CapacityLimiter(_READERS), CapacityLimiter(_FETCHERS)
        self._searchers, self._drawers = CapacityLimiter(_SEARCHERS), CapacityLimiter(_DRAWERS)

    async def read(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Reads local models."""
        return await _run(self._readers, function, *arguments)

    async def fetch(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Reads models from the hub, which may be slow."""
        return await _run(self._fetchers, function, *arguments)

    async def search(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Searches, without reading a model."""
        return await _run(self._searchers, function, *arguments)

    async def draw(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Renders answers with pictures and maps."""
        return await _run(self._drawers, function, *arguments)


async def _run(limiter: CapacityLimiter, function: Callable[..., _T], *arguments: Any) -> _T:
    if limiter.statistics().tasks_waiting >= _MOST_WAITING:
        raise Full("too many requests at the moment; try again in a minute")
    return await to_thread.run_sync(function, *arguments, limiter=limiter)
