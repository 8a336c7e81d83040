"""The engine of a Ray cluster: workers are actors, each with reader threads of its own."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from probex_jax.engine.crew import Crew, Task
from probex_jax.engine.here import HERE
from probex_jax.engine.work import Engine, Part, Size, Work
from probex_jax.engine.worker import Worker
from probex_jax.errors import ProbexError

# CPUs of a cluster for each worker, where it has no GPUs and no number is given.
_CPUS = 4
_KNOCK_S = 10.0
# What this process called the cluster that it is in.
_JOINED: set[str] = set()


def engine_of(spec: str, workers: int = 0) -> Engine:
    """The engine that a text names.

    Args:
      spec: "threads"; or "ray:auto" for the cluster that this machine is a node of, "ray:local" for
        one that is started here, "ray:HOST:PORT" for that of a head node.
      workers: of a cluster, how many; 0 for one a GPU, or else one for every four CPUs.

    Returns:
      `HERE`, or a cluster that is not joined yet.

    Raises:
      ProbexError: if it names none.

    Example:
      >>> engine_of("threads"), engine_of("ray:10.0.0.1:6379", workers=8).address
      (Here(), '10.0.0.1:6379')
    """
    if spec == "threads":
        if workers:
            raise ProbexError(f"{workers} workers are those of a cluster: give an engine ray:…")
        return HERE
    kind, _, address = spec.partition(":")
    if kind != "ray" or not re.fullmatch(r"auto|local|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", address):
        raise ProbexError(
            f"engine {spec!r}: expected threads, ray:auto, ray:local or ray:HOST:PORT"
        )
    return Cluster(address, workers)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, which is joined when there is work and left when the process ends.

    Args:
      address: "auto", "local" or "HOST:PORT", as of `engine_of`.
      workers: how many; 0 as of `engine_of`.
      gpus: of each worker; None for one where the cluster has any.
    """

    address: str
    workers: int = 0
    gpus: float | None = None

    is_here = False

    def size(self) -> Size:
        """As `Engine.size`.

        Raises:
          ProbexError: as `map`.
        """
        ray = _joined(self.address)
        workers = self._size(ray, self._gpus(ray))
        able = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        return Size(workers, -(-workers // max(1, len(able))))

    def map(
        self,
        make: Callable[[], Work],
        parts: Iterable[Part],
        *,
        readers: int = 4,
        ahead: int = 1,
        computes: bool = True,
    ) -> Generator[tuple[Part, Sequence[Any]]]:
        """As `Engine.map`.

        A part whose worker dies is done again. If its workers go on dying, its items are tried one
        by one, and the part is done without those that are `Died`.

        Raises:
          ProbexError: if ray is missing, the cluster does not answer, or no worker starts.
        """
        ray = _joined(self.address)
        gpus, at_once = self._gpus(ray) if computes else 0.0, ahead + 1
        size = self._size(ray, gpus)
        coming, waiting = iter(parts), deque[Task]()
        made = (ray.cloudpickle.dumps(make), readers, os.getcwd())
        crew = Crew(ray, _maker(ray, gpus, at_once), made, size, at_once)
        try:
            while True:
                # As many again as the workers have, so that one slow part does not stop the others.
                while len(waiting) < 2 * size * at_once:
                    if (part := next(coming, None)) is None:
                        break
                    waiting.append(Task(part))
                    crew.add(waiting[-1])
                if not waiting:
                    return
                if waiting[0].results is None:
                    crew.wait()
                else:
                    task = waiting.popleft()
                    yield task.part, task.results  # type: ignore[misc]
        except (ray.exceptions.RayError, ConnectionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ProbexError(f"ray:{self.address}: the cluster failed: {reason}") from error
        finally:
            with suppress(Exception):
                crew.dismiss()

    def _gpus(self, ray: Any) -> float:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        return float(has_gpus) if self.gpus is None else self.gpus

    def _size(self, ray: Any, gpus: float) -> int:
        if self.workers:
            return self.workers
        has = ray.cluster_resources()
        return max(1, int(has.get("GPU", 0) // gpus if gpus else has.get("CPU", 1) // _CPUS))


def _maker(ray: Any, gpus: float, at_once: int) -> Callable[[], Any]:
    """What makes actors, spread over the nodes."""
    actor = ray.remote(Worker).options(
        num_cpus=1,
        num_gpus=gpus,
        max_concurrency=at_once + 1,
        max_restarts=0,
        scheduling_strategy="SPREAD",
    )
    return lambda: actor.remote(gpus)


def _joined(address: str) -> Any:
    """Ray, connected to the cluster."""
    # Before Ray is imported, and in the processes that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # results that nobody asks for
    if address == "local" and "ray" not in sys.modules:  # which reads them once
        # Else Ray keeps a token at home, and asks all nodes of later clusters for it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise ProbexError("a cluster needs ray: pip install 'ray>=2.60' (extra `ray`)") from None
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in ("auto", "local", here, *_JOINED):
            raise ProbexError(f"ray:{address}: this process is in the cluster of {here} already")
        return ray
    if address not in ("auto", "local"):
        _knock(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            # JAX and Lance warn of forks; the processes that Ray forks run other programs at once.
            warnings.simplefilter("ignore")
            ray.init(
                address,
                include_dashboard=False if address == "local" else None,
                configure_logging=False,
                log_to_driver=False,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProbexError(f"ray:{address}: cannot be joined: {reason}") from None
    _JOINED.add(address)
    if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's prints a stack
    _silence(ray)
    return ray


def _knock(address: str) -> None:
    """Looks whether anybody answers: Ray tries for many minutes, and says so all the time."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ProbexError(f"ray:{address}: no cluster answers there: {error}") from None


def _silence(ray: Any) -> None:
    """Keeps Ray from saying on standard output that a worker died; there is no setting for it."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with suppress(AttributeError):
        ray._private.worker.print_to_stdstream = lambda *args, **named: None
