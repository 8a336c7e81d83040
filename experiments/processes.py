"""Flags of a command that several processes run at once, on one machine or on several.

Without --coordinator they divide the layers: each works on its own devices, and needs nothing of
the others but the same --workdir. With it they train every expert together, each on its share of
the models. docs/clusters.md has the commands for Slurm, GKE and plain hosts.
"""

import jax
from absl import flags

from experiments import cli
from probex_jax.errors import ProbexError
from probex_jax.fitting import Devices

# After so many seconds without a sign of life a process counts as dead, and the others end.
_SILENT_S = 30

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0. With it, processes train each expert together; without, they divide "
    "the layers.",
)
_CLUSTER = flags.DEFINE_bool(
    "cluster", False, "Train together; Slurm, GKE, a TPU pod or MPI say how many and where."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "How many processes run this command, on one or several machines."
)
_PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, from 0.")


def join() -> tuple[Devices, tuple[int, int]]:
    """Joins the other processes, if there are any.

    Returns:
      The devices that train an expert together, and this process's share of the layers: which of
      how many processes that divide them.

    Raises:
      ProbexError: if the flags contradict each other, or the others are not there in time.
    """
    place, count = _PROCESS.value, _PROCESSES.value
    if _CLUSTER.value and (_COORDINATOR.value or count > 1 or place):
        raise ProbexError("--cluster finds out --coordinator, --processes and --process by itself")
    if _COORDINATOR.value and count < 2:
        raise ProbexError("--coordinator needs --processes, two or more, and --process")
    if not 0 <= place < count:
        raise ProbexError(f"--process={place} of --processes={count}: expected 0 to {count - 1}")
    if not (_COORDINATOR.value or _CLUSTER.value):
        return Devices.of(jax.local_devices()), (place, count)
    # JAX would catch SIGTERM itself, and go on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if _CLUSTER.value:
            jax.distributed.initialize(heartbeat_timeout_seconds=_SILENT_S)
        else:
            jax.distributed.initialize(
                _COORDINATOR.value, count, place, heartbeat_timeout_seconds=_SILENT_S
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ProbexError(f"the other processes cannot be joined: {reason}") from None
    cli.others_wait()
    return Devices.of(jax.devices()), (0, 1)
