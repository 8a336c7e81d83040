"""The state of a training on disk, so that a killed one goes on where it was."""

import time
from collections.abc import Callable
from pathlib import Path

from flax import serialization

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.training import State


class Saver:
    """Keeps the state of a training on disk, and reports its progress."""

    def __init__(self, folder: Path, every_s: float, on_epochs: Callable[[int], None]):
        self._folder = folder
        self._every_s = every_s
        self._on_epochs = on_epochs
        self._saved_at = time.monotonic()
        self._epoch = 0

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
        self._epoch = int(state.epoch)
        if time.monotonic() - self._saved_at < self._every_s:
            return
        previous = list(self._folder.glob("*"))
        path = self._folder / f"{self._epoch:08d}"
        checkpoints.save(path, serialization.to_state_dict(state), card={})
        for old in previous:
            if old != path:
                checkpoints.remove(old)
        self._saved_at = time.monotonic()
