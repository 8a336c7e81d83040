"""Flags of commands whose work runs in threads of this process or on a Ray cluster.

docs/clusters.md says how to start one.
"""

import jax
from absl import flags

from probex_jax.engine import Engine, engine_of

_ENGINE = flags.DEFINE_string(
    "engine",
    "threads",
    "Where the work runs: threads of this process, or a Ray cluster, ray:local, ray:auto or "
    "ray:HOST:PORT (docs/clusters.md).",
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Worker processes of the cluster; 0 for one per GPU, or else one per four CPUs.",
    lower_bound=0,
)


def readers_flag(default: int) -> flags.FlagHolder[int]:
    """The flag of commands that read models: how many at a time."""
    return flags.DEFINE_integer(
        "readers",
        default,
        "Reading threads per process; for servers and shared file systems use more.",
        lower_bound=1,
    )


def engine() -> Engine:
    """The engine that the flags name.

    Raises:
      ProbexError: if there is none of that name.
    """
    found = engine_of(_ENGINE.value, _WORKERS.value)
    if not found.is_here:
        # GPUs are for the workers; this process would take most of their memory.
        jax.config.update("jax_platforms", "cpu")
    return found
