"""What runs in a worker of a cluster."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from probex_jax.engine.compiled import keep_compiled
from probex_jax.errors import ProbexError


class Worker:
    """A process of a cluster that does the work of one map.

    Args:
      gpus: how many are its own.
    """

    def __init__(self, gpus: float):
        if not gpus:  # Ray leaves all of them in sight
            jax.config.update("jax_platforms", "cpu")
        self._work: Future = Future()
        self._readers: Any = None
        self._turn = threading.Lock()

    def start(self, made: tuple[bytes, int, str]) -> str:
        """Makes the work, in the folder of the command; returns the number of the node."""
        import ray

        make, readers, folder = made
        try:
            _change_to(folder)
            keep_compiled()
            self._readers = ThreadPoolExecutor(readers)
            self._work.set_result(ray.cloudpickle.loads(make)())
        except BaseException as error:
            self._work.set_exception(error)
            raise
        return ray.get_runtime_context().get_node_id()

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """The results of items; a few calls at a time read, one computes."""
        work = self._work.result()
        read = [self._readers.submit(work.read, item) for item in items]
        data = [each.result() for each in read]
        with self._turn:
            return work.compute(items, data)

    def stop(self) -> None:
        """Closes the work; whoever asked for it has all results, or wants no more."""
        if self._work.done() and not self._work.exception():
            self._work.result().close()


def _change_to(folder: str) -> None:
    """To where relative paths lead to what they mean."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise ProbexError(
            f"{folder}: {error.strerror} on {platform.node()}; start the command in a folder that "
            "all nodes have"
        ) from error
