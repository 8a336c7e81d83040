"""The workers of one map on a cluster, and what each of them has to do.

Ray replaces dead actors and repeats their calls, too, but charges a death to all calls that an
actor had. Here the driver does both, and finds out which item it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from probex_jax.engine.work import Died, Part
from probex_jax.errors import ProbexError

# So often an item may end a worker.
_DEATHS = 3
# Workers in a row that die before they are ready.
_STARTS = 3
_LOOK_S, _STOP_S = 1.0, 2.0


class Task:
    """A part on its way to its results.

    Args:
      part: the items.

    Attributes:
      results: of each item; None until all are there.
    """

    def __init__(self, part: Part):
        self.part = part
        self.results: list[Any] | None = None if part else []
        self._deaths = [0] * len(part)
        self._dead: dict[int, Died] = {}
        self._alone: list[int] | None = None  # places to be tried one by one; None before that

    @property
    def places(self) -> list[int]:
        """Of the items that are to be done next, together."""
        if self._alone:
            return self._alone[:1]
        return [place for place in range(len(self.part)) if place not in self._dead]

    @property
    def is_suspect(self) -> bool:
        """Whether a worker died with it; it then has its worker for itself."""
        return any(self._deaths)

    def succeed(self, results: Sequence[Any]) -> None:
        """Notes the results of the items that were to be done."""
        if self._alone:
            self._deaths[self._alone.pop(0)] = 0
        else:
            found = iter(results)
            count = range(len(self.part))
            self.results = [self._dead.get(place) or next(found) for place in count]

    def die(self) -> None:
        """Notes that the worker died which had the items that were to be done."""
        places = self.places
        for place in places:
            self._deaths[place] += 1
        if min(self._deaths[place] for place in places) < _DEATHS - (len(places) > 1):
            return
        if len(places) > 1 and self._alone is None:
            self._alone = places
            return
        for place in places:
            self._dead[place] = Died(f"{self._deaths[place]} processes ended while they read it")
        if self._alone:
            self._alone.pop(0)
        if not self.places:
            self.results = [self._dead[place] for place in range(len(self.part))]


@dataclass
class _Member:
    actor: Any
    starting: Any
    is_ready: bool = False
    calls: dict[Any, Task] = field(default_factory=dict)


class Crew:
    """So many workers, each with a few calls at a time.

    Args:
      ray: the module, connected.
      new: makes an actor of class `Worker`.
      made: what each is started with.
      size: how many, if there are as many tasks.
      at_once: calls of each.
    """

    def __init__(
        self, ray: Any, new: Callable[[], Any], made: tuple[bytes, int], size: int, at_once: int
    ):
        self._ray, self._new, self._size, self._at_once = ray, new, size, at_once
        self._made = ray.put(made)
        self._queue: deque[Task] = deque()
        self._members: list[_Member] = []
        self._unstarted = 0

    def add(self, task: Task) -> None:
        """Has a task done by whoever is free next."""
        if task.results is not None:
            return
        self._queue.append(task)
        if len(self._members) < self._size:
            self._hire()
        self._hand_out()

    def wait(self) -> None:
        """Waits a moment for results, and takes note of them."""
        self._hand_out()
        refs = {ref: member for member in self._members for ref in member.calls}
        refs |= {m.starting: m for m in self._members if not m.is_ready}
        ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=_LOOK_S)
        more, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in dict.fromkeys([*ready, *more]):
            if refs[ref] in self._members:  # not buried meanwhile
                self._collect(refs[ref], ref)

    def dismiss(self) -> None:
        """Ends all workers; what they have open they close, if they do so at once."""
        stops = [member.actor.stop.remote() for member in self._members if member.is_ready]
        if stops:
            self._ray.wait(stops, num_returns=len(stops), timeout=_STOP_S)
        for member in self._members:
            self._ray.kill(member.actor)
        self._members.clear()

    def _hire(self) -> None:
        actor = self._new()
        self._members.append(_Member(actor, actor.start.remote(self._made)))

    def _hand_out(self) -> None:
        """Gives tasks to members that are ready, the first ones first."""
        while self._queue:
            suspect = self._queue[0].is_suspect
            most = 1 if suspect else self._at_once
            free = [
                member
                for member in self._members
                if member.is_ready
                and len(member.calls) < most
                and not any(task.is_suspect for task in member.calls.values())
            ]
            if not free:
                return
            member, task = min(free, key=lambda m: len(m.calls)), self._queue.popleft()
            items = [task.part[place] for place in task.places]
            member.calls[member.actor.run.remote(items)] = task

    def _collect(self, member: _Member, ref: Any) -> None:
        errors = self._ray.exceptions
        try:
            found = self._ray.get(ref)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            self._bury(member, error)
            return
        if ref == member.starting:
            member.is_ready, self._unstarted = True, 0
        else:
            task = member.calls.pop(ref)
            task.succeed(found)
            if task.results is None:
                self._queue.appendleft(task)

    def _bury(self, member: _Member, error: Exception) -> None:
        """Replaces a dead worker; what it had is done again."""
        self._members.remove(member)
        self._ray.kill(member.actor)  # it may only be out of reach
        if not member.is_ready:
            self._unstarted += 1
            if self._unstarted >= _STARTS:
                raise ProbexError(f"workers do not start: {' '.join(str(error).split())[:300]}")
        for task in reversed(member.calls.values()):
            task.die()
            if task.results is None:
                self._queue.appendleft(task)
        self._hire()
