"""Jobs of a sweep: layers of one shape, with variants of the recipe, that are trained together.

How many is found by trying: as many as fit the memory that is free when the sweep begins, with
their matrices and all that training keeps of their parameters; on a CPU as many as have their
batches and parameters in cache together, since more would be slower; and half of them where the
compiled program would need more memory than there is.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp

from probex_jax.errors import ProbexError
from probex_jax.fitting.inference import MICRO_BATCH_BYTES
from probex_jax.fitting.recipe import Adam
from probex_jax.fitting.sharding import Devices
from probex_jax.layer_store.arrays import parts
from probex_jax.sweeps.memory import free_bytes, free_on
from probex_jax.sweeps.source import Source

# Of the memory that is free, what trainings may fill of a device's, all jobs together of the
# machine's, and one network alone of the machine's.
_SHARE, _HOST_SHARE, _ALONE_SHARE = 0.8, 1 / 3, 0.8
# Jobs whose data is in memory at a time: one that is trained, one that waits, one that is read.
IN_FLIGHT = 3
# What training keeps, in units of the parameters: beside the best of each split that is evaluated
# these, two moments, and for a step the gradient and the update. Of all but the last two the memory
# of the machine holds a copy while they are saved, and what is written of it.
_PARAMETERS, _MOMENTS, _STEP, _COPIES = 1, 2, 2, 3


@dataclass(frozen=True)
class Job:
    """What is trained by one compiled program at a time.

    Args:
      layers: of one shape; the last one may be there several times, so that a smaller job needs no
        program of its own.
      recipes: of each; the same holds for them.
      streamed: whether batches are read from the store as they are needed.
      alone: whether it is so large that no other may be in memory beside it.
      one_order: whether all variants, of all jobs, see the models in one order.
    """

    layers: tuple[str, ...]
    recipes: tuple[Any, ...]
    streamed: bool = False
    alone: bool = False
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
      alone: bytes that one network may take on a device while no other job is in memory.
    """

    device: float
    host: float
    most: int | None = None
    alone: float = 0.0

    @classmethod
    def here(cls, devices: Devices) -> "Room":
        """What is free now; of several processes, what the one has that has least."""
        free, on_device = free_bytes(), free_on(devices)
        host = _HOST_SHARE * free / (IN_FLIGHT + 1)
        if on_device is None:
            count = devices.count // devices.processes
            device, alone = 2 * host / count, _ALONE_SHARE * free / count
            host *= 2 / IN_FLIGHT
        else:
            device = alone = _SHARE * on_device
        return cls(devices.least(device), devices.least(host), alone=devices.least(alone))

    def among(self, workers: int, devices: Devices) -> "Room":
        """What each of so many processes on this machine may take of it."""
        room = replace(self, host=self.host / workers)
        if free_on(devices) is not None:  # each has devices of its own, with their own memory
            return room
        return replace(room, device=self.device / workers, alone=self.alone / workers)

    def limit(self, job: Job) -> float:
        """Bytes that the program of a job may need on a device."""
        single = len(job.layers) * len(job.recipes) == 1
        return max(self.device, self.alone if single else 0.0)

    def less(self, jobs: Sequence[Job]) -> "Room":
        """Half as many networks as in the largest of some jobs; 0 for streaming."""
        largest = max(len(job.layers) * len(job.recipes) for job in jobs if not job.streamed)
        return replace(self, most=largest // 2)


def plan(
    source: Source,
    layers: Sequence[str],
    recipes: Sequence[Adam],
    room: Room,
    workers: int = 1,
    *,
    stream: bool = False,
) -> list[Job]:
    """Divides layers and variants of the recipe into jobs.

    Args:
      source: where the layers are.
      layers: their names.
      recipes: variants of one recipe.
      room: what they may take.
      workers: who train jobs at the same time. On accelerators there are as many jobs of every
        shape, if there are as many layers. On CPUs, whose jobs are small, it does not matter: the
        experts have the same bits with any number.
      stream: whether all layers are streamed, and not only those that do not fit the devices.

    Returns:
      The jobs; neighbours are of different shapes, where there are several.
    """
    store = source.store
    by_shape: dict[Any, list[str]] = {}
    for name in layers:
        by_shape.setdefault((store.layers[name], store.ranks.get(name)), []).append(name)
    of_shapes = [
        _of_one_shape(source, names, recipes, room, workers, stream) for names in by_shape.values()
    ]
    longest = max(map(len, of_shapes))
    return [jobs[n] for n in range(longest) for jobs in of_shapes if n < len(jobs)]


def _of_one_shape(
    source: Source,
    names: Sequence[str],
    recipes: Sequence[Adam],
    room: Room,
    workers: int,
    stream: bool,
) -> list[Job]:
    needs = _needs(source, names[0], recipes[0])

    def fitting(variants: int) -> int:
        """Layers, with so many variants of each."""
        of_device = room.device / (needs.data + variants * needs.network)
        return int(min(of_device, room.host / (needs.read + variants * needs.saved)))

    is_cpu = source.devices.platform == "cpu"
    # A CPU has a layer twice while it is read.
    alone = (2 if is_cpu else 1) * needs.data + needs.network <= room.alone
    alone = alone and (is_cpu or needs.read + needs.saved <= (IN_FLIGHT + 1) * room.host)
    if needs.network > (largest := max(room.device, room.alone)):
        raise ProbexError(
            f"{source.store.path}: {names[0]}: training takes {needs.network / 1e9:.1f} GB for "
            f"{needs.parameters / 4e6:.0f} million parameters, and {largest / 1e9:.1f} GB may be "
            "taken; give the encoder fewer or smaller probes or representations"
        )
    most = len(names) * len(recipes) if room.most is None else room.most
    if stream or not most or not (fitting(1) or alone):
        return [Job((name,), (recipe,), streamed=True) for name in names for recipe in recipes]
    if not fitting(1):
        return [Job((name,), (recipe,), alone=True) for name in names for recipe in recipes]
    each = -(-len(names) // workers)
    if is_cpu:
        each = len(names)
        most = min(most, max(1, int(MICRO_BATCH_BYTES // (needs.batch + needs.parameters))))
    n_variants = min(len(recipes), most)
    while not fitting(n_variants):
        n_variants -= 1
    n_layers = max(1, min(fitting(n_variants), most // n_variants, each))
    one_order = len({recipe.seed for recipe in recipes}) == 1
    return [
        Job(some, variants, one_order=one_order)
        for some in _divided(names, n_layers)
        for variants in _divided(recipes, n_variants)
    ]


class _Needs(NamedTuple):
    """Bytes that training on a layer needs.

    Args:
      data: its matrices on a device.
      read: its matrices in the memory of the machine.
      batch: of these, a batch on a device.
      parameters: of one network.
      network: what a device holds of one network.
      saved: what the machine holds of it while it is saved; where they share memory, nothing more.
    """

    data: int
    read: int
    batch: int
    parameters: int
    network: int
    saved: int


def _needs(source: Source, layer: str, recipe: Adam) -> _Needs:
    store, devices, counts = source.store, source.devices, source.counts()
    shapes = parts(store.layers[layer], store.ranks.get(layer))
    entries, itemsize = sum(map(prod, shapes.values())), jnp.dtype(recipe.storage).itemsize
    held = {name: -(-count // devices.count) for name, count in counts.items()}
    on_device = sum(held.values()) * entries
    read = 4 * on_device * devices.count // devices.processes
    batch = min(recipe.batch_size, held["train"]) * entries * itemsize
    parameters = source.parameter_bytes(layer)
    state = parameters * (_PARAMETERS + _MOMENTS + len(counts) - 1)
    network, saved = state + parameters * _STEP, state * _COPIES
    if devices.platform == "cpu":
        network, saved = network + saved, 0
    return _Needs(on_device * itemsize, read, batch, parameters, network, saved)


def _divided(items: Sequence[Any], most: int) -> list[tuple[Any, ...]]:
    """In as few parts of one size as there can be; the last one is filled up."""
    count = -(-len(items) // most)
    size = -(-len(items) // count)
    return [
        (*items[start : start + size], *[items[-1]] * (start + size - len(items)))
        for start in range(0, len(items), size)
    ]
