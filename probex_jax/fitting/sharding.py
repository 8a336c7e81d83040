"""Which device has which models, and which of a batch each of them takes.

The models of a split are divided into equal ranges, one a device, the last ones filled up with
copies that count for nothing. Batches are drawn from all models as on one device; of each a device
takes those that it has, filled up to the most that any device ever takes, so that shapes are
stable: of batches of 128 models eight devices take 32 each, where half would do. Every process
holds, and reads, the ranges of its own devices alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from probex_jax.fitting.data import Split
from probex_jax.matrices import Centred

AXIS = "models"


class Batches(struct.PyTreeNode):
    """The batches of some epochs, as one device or all of them take them.

    Args:
      index: [..., E, K, C] int32, of K whole batches of each epoch places among a device's models.
      weight: of that shape, 0 for what only fills up; None where nothing does.
      rest_index, rest_weight: [..., E, R], of the short batch at the end; None without one.
      size, rest: models of a whole batch, of all devices, and of the short one.
    """

    index: Any
    weight: Any
    rest_index: Any
    rest_weight: Any
    size: int = struct.field(pytree_node=False)
    rest: int = struct.field(pytree_node=False)


@dataclass(frozen=True)
class Devices:
    """The devices that train together.

    Args:
      mesh: all of them on one axis; None for the one default device.

    Example:
      >>> Devices.of(jax.devices()[:1]).count
      1
    """

    mesh: Mesh | None = None

    @classmethod
    def of(cls, devices: Sequence[jax.Device]) -> "Devices":
        """These devices; all processes that have some must run the same program."""
        if len(devices) == 1 and jax.process_count() == 1:
            return cls(None)
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return cls(Mesh(np.array(ordered), (AXIS,)))

    @property
    def count(self) -> int:
        """How many there are."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def processes(self) -> int:
        """How many processes have some of them."""
        if self.mesh is None:
            return 1
        return len({device.process_index for device in self.mesh.devices.flat})

    @property
    def local(self) -> list[jax.Device]:
        """Those of this process; none where there is the default one alone."""
        if self.mesh is None:
            return []
        return [d for d in self.mesh.devices.flat if d.process_index == jax.process_index()]

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.processes == 1 or jax.process_index() == 0

    def models(self, n_models: int) -> np.ndarray:
        """[n] int, the models of a split that this process holds, copies included."""
        if self.mesh is None:
            return np.arange(n_models)
        return np.minimum(self._numbers(n_models), n_models - 1)

    def _numbers(self, n_models: int) -> np.ndarray:
        """[n] int, the models of this process's devices; those from `n_models` on are copies."""
        assert self.mesh is not None
        each = -(-n_models // self.count)
        ours = [
            np.arange(place * each, (place + 1) * each)
            for place, device in enumerate(self.mesh.devices.flat)
            if device.process_index == jax.process_index()
        ]
        return np.concatenate(ours)

    @property
    def platform(self) -> str:
        """Of what kind they are, such as "cpu"."""
        devices = jax.devices() if self.mesh is None else self.mesh.devices.flat
        return devices[0].platform

    def put(self, split: Split, n_models: int, *, layers: bool = True) -> Split:
        """A split on the devices.

        Args:
          split: of the models that this process holds (`models`), in host memory: y [n, ...],
            x [L, n, H, W] of L layers, or without `layers` [n, H, W].
          n_models: models of the split, of all processes.

        Returns:
          The same of N models, N with the copies, and a weight [N].
        """
        if self.mesh is None:
            return jax.device_put(split)
        weight: Any = (self._numbers(n_models) < n_models).astype(np.float32)
        weighted = split._replace(weight=weight)
        return jax.tree.map(self._global, weighted, specs(weighted, layers=layers))

    def put_all(self, split: Split) -> Split:
        """As `put`, of all models of a split, x [L, N, H, W], which every process holds."""
        n_models = split.y.shape[0]
        if self.mesh is not None:
            ours, x = self.models(n_models), split.x
            matrices = x.factors if isinstance(x, Centred) else x
            rows: Any = jax.tree.map(lambda leaf: leaf[:, ours], matrices)
            if isinstance(x, Centred):  # the centre is of all models
                rows = Centred(rows, x.centre)
            split = split._replace(x=rows, y=split.y[ours])
        return self.put(split, n_models)

    def replicated(self, tree: Any) -> Any:
        """Arrays that are the same on all devices."""
        if self.mesh is None:
            return jax.device_put(tree)
        return jax.tree.map(lambda leaf: self._global(np.asarray(leaf), P()), tree)

    def batches(
        self, orders: np.ndarray, batch_size: int, n_models: int, width: "Width"
    ) -> Batches:
        """The batches of some epochs, on the devices.

        Args:
          orders: [..., E, N] int32, the orders of the models.
          batch_size: models of a whole batch.
          n_models: N.
          width: from `widths`.

        Returns:
          Leaves with a leading axis of devices, where there are several.
        """
        n_full, rest = divmod(n_models, batch_size)
        full = orders[..., : n_full * batch_size]
        full = full.reshape(*orders.shape[:-1], n_full, batch_size)
        last = orders[..., n_full * batch_size :] if rest else None
        if self.mesh is None:
            return jax.device_put(Batches(full, None, last, None, batch_size, rest))
        each = -(-n_models // self.count)
        index, weight = _divided(full, self.count, each, width.full)
        rest_index = rest_weight = None
        if last is not None:
            rest_index, rest_weight = _divided(last, self.count, each, width.rest)
        found = Batches(index, weight, rest_index, rest_weight, batch_size, rest)
        return jax.tree.map(lambda leaf: self._global(self._own(leaf), P(AXIS)), found)

    def least(self, value: float) -> float:
        """The least of what the processes say."""
        if self.processes == 1:
            return value
        return float(np.min(multihost_utils.process_allgather(np.float32(value))))

    def shared(self, tree: Any) -> Any:
        """What the process that writes has; the others give anything of the same shapes."""
        if self.processes == 1:
            return tree
        return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))

    def agree(self, values: Sequence[bool]) -> list[bool]:
        """What the process that writes says of some questions, on all processes."""
        if self.processes == 1:
            return list(values)
        said = multihost_utils.broadcast_one_to_all(np.array(values, bool))
        return [bool(value) for value in np.asarray(said)]

    def wait(self, what: str) -> None:
        """Until all processes are here."""
        if self.processes > 1:
            multihost_utils.sync_global_devices(what)

    def _own(self, leaf: np.ndarray) -> np.ndarray:
        """The part of an array with a leading axis of devices that is this process's."""
        assert self.mesh is not None
        ours = [d.process_index == jax.process_index() for d in self.mesh.devices.flat]
        return leaf[np.array(ours)]

    def _global(self, local: Any, spec: P) -> jax.Array:
        assert self.mesh is not None
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, spec), local)


