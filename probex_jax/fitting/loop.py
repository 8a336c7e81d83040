"""The training loop: init, step, epoch, evaluate, and the program that runs from one evaluation to
the next.

All of it is of one network. `advance` runs any number of epochs and the evaluation after them as
one compiled program, for networks on several layers and variants of the recipe side by side under
`vmap`, and on several devices under `shard_map`. Where batches are streamed the same `step` and
`evaluate` run as programs of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import PartitionSpec as P

from probex_jax.fitting.data import Split
from probex_jax.fitting.inference import forward, in_micro_batches, micro_batches
from probex_jax.fitting.network import Network
from probex_jax.fitting.recipe import Rates, adam
from probex_jax.fitting.sharding import AXIS, ONE, Batches, Devices, specs
from probex_jax.fitting.task import Task

Loss = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Program:
    """All that decides which operations a program of training has.

    Args:
      network: what is trained.
      task: what it is trained to tell.
      devices: where.
      platform: of these devices.
      compute: as `Adam.compute`.
      decays: whether there is an L2 term.
      loss: of each model [N], of logits [N, Y] and encoded targets; None for that of the task.
      optimiser: None for `adam`.
    """

    network: Network
    task: Task
    devices: Devices = ONE
    platform: str = "cpu"
    compute: str = "float32"
    decays: bool = True
    loss: Loss | None = None
    optimiser: optax.GradientTransformation | None = None

    def optimiser_at(self, rates: Rates) -> optax.GradientTransformation:
        """The optimiser at rates that may be traced."""
        return self.optimiser or adam(rates, decays=self.decays)


class Best(struct.PyTreeNode):
    """The best evaluation on one split so far.

    Args:
      params: parameters of the network at that time.
      accuracy: its accuracy; -inf before the first evaluation.
      epoch: its epoch.
      accuracy_E: the accuracy at each evaluation.
    """

    params: Any
    accuracy: jax.Array
    epoch: jax.Array
    accuracy_E: jax.Array


class State(struct.PyTreeNode):
    """Everything that training changes.

    Of networks that are trained side by side all but `epoch` and `evaluation` have two more axes
    in front, layers and variants of the recipe.

    Args:
      epoch: epochs done, int32.
      evaluation: evaluations done, int32.
      params: parameters of the network.
      opt_state: state of the optimiser.
      loss_E: mean training loss over the epochs before each evaluation.
      best: of each split that is evaluated, "val" and perhaps "val_holdout", the best so far.
    """

    epoch: jax.Array
    evaluation: jax.Array
    params: Any
    opt_state: Any
    loss_E: jax.Array
    best: dict[str, Best]


# The axes of a state by which networks are side by side.
_EACH: Any = State(*[None] * 2, *[0] * 4)  # type: ignore[arg-type]


def init(
    program: Program, n_evaluations: int, evaluated: tuple[str, ...], one: Any, key: jax.Array
) -> State:
    """A new network before its first evaluation.

    Args:
      program: what is trained.
      n_evaluations: of the whole training.
      evaluated: names of the splits that are evaluated.
      one: shapes of one model's matrix [1, H, W] and of the texts, as `jax.ShapeDtypeStruct`.
      key: decides the parameters.
    """
    params = program.network.lazy_init(key, *one)["params"]
    history = np.zeros(n_evaluations, np.float32)
    best: Any = Best(params, np.float32(-np.inf), np.int32(-1), history)  # type: ignore[arg-type]
    opt_state = program.optimiser_at(Rates(0.0, 0.0)).init(params)
    zero: Any = np.int32(0)
    return State(zero, zero, params, opt_state, history, dict.fromkeys(evaluated, best))  # type: ignore[arg-type]


def loss_and_gradient(
    program: Program,
    params: Any,
    split: Split,
    index_B: jax.Array,
    weight_B: jax.Array | None = None,
    *,
    n_models: int | None = None,
) -> tuple[jax.Array, Any]:
    """Mean loss of a batch, and its gradient.

    Args:
      index_B: [B] int, the models of the batch.
      weight_B: [B] float, 0 for those that only fill it up, else 1; None where all count.
      n_models: how many the mean is over; None for B. More, where `split` is a part of the batch:
        the losses and gradients of all parts then add up to those of the batch.
    """
    n_models = len(index_B) if n_models is None else n_models
    position_KxM, weight_KxM = micro_batches(len(index_B), split.x, program.platform)
    index_KxM, counts_KxM = index_B[position_KxM], jnp.asarray(weight_KxM)
    if weight_B is not None:
        counts_KxM *= weight_B[position_KxM]
    loss = program.loss or program.task.loss

    def micro_loss(params, index_M, weight_M):
        x = split.x[index_M]
        logits_MY = forward(program.network, params, x, split.texts, program.compute)
        return jnp.sum(weight_M * loss(logits_MY, split.y[index_M])) / n_models

    def add(total, micro):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(micro_loss)(params, *micro)), None

    if len(index_KxM) == 1:
        return jax.value_and_grad(micro_loss)(params, index_KxM[0], counts_KxM[0])
    zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, (index_KxM, counts_KxM))[0]


def step(
    program: Program,
    axis: str | None,
    rates: Rates,
    train: Split,
    carry: tuple[Any, Any],
    batch: tuple[jax.Array, jax.Array | None],
    size: int,
) -> tuple[tuple[Any, Any], jax.Array]:
    """One step of the optimiser, on a batch of `size` models of all devices of the axis.

    Args:
      carry: parameters and the optimiser's state.
      batch: index [B] and weight [B] of this device's models, as of `loss_and_gradient`.

    Returns:
      The new carry, and the mean loss over the batch.
    """
    params, opt_state = carry
    found = loss_and_gradient(program, params, train, *batch, n_models=size)
    loss, gradient = _summed(found, axis)
    updates, moved = program.optimiser_at(rates).update(gradient, opt_state, params)
    # Rates are float32, and would make float32 of what narrower parameters are moved by.
    opt_state = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, opt_state)
    return (optax.apply_updates(params, updates), opt_state), loss


def epoch(
    program: Program,
    axis: str | None,
    rates: Rates,
    train: Split,
    carry: tuple[Any, Any],
    batches: Batches,
) -> tuple[tuple[Any, Any], jax.Array]:
    """One pass over the training models, in the batches of one epoch; as `step`."""
    one = partial(step, program, axis, rates, train)
    n_full, total = len(batches.index), jnp.float32(0.0)
    if n_full:
        full = (batches.index, batches.weight)
        carry, losses = jax.lax.scan(partial(one, size=batches.size), carry, full)
        total += losses.sum() * batches.size
    if batches.rest:
        last = (batches.rest_index, batches.rest_weight)
        carry, loss = one(carry, last, batches.rest)
        total += loss * batches.rest
    return carry, total / (n_full * batches.size + batches.rest)


def evaluate(
    program: Program, axis: str | None, params: Any, split: Split
) -> tuple[jax.Array, jax.Array]:
    """How much of a split is told correctly, and of how much: their ratio is the accuracy."""

    def answer(x):
        return forward(program.network, params, x, split.texts, program.compute)

    logits_NY = in_micro_batches(answer, split.x, program.platform)
    correct_N = program.task.correct(logits_NY, split.y)
    weight_N = jnp.ones_like(correct_N) if split.weight is None else split.weight
    return _summed((jnp.sum(weight_N * correct_N), jnp.sum(weight_N)), axis)


def _summed(tree: Any, axis: str | None) -> Any:
    """The sum over all devices of an axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def _recorded(
    state: State,
    carry: tuple[Any, Any],
    epoch: jax.Array,
    loss: jax.Array,
    shares: Mapping[str, tuple[Any, Any]],
) -> State:
    """The state after an evaluation; a tie does not replace an earlier best."""
    params, opt_state = carry
    epoch, best = jnp.asarray(epoch, jnp.int32), {}
    for name, (correct, of) in shares.items():
        before, accuracy = state.best[name], correct / of
        better = accuracy > before.accuracy
        best[name] = Best(
            params=jax.tree.map(partial(jnp.where, better), params, before.params),
            accuracy=jnp.where(better, accuracy, before.accuracy),
            epoch=jnp.where(better, epoch, before.epoch),
            accuracy_E=before.accuracy_E.at[state.evaluation].set(accuracy),
        )
    return State(
        epoch=epoch,
        evaluation=state.evaluation + 1,
        params=params,
        opt_state=opt_state,
        loss_E=state.loss_E.at[state.evaluation].set(loss),
        best=best,
    )


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def advance(
    program: Program,
    state: State,
    rates: Rates,
    train: Split,
    evaluated: dict[str, Split],
    batches: Batches,
    n_epochs: jax.Array,
) -> State:
    """Trains every network for `n_epochs`, at most as many as there are batches of, and evaluates.

    Args:
      state: of L layers and V variants of each.
      rates: [V] each.
      train, evaluated: x [L, N, H, W].
      batches: [D, S, E, ...] of D devices, of one alone [S, E, ...]; S is V or 1.
    """

    def part(axis, state, rates, train, evaluated, batches, n_epochs):
        """What one device does."""
        if axis is not None:
            batches = jax.tree.map(lambda leaf: leaf[0], batches)
        n_layers, n_variants = state.loss_E.shape[:2]
        of_seed: int | None = 0
        if n_variants > len(batches.index):  # one order for all of them
            batches, of_seed = jax.tree.map(lambda leaf: leaf[0], batches), None
        one = partial(_advance, program, axis)
        variants = _side_by_side(one, n_variants, (_EACH, 0, None, None, of_seed, None))
        split = Split(x=0, y=None, texts=None, weight=None)  # type: ignore[arg-type]
        axes = (_EACH, None, split, dict.fromkeys(evaluated, split), None, None)
        layers = _side_by_side(variants, n_layers, axes)
        return layers(state, rates, train, evaluated, batches, n_epochs)

    of_evaluated = {name: specs(split) for name, split in evaluated.items()}
    in_specs = (P(), P(), specs(train), of_evaluated, P(AXIS), P())
    arguments = (state, rates, train, evaluated, batches, n_epochs)
    return _on_devices(program.devices, part, in_specs)(*arguments)


