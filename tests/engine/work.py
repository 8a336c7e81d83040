"""Work for tests of engines, which workers of a cluster import."""

import os
import pickle
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from probex_jax.engine import HERE, Work
from probex_jax.search import FoundModel
from probex_jax.zoo import ZooModel


@dataclass(frozen=True)
class Squares:
    """Squares of numbers; notes which process made it.

    Args:
      folder: for the notes.
      poison: numbers that end the process.
      once: whether only in the process that takes one first.
    """

    folder: Path
    poison: frozenset = frozenset()
    once: bool = False

    def __call__(self):
        (self.folder / str(os.getpid())).touch()

        def read(number):
            time.sleep(0.01)
            if number in self.poison:
                self.end()
            return number

        return Work(read, lambda part, numbers: [number**2 for number in numbers])

    def end(self):
        if self.once:
            try:
                (self.folder / "ended").mkdir()
            except FileExistsError:
                return
        os.kill(os.getpid(), signal.SIGKILL)


def fails():
    raise ValueError("cannot be made")


class Pickling:
    """An engine here, to which all comes and from which all goes as to another process."""

    is_here = False

    def map(self, make, parts, **given):
        made = pickle.dumps(make)
        sent = (pickle.loads(pickle.dumps(part)) for part in parts)
        for both in HERE.map(lambda: pickle.loads(made)(), sent, **given):
            yield pickle.loads(pickle.dumps(both))


@dataclass(frozen=True)
class PoisonToPack(ZooModel):
    """A model that ends whoever opens it to pack it."""

    def open(self):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class PoisonToIndex(FoundModel):
    """A model that ends whoever embeds it."""

    def labels_in(self, model):
        os.kill(os.getpid(), signal.SIGKILL)