ONE = Devices()


class Width(NamedTuple):
    """Models that a device takes of a batch, at most: of a whole one, and of the short last one."""

    full: int
    rest: int


def widths(orders: np.ndarray, batch_size: int, n_models: int, count: int) -> Width:
    """The most models of a batch that are one device's, over all epochs.

    Args:
      orders: [..., E, N] int32, the orders of all epochs.
      batch_size: models of a whole batch.
      n_models: N.
      count: devices.
    """
    each, (n_full, _) = -(-n_models // count), divmod(n_models, batch_size)
    owner = (orders // each).reshape(-1, n_models)
    most = [0, 0]
    for device in range(count):
        mine = owner == device
        full = mine[:, : n_full * batch_size].reshape(-1, batch_size).sum(axis=1)
        rest = mine[:, n_full * batch_size :].sum(axis=1)
        most = [max(most[0], *full, 0), max(most[1], *rest, 0)]
    return Width(int(max(most[0], 1)), int(max(most[1], 1)))


def specs(split: Split, *, layers: bool = True) -> Split:
    """How the leaves of a split are divided among the devices: x [L, N, ...], or without L."""
    divided = P(None, AXIS) if layers else P(AXIS)
    x = jax.tree.map(lambda leaf: divided, split.x)
    if isinstance(split.x, Centred):  # the centre is of all models
        x = Centred(x.factors, jax.tree.map(lambda leaf: P(), split.x.centre))
    return Split(
        x=x,
        y=P(AXIS),
        texts=None if split.texts is None else P(),
        weight=None if split.weight is None else P(AXIS),
    )


def _divided(
    batches: np.ndarray, count: int, each: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Batches [..., B] as each device takes them: [D, ..., C] places among its own, and weights."""
    owner, place = batches // each, (batches % each).astype(np.int32)
    # Of each batch first the models of the first device, then those of the next.
    order = np.argsort(owner, axis=-1, kind="stable")
    owner = np.take_along_axis(owner, order, axis=-1)
    place = np.take_along_axis(place, order, axis=-1)
    index = np.zeros((count, *batches.shape[:-1], width), np.int32)
    weight = np.zeros(index.shape, np.float32)
    for device in range(count):
        mine = owner == device
        first = np.argmax(mine, axis=-1)[..., None]
        takes = np.minimum(first + np.arange(width), batches.shape[-1] - 1)
        filled = np.arange(width) < mine.sum(axis=-1)[..., None]
        index[device] = np.where(filled, np.take_along_axis(place, takes, axis=-1), 0)
        weight[device] = filled
    return index, weight
