"""The state of a training on disk, so that a killed one goes on where it was."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.state import State

# Of the time between two evaluations, what saving may take before it goes on in a thread.
_LONG = 0.1


class Saver:
    """Keeps the state of a training on disk, and reports its progress.

    Saving that takes long beside what is between two evaluations goes on in a thread.

    Args:
      folder: where the state goes; nothing else is in it.
      every_s: the least seconds between two times that it is saved; 0 to save and wait for it at
        each evaluation.
      on_epochs: called with the epochs done since the last call.
      writes: whether this process writes; of several that train together one does.
    """

    def __init__(
        self,
        folder: Path,
        every_s: float,
        on_epochs: Callable[[int], None],
        *,
        writes: bool = True,
    ):
        self._folder, self._writes = folder, writes
        self._every_s = every_s
        self._on_epochs = on_epochs
        self._saved_at = self._evaluated_at = time.monotonic()
        self._took_s = 0.0
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self._epoch = 0
        self._lock, self._one_at_a_time = threading.Lock(), threading.Lock()
        self._unsaved: Any = None

    def restore(self, template: State) -> State | None:
        """The state saved last, or None."""
        saved = sorted(path for path in self._folder.glob("*") if path.name.isdigit())
        if not saved:
            return None
        try:
            arrays, _ = checkpoints.load(saved[-1])
        except ProbexError as error:
            raise ProbexError(f"{error}; remove {self._folder} to train this layer anew") from error
        state = serialization.from_state_dict(template, arrays)
        self._on_epochs(int(state.epoch))
        self._epoch = int(state.epoch)
        return state

    def begin(self, epoch: int) -> None:
        """From here on epochs are counted."""
        self._epoch = epoch

    def __call__(self, state: State) -> None:
        self._on_epochs(int(state.epoch) - self._epoch)
        if not self._writes:
            self._epoch = int(state.epoch)
            return
        with self._lock:
            self._epoch = int(state.epoch)
            # A copy: the next step takes the memory of the state.
            self._unsaved = jax.tree.map(np.array, serialization.to_state_dict(state))
        now = time.monotonic()
        interval, self._evaluated_at = now - self._evaluated_at, now
        if now - self._saved_at < self._every_s or (self._saving and not self._saving.done()):
            return
        self.wait()
        if self._every_s and self._took_s > _LONG * interval:
            self._saving = self._thread.submit(self.save)
        else:
            self.save()

    def wait(self) -> None:
        """Until what is being saved is saved."""
        if self._saving:
            self._saving.result()

    def close(self) -> None:
        """As `wait`; afterwards nothing is saved in a thread."""
        self.wait()
        self._thread.shutdown()

    def save(self) -> None:
        """Saves the last state, if that was not done; in whatever thread."""
        with self._one_at_a_time:
            with self._lock:
                epoch, unsaved = self._epoch, self._unsaved
            if unsaved is None:
                return
            start = time.monotonic()
            previous = list(self._folder.glob("*"))
            path = self._folder / f"{epoch:08d}"
            checkpoints.save(path, unsaved, card={})
            for old in previous:
                if old != path:
                    checkpoints.remove(old)
            with self._lock:
                if self._unsaved is unsaved:
                    self._unsaved = None
            self._saved_at = time.monotonic()
            self._took_s = self._saved_at - start
