"""Work on items a few at a time, in threads, with the results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int,
    beyond: int | None = None,
    stop: Callable[[], object] | None = None,
) -> Generator[tuple[_Item, _Result]]:
    """Calls a function on items, so many at a time and a few ahead of whoever takes the results.

    Unlike `ThreadPoolExecutor.map` it begins no more than it is asked for, so that an interrupted
    run ends soon, and an endless iterable is no problem.

    Args:
      function: what is called, in threads.
      items: on what.
      workers: how many at a time.
      beyond: how many are begun, or wait, beside the one whose result is taken; None for one more
        than there are workers.
      stop: tells the calls that are under way to end, when whoever takes the results stops; they
        are then waited for. Without it they end in their own time.

    Yields:
      Each item with its result, in order.

    Example:
      >>> list(ahead(len, ["a", "bcd"], workers=2))
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
