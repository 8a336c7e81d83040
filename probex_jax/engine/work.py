"""What an engine is given, and what it promises."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from probex_jax.errors import ProbexError

_Item = TypeVar("_Item")

# A few models, layers or whatever is worked on; they are computed together.
Part = Sequence[Any]


class Died(ProbexError):
    """The result of an item that ended the process of each worker that took it."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Work:
    """What a worker does with parts.

    Args:
      read: called with an item, in one of several threads and ahead of `compute`; for what waits
        for disks and servers.
      compute: called with a part and what was read of its items, one part at a time; returns a
        result for each item.
      close: called once no more parts come, also early, to make running calls of `read` return.
    """

    read: Callable[[Any], Any]
    compute: Callable[[Part, Sequence[Any]], Sequence[Any]]
    close: Callable[[], object] = _nothing


class Size(NamedTuple):
    """How large an engine is.

    Args:
      workers: how many there are, if there are as many parts.
      beside: how many of them share a machine and its memory, at most.
    """

    workers: int
    beside: int


class Engine(Protocol):
    """Does the same work on many parts; nobody else knows where."""

    @property
    def is_here(self) -> bool:
        """Whether the work is done in this process, by objects that it has already."""

    def size(self) -> Size:
        """How many workers it has."""

    def map(
        self,
        make: Callable[[], Work],
        parts: Iterable[Part],
        *,
        readers: int = 4,
        ahead: int = 1,
    ) -> Generator[tuple[Part, Sequence[Any]]]:
        """Does the work on parts, a few of them ahead of the consumer.

        What raises in a worker is raised here. Ends with its workers when it is closed.

        Args:
          make: called once by each worker; elsewhere it arrives pickled.
          parts: taken one by one, as workers become free; they may be endless.
          readers: threads of each worker that call `Work.read`.
          ahead: how many parts a worker reads beyond the one that it computes.

        Yields:
          Each part in order with a result for each of its items: that of `Work.compute`, or `Died`.
        """


def in_parts(items: Iterable[_Item], size: int) -> Iterator[tuple[_Item, ...]]:
    """Divides items into parts; like `itertools.batched`, which needs Python 3.12.

    Args:
      items: any number.
      size: of each part but the last, which may be smaller.

    Returns:
      The parts, each made when it is asked for.

    Example:
      >>> list(in_parts("abcde", 2))
      [('a', 'b'), ('c', 'd'), ('e',)]
    """
    waiting = iter(items)
    while part := tuple(islice(waiting, size)):
        yield part


def flattened(
    done: Iterable[tuple[Part, Sequence[Any]]],
) -> Iterator[tuple[Any, Any]]:
    """Each item with its result, of parts with theirs.

    Args:
      done: from `Engine.map`.

    Returns:
      Items and results, in order.

    Example:
      >>> list(flattened([(("a", "b"), (1, 2)), (("c",), (3,))]))
      [('a', 1), ('b', 2), ('c', 3)]
    """
    for part, results in done:
        yield from zip(part, results, strict=True)
