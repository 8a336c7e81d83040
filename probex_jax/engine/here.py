"""The engine that needs nothing: threads of this process read, its main thread computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from probex_jax.engine.work import Part, Size, Work


@dataclass(frozen=True)
class Here:
    """Works in this process.

    Example:
      >>> work = Work(read=len, compute=lambda part, lengths: [2 * n for n in lengths])
      >>> list(Here().map(lambda: work, [("a", "bcd"), ("ef",)]))
      [(('a', 'bcd'), [2, 6]), (('ef',), [4])]
    """

    is_here = True

    def size(self) -> Size:
        """As `Engine.size`."""
        return Size(1, 1)

    def map(
        self,
        make: Callable[[], Work],
        parts: Iterable[Part],
        *,
        readers: int = 4,
        ahead: int = 1,
        computes: bool = True,
    ) -> Generator[tuple[Part, Sequence[Any]]]:
        """As `Engine.map`; the consumer's thread computes."""
        work = make()
        waiting: deque[tuple[Part, list[Future]]] = deque()
        pool = ThreadPoolExecutor(readers)
        try:
            for part in parts:
                waiting.append((part, [pool.submit(work.read, item) for item in part]))
                if len(waiting) > ahead:
                    yield _computed(work, *waiting.popleft())
            while waiting:
                yield _computed(work, *waiting.popleft())
        finally:
            work.close()
            # Whoever ends early does not wait for what is being read.
            pool.shutdown(wait=False, cancel_futures=True)


def _computed(work: Work, part: Part, read: Sequence[Future]) -> tuple[Part, Sequence[Any]]:
    return part, work.compute(part, [future.result() for future in read])


HERE = Here()
