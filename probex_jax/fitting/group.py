"""Networks that are trained side by side: their orders of models, their rates, their batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from probex_jax.fitting.data import Split
from probex_jax.fitting.inference import as_read, products
from probex_jax.fitting.loop import Loss, Program, State, advance, advance_streamed, init
from probex_jax.fitting.network import Network
from probex_jax.fitting.recipe import Adam, Rates
from probex_jax.fitting.sharding import AXIS, ONE, Batches, Devices, Width, widths
from probex_jax.fitting.task import Task
from probex_jax.matrices import Centred, LowRank, Squared


@dataclass(frozen=True)
class Group:
    """Networks that one program trains, whatever the values in their matrices.

    Args:
      network: of each.
      task: what it is trained to tell.
      recipes: variants, which differ in `recipe.VARIED` alone.
      layers: how many layers, each with all variants.
      counts: models of "train", and of each split that is evaluated.
      devices: where.
      one_order: whether all variants see the models in one order, having one seed.
      keys: of each variant, what decides its parameters and order; None for its recipe's seed.
      loss, optimiser: as `loop.Program` takes them.
    """

    network: Network
    task: Task
    recipes: tuple[Adam, ...]
    layers: int
    counts: Mapping[str, int]
    devices: Devices = ONE
    one_order: bool = True
    keys: Sequence[jax.Array] | None = None
    loss: Loss | None = None
    optimiser: optax.GradientTransformation | None = None

    @cached_property
    def program(self) -> Program:
        """What is compiled."""
        return Program(
            self.network,
            self.task,
            self.devices,
            self.devices.platform,
            self.recipe.compute,
            decays=any(recipe.l2 > 0 for recipe in self.recipes),
            loss=self.loss,
            optimiser=self.optimiser,
        )

    @property
    def recipe(self) -> Adam:
        """One of the variants."""
        return self.recipes[0]

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The splits that are evaluated."""
        return tuple(name for name in self.counts if name != "train")

    @cached_property
    def _keys(self) -> list[jax.Array]:
        return list(self.keys or [jax.random.key(recipe.seed) for recipe in self.recipes])

    def rates(self) -> Rates:
        """[variants] each."""
        return Rates(
            np.array([recipe.learning_rate for recipe in self.recipes], np.float32),
            np.array([recipe.l2 for recipe in self.recipes], np.float32),
        )

    def orders(self, first_epoch: int, count: int) -> np.ndarray:
        """Orders of the training models [S, epochs, N]: one, or one for each variant."""
        keys, n_models = self._keys[: 1 if self.one_order else None], self.counts["train"]
        return np.stack([np.asarray(_orders(key, n_models, first_epoch, count)) for key in keys])

    @cached_property
    def _width(self) -> Width:
        """Models of a batch that a device takes."""
        if self.devices.count == 1:
            return Width(0, 0)
        n_models, parts = self.counts["train"], range(0, self.recipe.epochs, self.recipe.eval_every)
        found = [
            widths(self.orders(first, self._interval), self._batch, n_models, self.devices.count)
            for first in parts
        ]
        return Width(max(w.full for w in found), max(w.rest for w in found))

    def batches(self, first_epoch: int) -> Batches:
        """The batches of the epochs up to the next evaluation, on the devices."""
        orders = self.orders(first_epoch, self._interval)
        return self.devices.batches(orders, self._batch, self.counts["train"], self._width)

    @property
    def _interval(self) -> int:
        return min(self.recipe.eval_every, self.recipe.epochs)

    @property
    def _batch(self) -> int:
        return min(self.recipe.batch_size, self.counts["train"])

    def initial(self, train: Split) -> State:
        """New networks, before their first evaluation, in host memory.

        Not one compiled program: what draws parameters is compiled once for each of their shapes,
        and layers of different shapes have most of these in common.

        Args:
          train: x [L, N, H, W], used for its shapes alone.
        """
        each = [self._initial(train, key) for key in self._keys]

        def stacked(*leaves: Any) -> np.ndarray:
            leaf = np.stack([np.asarray(leaf) for leaf in leaves])
            return np.broadcast_to(leaf, (self.layers, *leaf.shape))

        return _changed(each[0], stacked, *each[1:])

    def template(self, train: Split) -> State:
        """`initial` without values."""
        one = jax.eval_shape(lambda: self._initial(train, jax.random.key(0)))

        def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.layers, len(self.recipes), *leaf.shape), leaf.dtype)

        return _changed(one, stacked)

    def _initial(self, train: Split, key: jax.Array) -> State:
        matrices: Any = train.x.matrices if isinstance(train.x, Squared) else train.x
        x = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x)[:1], matrices)
        # Parameters are float32, whatever the matrices are kept in.
        one = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), (x, train.texts)
        )
        return init(self.program, self.recipe.n_evaluations, self.evaluated, one, key)

    def train(
        self,
        state: State,
        splits: Mapping[str, Split] | None = None,
        *,
        stream: Any = None,
        program: Callable[..., State] | None = None,
        on_evaluation: Callable[[State], None] = lambda state: None,
    ) -> State:
        """Trains all networks to the end of their recipes.

        Args:
          state: where to go on from, in host memory or on the devices, which then reuse its memory.
          splits: those of `counts`, x [L, N, H, W], on the devices; "train" from `prepared`.
          stream: instead of splits, the batches of a single network (`loop.advance_streamed`).
          program: `loop.advance`, compiled for these shapes; None to compile it now.
          on_evaluation: called with the state after each evaluation; the next step reuses its
            memory, so whoever wants to keep it copies it.

        Returns:
          The final state.
        """
        devices, recipe = self.devices, self.recipe
        rates, state = devices.replicated((self.rates(), state))
        program = program or partial(advance, self.program)

        def until(state: State, epoch: int) -> State:
            if stream is not None:
                first = jax.tree.map(lambda rate: rate[0], rates)
                alone = select(state, 0, 0)
                return expanded(advance_streamed(self.program, alone, first, stream, epoch))
            assert splits is not None
            evaluated = {name: splits[name] for name in self.evaluated}
            begun = int(state.epoch)
            n_epochs = devices.replicated(np.int32(epoch - begun))
            batches = self.batches(begun)
            return program(state, rates, splits["train"], evaluated, batches, n_epochs)

        while (evaluation := int(state.evaluation)) < recipe.n_evaluations:
            state = until(state, min(evaluation * recipe.eval_every, recipe.epochs))
            on_evaluation(state)
        return state

    def prepared(self, train: Split) -> Split:
        """Training models x [L, N, H, W] on the devices, as the encoder reads them fastest.

        In bfloat16 now, not in each step, if that computes.
        """
        x: Any = train.x
        prepares = self.network.normalise == "none" and hasattr(self.network.encoder, "prepare")
        if prepares and not isinstance(x, LowRank | Centred):  # these are small
            with products("float32"):
                # On one device not in one program, whose results would hold a copy of x.
                on_devices = _prepared_on_devices if self.devices.mesh else _prepared
                x = on_devices(self.network.encoder, self.devices, x)
        if self.recipe.compute == "bfloat16":
            x = _cast(x, self.recipe.compute)
        return train._replace(x=x)


