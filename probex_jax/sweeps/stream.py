"""Batches of a layer that does not fit the devices, read from the store by Grain.

They are the same in the same order as of a layer that fits; memory does not grow with the number
of models. Layers are trained one after the other.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.fitting.centre import Tree
from probex_jax.fitting.data import Split
from probex_jax.fitting.group import Group
from probex_jax.sweeps.source import Source

# Batches that are read at a time, and wait for their turn.
_THREADS = 2
_WAITING = 2


class LayerStream:
    """The batches of a layer, read ahead, on the devices; see `loop.advance_streamed`.

    Args:
      group: one network.
      source: where its data is.
      layer, tree: which layer, and its tree variables.
    """

    def __init__(self, group: Group, source: Source, layer: str, tree: Tree):
        self._group, self._source, self._layer, self._tree = group, source, layer, tree
        self._targets = {name: source.targets(name) for name in group.counts}

    def one(self) -> Split:
        """One training model, x [1, 1, H, W]: for its shapes."""
        split = self._read("train", np.arange(1))
        return split._replace(x=jax.tree.map(lambda leaf: np.asarray(leaf)[None], split.x))

    def training(self, first_epoch: int, until: int) -> Iterator[tuple[Split, int]]:
        """The batches of some epochs, in order, each with the number of its models."""
        if first_epoch == until:
            return iter(())
        (orders_ExN,) = self._group.orders(first_epoch, until - first_epoch)
        return self._batches("train", [part for order in orders_ExN for part in self._parts(order)])

    def evaluation(self, name: str) -> Iterator[tuple[Split, int]]:
        """All models of a split, a batch at a time."""
        return self._batches(name, self._parts(np.arange(self._group.counts[name])))

    def _parts(self, order: np.ndarray) -> list[np.ndarray]:
        size = self._group.recipe.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _batches(self, name: str, batches: list[np.ndarray]) -> Iterator[tuple[Split, int]]:
        try:
            import grain  # an extra: only whoever has layers this large needs it
        except ImportError:
            raise ProbexError(
                f"{self._layer} does not fit the device's memory; to train on it from the disk "
                'install Grain: pip install "probex_jax[stream]"'
            ) from None
        source = grain.MapDataset.source(_Batches(partial(self._read, name), batches))
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_WAITING)
        for batch, models in zip(
            source.to_iter_dataset(read_options=options), batches, strict=True
        ):
            yield self._group.devices.put(batch, len(models), layers=False), len(models)

    def _read(self, name: str, models: np.ndarray) -> Split:
        """This process's part of a batch, in host memory."""
        ours = models[self._group.devices.models(len(models))]
        storage = self._group.recipe.storage
        x = self._source.matrices(self._layer, self._tree, name, ours, storage)
        targets = self._targets[name]
        return targets._replace(x=x, y=self._source.task.encoded(targets.y[ours]))


class _Batches:
    """What Grain reads from: so many batches, each read when it is asked for."""

    def __init__(self, read: Callable[[np.ndarray], Split], batches: list[np.ndarray]):
        self._read, self._batches = read, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Split:
        return self._read(self._batches[index])
