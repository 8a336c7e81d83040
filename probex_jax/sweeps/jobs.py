"""Jobs of a sweep: layers of one shape, with variants of the recipe, that are trained together.

How many is found by trying: as many as have their matrices in memory, on a CPU as many as have
their batches in cache together, since more would be slower; and half of them where the compiled
program would need more memory than there is.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.fitting.inference import MICRO_BATCH_BYTES
from probex_jax.fitting.recipe import Adam
from probex_jax.fitting.sharding import Devices
from probex_jax.layer_store.arrays import parts
from probex_jax.sweeps.source import Source

# Of the memory of a device, what trainings may fill; a CPU has a layer twice while it is read.
_SHARE, _CPU_SHARE = 0.8, 0.4
# Jobs whose data is in memory at a time: one that is trained, one that waits, one that is read.
IN_FLIGHT = 3
# Of the memory of the machine, what they may take.
_HOST_SHARE = 0.6


@dataclass(frozen=True)
class Job:
    """What is trained by one compiled program at a time.

    Args:
      layers: of one shape; the last one may be there several times, so that a smaller job needs no
        program of its own.
      recipes: of each; the same holds for them.
      streamed: whether batches are read from the store as they are needed.
      one_order: whether all variants, of all jobs, see the models in one order.
    """

    layers: tuple[str, ...]
    recipes: tuple[Any, ...]
    streamed: bool = False
    one_order: bool = True

    @property
    def key(self) -> str:
        """A name for its state on disk, by all that the state depends on."""
        content = [self.layers, [asdict(recipe) for recipe in self.recipes], self.streamed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Room:
    """What trainings may take.

    Args:
      device: bytes on each device.
      host: bytes of the data of one job in the memory of this machine, where some are waiting.
      most: networks of a job; None for as many as the bytes allow.
    """

    device: float
    host: float
    most: int | None = None

    @classmethod
    def here(cls, devices: Devices) -> "Room":
        """What there is; of several processes, what the one has that has least."""
        host = _HOST_SHARE * _machine_bytes() / (IN_FLIGHT + 1)
        return cls(devices.least(memory(devices)), devices.least(host))

    def less(self, jobs: Sequence[Job]) -> "Room":
        """Half as many networks as in the largest of some jobs; 0 for streaming."""
        largest = max(len(job.layers) * len(job.recipes) for job in jobs if not job.streamed)
        return Room(self.device, self.host, largest // 2)


def plan(
    source: Source,
    layers: Sequence[str],
    recipes: Sequence[Adam],
    room: Room,
    processes: int = 1,
    *,
    stream: bool = False,
) -> list[Job]:
    """Divides layers and variants of the recipe into jobs.

    Args:
      source: where the layers are.
      layers: their names.
      recipes: variants of one recipe.
      room: what they may take.
      processes: among how many the jobs will be divided: of every shape there are as many, if
        there are as many layers.
      stream: whether all layers are streamed, and not only those that do not fit the devices.

    Returns:
      The jobs; neighbours are of different shapes, where there are several.
    """
    store = source.store
    by_shape: dict[Any, list[str]] = {}
    for name in layers:
        by_shape.setdefault((store.layers[name], store.ranks.get(name)), []).append(name)
    of_shapes = [
        _of_one_shape(source, names, recipes, room, processes, stream)
        for names in by_shape.values()
    ]
    longest = max(map(len, of_shapes))
    return [jobs[n] for n in range(longest) for jobs in of_shapes if n < len(jobs)]


def _of_one_shape(
    source: Source,
    names: Sequence[str],
    recipes: Sequence[Adam],
    room: Room,
    processes: int,
    stream: bool,
) -> list[Job]:
    store, devices, recipe = source.store, source.devices, recipes[0]
    shapes = parts(store.layers[names[0]], store.ranks.get(names[0]))
    entries, counts = sum(map(prod, shapes.values())), source.counts()
    on_device = sum(-(-count // devices.count) for count in counts.values()) * entries
    read_bytes = 4 * on_device * devices.count // devices.processes
    itemsize = jnp.dtype(recipe.storage).itemsize
    fitting = int(min(room.device / (on_device * itemsize), room.host / read_bytes))
    most = len(names) * len(recipes) if room.most is None else room.most
    if stream or not (fitting and most):
        return [Job((name,), (recipe,), streamed=True) for name in names for recipe in recipes]
    if devices.platform == "cpu":
        models = min(recipe.batch_size, -(-counts["train"] // devices.count))
        most = min(most, max(1, int(MICRO_BATCH_BYTES // (models * entries * itemsize))))
    n_variants = min(len(recipes), most)
    n_layers = max(1, min(fitting, most // n_variants, -(-len(names) // processes)))
    one_order = len({recipe.seed for recipe in recipes}) == 1
    return [
        Job(some, variants, one_order=one_order)
        for some in _divided(names, n_layers)
        for variants in _divided(recipes, n_variants)
    ]


def _divided(items: Sequence[Any], most: int) -> list[tuple[Any, ...]]:
    """In as few parts of one size as there can be; the last one is filled up."""
    count = -(-len(items) // most)
    size = -(-len(items) // count)
    return [
        (*items[start : start + size], *[items[-1]] * (start + size - len(items)))
        for start in range(0, len(items), size)
    ]


def memory(devices: Devices) -> float:
    """Bytes that trainings may take on each device; a CPU has those of the machine."""
    if devices.mesh is None:
        some = jax.local_devices()[:1]
    else:
        some = [d for d in devices.mesh.devices.flat if d.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in some]
    if all(limits):
        return _SHARE * min(limits)
    return _CPU_SHARE * _machine_bytes() / len(some)


def _machine_bytes() -> float:
    """Memory of the machine, or of the container that this runs in."""
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, float(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found
