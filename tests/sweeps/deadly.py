"""An encoder that ends the processes of a cluster which train it."""

import os
import signal

import probex_jax as px


class Deadly(px.ProbeX):
    """Reads matrices of a certain number of rows in one process alone.

    Args:
      rows: of those that are deadly.
      survivor: the process that they do not end.
    """

    rows: int = 1
    survivor: int = 1

    def __call__(self, x):
        """Ends the process when training is compiled, and not when sizes are asked for."""
        is_training = x.shape[0] > 1 and os.getpid() != self.survivor
        if is_training and x.shape[-2] == self.rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(x)