def _on_devices(
    devices: Devices, function: Callable[..., Any], in_specs: Any
) -> Callable[..., Any]:
    """A function of an axis and each device's part of the arguments; its results are replicated."""
    if devices.mesh is None:
        return partial(function, None)
    # Sums over devices are written out, of losses and gradients at once: no check_vma.
    part = partial(function, AXIS)
    return jax.shard_map(part, mesh=devices.mesh, in_specs=in_specs, out_specs=P(), check_vma=False)


def _side_by_side(function: Callable[..., State], size: int, axes: tuple) -> Callable[..., State]:
    """Of one network, a function of several; a single one has no axis more in its program."""
    if size > 1:
        return jax.vmap(function, in_axes=axes, out_axes=_EACH)

    def at(index, axis, part):
        return part if axis is None else jax.tree.map(lambda leaf: leaf[index], part)

    def only(*arguments):
        inner = jax.tree.map(partial(at, 0), axes, arguments, is_leaf=lambda a: a is None)
        result = function(*inner)
        return jax.tree.map(partial(at, None), _EACH, result, is_leaf=lambda a: a is None)

    return only


def _advance(
    program: Program,
    axis: str | None,
    state: State,
    rates: Rates,
    train: Split,
    evaluated: dict[str, Split],
    batches: Batches,
    n_epochs: jax.Array,
) -> State:
    """`advance` of one network, on one device of the axis."""

    def one_epoch(index, carried):
        carry, total = carried
        of_epoch = jax.tree.map(lambda leaf: leaf[index], batches)
        carry, loss = epoch(program, axis, rates, train, carry, of_epoch)
        return carry, total + loss

    start = (state.params, state.opt_state), jnp.float32(0.0)
    carry, total = jax.lax.fori_loop(0, n_epochs, one_epoch, start)
    shares = {name: evaluate(program, axis, carry[0], each) for name, each in evaluated.items()}
    mean = total / jnp.maximum(n_epochs, 1)
    return _recorded(state, carry, state.epoch + n_epochs, mean, shares)


