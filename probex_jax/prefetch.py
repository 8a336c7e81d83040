"""Calls on items, a few at a time in threads ahead of the consumer, with the results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def prefetch(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int,
    beyond: int | None = None,
    stop: Callable[[], object] | None = None,
) -> Generator[tuple[_Item, _Result]]:
    """Calls a function on items in threads, a few items ahead of the consumer.

    Unlike `ThreadPoolExecutor.map`, which submits every item at once, it starts only what will soon
    be consumed: an interrupted run ends soon, and the items may be endless.

    Args:
      function: called with each item, in a thread.
      items: the items.
      workers: number of threads.
      beyond: how many further calls are started or queued beyond the one whose result is consumed;
        None for `workers` + 1.
      stop: called when the consumer stops early or at the end, to make running calls return; they
        are then waited for. Without it they run on in the background.

    Yields:
      Each item with its result, in order.

    Example:
      >>> list(prefetch(len, ["a", "bcd"], workers=2))
      [('a', 1), ('bcd', 3)]
    """
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > (workers + 1 if beyond is None else beyond):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        if stop is not None:
            stop()
        pool.shutdown(wait=stop is not None, cancel_futures=True)
