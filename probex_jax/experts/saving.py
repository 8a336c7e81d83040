"""The state of a training on disk, so that a killed one goes on where it was."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.training import State


class Saver:
    """Keeps the state of a training on disk, and reports its progress.

    Args:
      folder: where the state goes; nothing else is in it.
      every_s: the least seconds between two times that it is saved.
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
        self._saved_at = time.monotonic()
        self._epoch = 0
        self._lock = threading.Lock()
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

    def __call__(self, state: State) -> None:
        self._on_epochs(int(state.epoch) - self._epoch)
        if not self._writes:
            self._epoch = int(state.epoch)
            return
        with self._lock:
            self._epoch = int(state.epoch)
            # A copy: the next step takes the memory of the state.
            self._unsaved = jax.tree.map(np.array, serialization.to_state_dict(state))
        if time.monotonic() - self._saved_at >= self._every_s:
            self.save()

    def save(self) -> None:
        """Saves the last state, if that was not done; in whatever thread."""
        with self._lock:
            if self._unsaved is None:
                return
            previous = list(self._folder.glob("*"))
            path = self._folder / f"{self._epoch:08d}"
            checkpoints.save(path, self._unsaved, card={})
            for old in previous:
                if old != path:
                    checkpoints.remove(old)
            self._unsaved, self._saved_at = None, time.monotonic()
