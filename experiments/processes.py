"""Flags of a command that several processes run at once, to train every expert together.

Each is given a share of the models. docs/clusters.md has the commands for Slurm, GKE and plain
hosts. Processes that divide the layers are those of --engine.
"""

from typing import Any

import jax
from absl import flags

from experiments import cli
from probex_jax.engine import Engine
from probex_jax.errors import ProbexError
from probex_jax.fitting import Devices

# After so many seconds without a sign of life a process counts as dead, and the others end.
_SILENT_S = 30

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for processes that train each expert together."
)
_CLUSTER = flags.DEFINE_bool(
    "cluster", False, "Train together; Slurm, GKE, a TPU pod or MPI give the number and the place."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes train together.")
_PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, from 0.")


def join(engine: Engine) -> Devices:
    """The devices that train an expert together, once the other processes are there, if any.

    Raises:
      ProbexError: if the flags contradict each other, or the others are not there in time.
    """
    place, count, together = _PROCESS.value, _PROCESSES.value, _COORDINATOR.value
    if _CLUSTER.value and (together or count > 1 or place):
        raise ProbexError("--cluster finds out --coordinator, --processes and --process by itself")
    if not together and (count > 1 or place):
        raise ProbexError(
            "--processes and --process go with --coordinator; to divide the layers among processes "
            "or machines give --engine=ray:… instead (docs/clusters.md)"
        )
    if together and not 0 <= place < count > 1:
        raise ProbexError("--coordinator needs --processes=P, 2 or more, and --process, 0 to P - 1")
    if not (together or _CLUSTER.value):
        return Devices.of(jax.local_devices())
    if not engine.is_here:
        raise ProbexError("--engine=ray:… cannot be combined with --coordinator or --cluster")
    # JAX would catch SIGTERM itself, and go on.
    jax.config.update("jax_enable_preemption_service", False)
    told: dict[str, Any] = {}  # else found out
    if together:
        told = {"coordinator_address": together, "num_processes": count, "process_id": place}
    try:
        jax.distributed.initialize(**told, heartbeat_timeout_seconds=_SILENT_S)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ProbexError(f"the other processes cannot be joined: {reason}") from None
    cli.others_wait()
    return Devices.of(jax.devices())
