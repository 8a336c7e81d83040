"""Units of a sweep: layers of one shape, with variants of the recipe, that are trained together.

How many is computed: on an accelerator as many as its memory holds, by the sizes of what is kept
and by what the compiler says of the compiled program; on a CPU as many as have their batches in
cache together, since more would be slower.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.experts.devices import Devices
from probex_jax.experts.network import Network
from probex_jax.experts.objective import MICRO_BATCH_BYTES
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.source import Source
from probex_jax.heads import TextHead
from probex_jax.layer_store import LayerStore
from probex_jax.layer_store.arrays import parts
from probex_jax.matrices import LowRank

# Of the memory of a device, what trainings may fill; a CPU has a layer twice while it is read.
_SHARE, _CPU_SHARE = 0.8, 0.4
# Units whose data is in memory at a time: one that is trained, one that waits, one that is read.
IN_FLIGHT = 3
# Of the memory of the machine, what they may take.
_HOST_SHARE = 0.6


@dataclass(frozen=True)
class Unit:
    """What is trained by one compiled program at a time.

    Args:
      layers: of one shape; the last one may be there several times, so that a smaller unit needs no
        program of its own.
      recipes: of each; the same holds for them.
      streamed: whether batches are read from the store as they are needed.
      one_order: whether all variants, of all units, see the models in one order.
    """

    layers: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    streamed: bool = False
    one_order: bool = True

    @property
    def key(self) -> str:
        """A name for its state on disk, by all that the state depends on."""
        content = [self.layers, [asdict(recipe) for recipe in self.recipes], self.streamed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def plan(
    source: Source,
    layers: Sequence[str],
    recipes: Sequence[Recipe],
    room: "Room",
    processes: int = 1,
    *,
    stream: bool = False,
) -> list[Unit]:
    """Divides layers and variants of the recipe into units.

    Args:
      source: where the layers are.
      layers: their names.
      recipes: variants of one recipe.
      room: bytes that may be taken on each device, and in the memory of the machine.
      processes: among how many the units will be divided: of every shape there are as many, if
        there are as many layers.
      stream: whether all layers are streamed, and not only those that do not fit the devices.

    Returns:
      The units; neighbours are of different shapes, where there are several.
    """
    store = source.store
    by_shape: dict[Any, list[str]] = {}
    for name in layers:
        by_shape.setdefault((store.layers[name], store.ranks.get(name)), []).append(name)
    of_shapes = []
    for names in by_shape.values():
        cost = cost_of(store, names[0], recipes[0], source.network(names[0]), source.devices)
        of_shapes.append(_of_one_shape(names, recipes, cost, room, processes, stream))
    longest = max(map(len, of_shapes))
    return [units[n] for n in range(longest) for units in of_shapes if n < len(units)]


def _of_one_shape(
    names: Sequence[str],
    recipes: Sequence[Recipe],
    cost: "Cost",
    room: "Room",
    processes: int,
    stream: bool,
) -> list[Unit]:
    if stream or cost.layer + cost.expert > room.device or cost.read > room.host:
        return [Unit((name,), (recipe,), streamed=True) for name in names for recipe in recipes]
    # With one layer alone, and then with all variants of each.
    n_variants = min(len(recipes), cost.most(1, (room.device - cost.layer) / cost.expert))
    each = cost.layer + n_variants * cost.expert
    fitting = min(room.device / each, room.host / cost.read)
    n_layers = min(cost.most(n_variants, fitting), -(-len(names) // processes))
    one_order = len({recipe.seed for recipe in recipes}) == 1
    return [
        Unit(some, variants, one_order=one_order)
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


@dataclass(frozen=True)
class Room:
    """Bytes that trainings may take.

    Args:
      device: on each device.
      host: of the data of one unit in the memory of this machine, where some are waiting.
    """

    device: float
    host: float

    @classmethod
    def here(cls, devices: Devices) -> "Room":
        """What there is; of several processes, what the one has that has least."""
        host = _HOST_SHARE * _machine_bytes() / (IN_FLIGHT + 1)
        return cls(devices.least(memory(devices)), devices.least(host))

    def half(self) -> "Room":
        """Less, where what was computed from sizes alone was too little."""
        return Room(self.device / 2, self.host)


@dataclass(frozen=True)
class Cost:
    """Bytes that training takes.

    Args:
      layer: on each device, the matrices of a layer.
      expert: there, parameters, the state of their optimiser, and what a step computes.
      batch: there, the matrices of one batch.
      read: in this process, the matrices of a layer as they are read.
    """

    layer: float
    expert: float
    batch: float
    read: float

    def most(self, together: int, fitting: float) -> int:
        """How many of so many that fit the memory are faster together than one after the other."""
        if jax.default_backend() == "cpu":
            fitting = min(fitting, MICRO_BATCH_BYTES / (together * self.batch))
        return max(1, int(fitting))


def cost_of(
    store: LayerStore, layer: str, recipe: Recipe, network: Network, devices: Devices
) -> Cost:
    """What training on a layer costs."""
    rank = store.ranks.get(layer)
    shapes = parts(store.layers[layer], rank)
    itemsize = jnp.dtype(recipe.storage).itemsize
    matrix = itemsize * sum(map(prod, shapes.values()))
    counts = {s: sum(m.split == s for m in store.models) for s in ("train", "val", "val_holdout")}
    held = sum(-(-count // devices.count) for count in counts.values())
    train = -(-counts["train"] // devices.count)
    x = _struct(shapes, train, recipe.storage)
    texts = None
    if isinstance(network.head, TextHead):
        texts = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), jnp.float32), x)
    variables = jax.eval_shape(network.init, jax.random.key(0), one, texts)
    params = sum(leaf.size * 4 for leaf in jax.tree.leaves(variables["params"]))
    kept = 0.0
    if hasattr(network.encoder, "prepare"):
        leaves = jax.tree.leaves(jax.eval_shape(network.encoder.prepare, x))
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) - train * matrix
    if recipe.compute != recipe.storage and recipe.compute == "bfloat16":
        kept += train * matrix / 2  # beside what it is made from
    batch = min(recipe.batch_size, train) * matrix
    ours = devices.count / devices.processes
    read = held * ours * sum(map(prod, shapes.values())) * 4
    # Parameters, two moments, the gradient, what is best on val and on val_holdout; a batch, what
    # is computed from it, and the gradients of that.
    return Cost(held * matrix + kept, 6 * params + 4 * batch, batch, read)


def _struct(shapes: Mapping[str, tuple[int, int]], n_models: int, dtype: str) -> Any:
    leaves = {
        part: jax.ShapeDtypeStruct((n_models, *shape), jnp.dtype(dtype))
        for part, shape in shapes.items()
    }
    return leaves["matrices"] if "matrices" in leaves else LowRank(**leaves)


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
