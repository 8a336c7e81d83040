"""The state of a training on disk, so that a killed one resumes where it was."""

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
from probex_jax.fitting.loop import State
from probex_jax.fitting.sharding import Devices

# Saving takes at most about this share of the time, however large a state is.
_SHARE = 0.1


class Saver:
    """Keeps the state of a training on disk, and reports its progress.

    Orbax's own policies save by steps or by time as well, but not on a signal from another thread
    while a compiled program runs, nor in proportion to what saving costs.

    Args:
      folder: where the state goes; nothing else is in it.
      every_s: the least seconds between two times that it is saved; 0 to save at each evaluation.
      devices: of several processes one writes.
      on_epochs: called with the epochs done since the last call.
      check: called before a state is written; raises if it must not be.
    """

    def __init__(
        self,
        folder: Path,
        every_s: float,
        devices: Devices,
        on_epochs: Callable[[int], None],
        check: Callable[[], None] = lambda: None,
    ):
        self._check, self._folder, self._devices = check, folder, devices
        self._every_s, self._on_epochs = every_s, on_epochs
        self._saved_at, self._took_s, self._epoch = time.monotonic(), 0.0, 0
        self._lock = threading.RLock()
        self._unsaved: Any = None

    def restored(self, template: State) -> State | None:
        """The state saved last, the same in all processes, or None.

        Raises:
          ProbexError: if it is damaged.
        """
        state = self._restored(template) if self._devices.writes else None
        (found,) = self._devices.agree([state is not None])
        if not found:
            return None
        if state is None:
            state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        state = self._devices.shared(state)
        self._count(int(state.epoch))
        return state

    def _restored(self, template: State) -> State | None:
        found = (path for path in self._folder.glob("*") if path.name.isdigit())
        saved = sorted(path for path in found if checkpoints.is_there(path))
        if not saved:
            return None
        try:
            arrays, _ = checkpoints.load(saved[-1])
        except ProbexError as error:
            raise ProbexError(f"{error}; remove {self._folder} to train this layer anew") from error
        return serialization.from_state_dict(template, arrays)

    def _count(self, epoch: int) -> None:
        self._on_epochs(epoch - self._epoch)
        self._epoch = epoch

    def __call__(self, state: State) -> None:
        self._count(int(state.epoch))
        if not self._devices.writes:
            return
        with self._lock:
            self._unsaved = None  # the one before is given back first
            # A copy: the next step takes the memory of the state.
            self._unsaved = jax.tree.map(np.array, serialization.to_state_dict(state))
        pause_s = max(self._every_s, self._took_s / _SHARE) if self._every_s else 0.0
        if (start := time.monotonic()) - self._saved_at >= pause_s:
            self.save()
            self._saved_at = time.monotonic()
            self._took_s = self._saved_at - start

    def save(self) -> None:
        """Saves the last state, unless it is saved; in whatever thread."""
        with self._lock:
            if self._unsaved is None:
                return
            self._check()
            previous = list(self._folder.glob("*"))
            path = self._folder / f"{int(self._unsaved['epoch']):08d}"
            checkpoints.save(path, self._unsaved, card={})
            for old in previous:
                if old != path:
                    checkpoints.remove(old)
            self._unsaved = None