def advance_streamed(
    program: Program, state: State, rates: Rates, stream: Any, until: int
) -> State:
    """As `advance`, of one network, to an epoch, with batches that are read as they are needed.

    Args:
      state: the first step takes its memory.
      stream: `training(first_epoch, until)` and `evaluation(name)` iterate over splits on the
        devices, each with the number of its models on all of them.
    """
    carry, total, n_seen = (state.params, state.opt_state), jnp.float32(0.0), 0
    for batch, size in stream.training(int(state.epoch), until):
        carry, loss = _streamed_step(program, carry, rates, batch, size)
        total, n_seen = total + loss * size, n_seen + size
    shares = {}
    for name in state.best:
        parts = [_streamed_share(program, carry[0], batch) for batch, _ in stream.evaluation(name)]
        shares[name] = tuple(sum(each) for each in zip(*parts, strict=True))
    return _recorded(state, carry, jnp.int32(until), total / max(n_seen, 1), shares)


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=1)
def _streamed_step(program: Program, carry: Any, rates: Rates, batch: Split, size: int) -> Any:
    def part(axis, carry, rates, batch):
        chosen = jnp.arange(batch.y.shape[0]), batch.weight
        return step(program, axis, rates, batch, carry, chosen, size)

    in_specs = (P(), P(), specs(batch, layers=False))
    return _on_devices(program.devices, part, in_specs)(carry, rates, batch)


@partial(jax.jit, static_argnums=0)
def _streamed_share(program: Program, params: Any, batch: Split) -> Any:
    part = partial(evaluate, program)
    return _on_devices(program.devices, part, (P(), specs(batch, layers=False)))(params, batch)