def select(state: State, layer: int, variant: int) -> State:
    """The state of one of the networks that are trained side by side, in memory of its own."""
    return _changed(state, lambda leaf: leaf[layer, variant])


def expanded(state: State) -> State:
    """The state of one network, as that of networks that are trained side by side."""
    return _changed(state, lambda leaf: jnp.asarray(leaf)[None, None])


def _changed(state: State, change: Callable[..., Any], *others: State) -> State:
    """A state with every leaf changed that is of one network."""
    names = ("params", "opt_state", "loss_E", "best")
    parts = [[getattr(each, name) for each in (state, *others)] for name in names]
    counts = state.epoch, state.evaluation
    if isinstance(state.epoch, jax.Array):  # copies: a step may take the memory of the others
        counts = jnp.array(state.epoch), jnp.array(state.evaluation)
    return State(*counts, *[jax.tree.map(change, *part) for part in parts])


@partial(jax.jit, static_argnums=(1, 3))
def _orders(key: jax.Array, n_models: int, first_epoch: Any, count: int) -> jax.Array:
    """The orders of the training models in so many epochs, [E, N].

    A program of its own, so that drawing them is compiled once for all layers.
    """
    key = jax.random.fold_in(key, 1)

    def order(epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), n_models)

    return jax.lax.map(order, first_epoch + jnp.arange(count))


def _prepared(encoder: Any, devices: Devices, x: Any) -> Any:
    return jax.vmap(encoder.prepare)(x)


@partial(jax.jit, static_argnums=(0, 1))
def _prepared_on_devices(encoder: Any, devices: Devices, x: Any) -> Any:
    divided = P(None, AXIS)
    return jax.shard_map(
        jax.vmap(encoder.prepare),
        mesh=devices.mesh,
        in_specs=divided,
        out_specs=divided,
        check_vma=False,
    )(x)


@partial(jax.jit, static_argnums=1)
def _cast(x: Any, compute: str) -> Any:
    return as_read(x, compute)
