"""Training on a layer that does not fit the devices: batches read from the store by Grain.

The same batches in the same order as `training.fit_together` takes from the devices, and the same
steps; memory does not grow with the number of models. Layers are trained one after the other.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from probex_jax.errors import ProbexError
from probex_jax.experts.advancing import summed, updated
from probex_jax.experts.centring import Tree
from probex_jax.experts.devices import AXIS, Devices, specs
from probex_jax.experts.network import Network
from probex_jax.experts.objective import Split, loss_and_gradient, share_right
from probex_jax.experts.optimising import Rates, stepped
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.source import Source
from probex_jax.experts.state import State, expanded, select
from probex_jax.experts.training import Together

# Batches that are read at a time, and wait for their turn.
_THREADS = 2
_WAITING = 2


def fit_streamed(
    stream: "Stream",
    *,
    state: State | None = None,
    on_evaluation: Callable[[State], None] = lambda state: None,
) -> State:
    """Trains one expert as `training.fit_together` does, but for where its batches are.

    Args:
      stream: its batches.
      state, on_evaluation: as `fit_together` has them.

    Returns:
      The final state.

    Raises:
      ProbexError: if Grain is not installed.
    """
    experts = stream.experts
    (recipe,), devices = experts.recipes, experts.devices
    state = stream.initial() if state is None else state
    state = select(devices.replicated(state), 0, 0)
    rates = devices.replicated(Rates(*(rate[0] for rate in experts.rates())))
    step = partial(_step, experts.network, experts.recipe, devices)
    told = partial(_told, experts.network, experts.recipe, devices)
    while int(state.evaluation) < recipe.n_evaluations:
        epoch = int(state.epoch)
        until = min(int(state.evaluation) * recipe.eval_every, recipe.epochs)
        params, opt_state, total = state.params, state.opt_state, jnp.float32(0.0)
        for batch, size in stream.training(epoch, until):
            params, opt_state, loss = step(params, opt_state, rates, batch, size)
            total += loss * (size / experts.counts["train"])
        best = {}
        for name in experts.evaluated:
            shares = [told(params, part) for part, _ in stream.evaluation(name)]
            right, of = (sum(each) for each in zip(*shares, strict=True))
            best[name] = updated(
                state.best[name], params, right / of, jnp.int32(until), state.evaluation
            )
        mean = total / max(until - epoch, 1)
        state = state.replace(
            epoch=jnp.int32(until),
            evaluation=state.evaluation + 1,
            params=params,
            opt_state=opt_state,
            loss_E=state.loss_E.at[state.evaluation].set(mean),
            best=best,
        )
        on_evaluation(expanded(state))
    return expanded(state)


class Stream:
    """Batches of a layer, read ahead, on the devices.

    Args:
      experts: one layer, one recipe.
      source: where its data is.
      layer, tree: which layer, and its tree variables.
    """

    def __init__(self, experts: Together, source: Source, layer: str, tree: Tree):
        self.experts, self._source, self._layer, self._tree = experts, source, layer, tree
        self._targets = {name: source.targets(name) for name in experts.counts}

    def initial(self) -> State:
        """As `Together.initial`."""
        return self.experts.initial(self._read("train", np.arange(1)))

    def template(self) -> State:
        """As `Together.template`."""
        return self.experts.template(self._read("train", np.arange(1)))

    def training(self, epoch: int, until: int) -> Iterator[tuple[Split, int]]:
        """The batches of some epochs, in order, each with the number of its models."""
        if epoch == until:
            return iter(())
        (orders_ExN,) = self.experts.orders(epoch, until - epoch)
        size = self.experts.recipe.batch_size
        return self._batches(
            "train", [part for order_N in orders_ExN for part in _parts(order_N, size)]
        )

    def evaluation(self, name: str) -> Iterator[tuple[Split, int]]:
        """All models of a split, a batch at a time."""
        order_N = np.arange(self.experts.counts[name])
        return self._batches(name, _parts(order_N, self.experts.recipe.batch_size))

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
        read_ahead = source.to_iter_dataset(read_options=options)
        for batch, models in zip(read_ahead, batches, strict=True):
            yield self.experts.devices.put(batch, len(models)), len(models)

    def _read(self, name: str, models: np.ndarray) -> Split:
        """This process's part of a batch, in host memory."""
        ours = models[self.experts.devices.models(len(models))]
        storage = self.experts.recipe.storage
        x = self._source.matrices(self._layer, self._tree, name, ours, storage)
        x = jax.tree.map(lambda leaf: np.asarray(leaf)[None], x)
        targets = self._targets[name]
        return targets._replace(x=x, y=targets.y[ours])


class _Batches:
    """What Grain reads from: so many batches, each read when it is asked for."""

    def __init__(self, read: Callable[[np.ndarray], Split], batches: list[np.ndarray]):
        self._read, self._batches = read, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Split:
        return self._read(self._batches[index])


def _parts(order_N: np.ndarray, size: int) -> list[np.ndarray]:
    return [order_N[start : start + size] for start in range(0, len(order_N), size)]


def _on_devices(
    function: Callable[..., Any], devices: Devices, batch: Split, *replicated: Any
) -> Any:
    """A function of (axis, batch, ...) on each device's part of a batch [1, B, H, W]."""

    def part(batch, *replicated):
        x = jax.tree.map(lambda leaf: leaf[0], batch.x)
        axis = None if devices.mesh is None else AXIS
        return function(axis, batch._replace(x=x), *replicated)

    if devices.mesh is None:
        return part(batch, *replicated)
    in_specs = (specs(batch), *[P()] * len(replicated))
    return jax.shard_map(
        part, mesh=devices.mesh, in_specs=in_specs, out_specs=P(), check_vma=False
    )(batch, *replicated)


@partial(jax.jit, static_argnums=(0, 1, 2, 7), donate_argnums=(3, 4))
def _step(
    network: Network,
    recipe: Recipe,
    devices: Devices,
    params: Any,
    opt_state: Any,
    rates: Rates,
    batch: Split,
    size: int,
) -> tuple[Any, Any, jax.Array]:
    """A step of training on one batch."""

    def part(axis, batch, params, opt_state, rates):
        index_B = jnp.arange(batch.y.shape[0])
        found = loss_and_gradient(
            network,
            params,
            batch,
            index_B,
            batch.weight,
            n_models=size,
            compute=recipe.compute,
        )
        loss, gradient = summed(found, axis)
        return *stepped(recipe, rates, params, opt_state, gradient), loss

    return _on_devices(part, devices, batch, params, opt_state, rates)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _told(
    network: Network, recipe: Recipe, devices: Devices, params: Any, batch: Split
) -> tuple[jax.Array, jax.Array]:
    """`share_right` of a batch on all devices."""

    def part(axis, batch, params):
        return summed(share_right(network, params, batch, recipe.compute), axis)

    return _on_devices(part, devices, batch, params)
