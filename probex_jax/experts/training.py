"""Fitting one expert on one layer: a compiled program from one evaluation to the next.

The data of a layer is on the device once. `advance` runs any number of epochs and the evaluation
after them as one program; it is compiled once per network, recipe and shape of the data, so layers
of one shape share it. All that a resumed run needs is in `State`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from probex_jax.errors import ProbexError
from probex_jax.experts.network import Network
from probex_jax.matrices import Matrices, Squared

# On a CPU the gradient of a batch is taken over micro-batches of about this many bytes of weights:
# 16 matrices of 768x768. The intermediate products then stay in cache
# (experiments/benchmarks/forms.py measures it); accelerators take the batch whole, and so does an
# encoder that reads `Squared` matrices one after the other.
_MICRO_BATCH_BYTES = 40e6


@dataclass(frozen=True)
class Recipe:
    """How an expert is trained; the defaults are those of the ProbeX paper.

    Args:
      learning_rate: of Adam.
      l2: weight of the L2 term, added to the gradient (not decoupled).
      batch_size: models a step; the last, short batch of an epoch is kept.
      epochs: passes over the training split.
      eval_every: epochs between two evaluations on the validation split; it is evaluated before
        training, after every so many epochs, and at the end.
      seed: of the initialisation and of the order of the models.

    Raises:
      ProbexError: if a field is of another type or out of its range.

    Example:
      >>> Recipe(epochs=100).n_evaluations
      5
    """

    learning_rate: float = 1e-3
    l2: float = 1e-5
    batch_size: int = 128
    epochs: int = 500
    eval_every: int = 25
    seed: int = 0

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("epochs", 1), ("eval_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if not (type(value) is int and least <= value < 2**31):
                raise ProbexError(f"recipe.{name}: {value!r} is not a whole number >= {least}")
        for name in ("learning_rate", "l2"):
            value = getattr(self, name)
            if not (type(value) in (int, float) and 0 <= value < float("inf")):
                raise ProbexError(f"recipe.{name}: {value!r} is not a number >= 0")

    @property
    def n_evaluations(self) -> int:
        """Evaluations of a whole training, the one before it included."""
        return 1 + -(-self.epochs // self.eval_every)


class Split(NamedTuple):
    """The models of one split.

    Args:
      x: [N, H, W] float, one layer's matrices; or `LowRank` or `Centred` of that shape.
      y: [N, Y] of zeros and ones, which classes each model is of; or [N] int, which one of `texts`.
      texts: [Y, D] float, embeddings of the candidate texts; None for classification.
    """

    x: Matrices
    y: jax.Array
    texts: jax.Array | None = None


class Best(struct.PyTreeNode):
    """The best evaluation on one split so far.

    Args:
      params: parameters of the network at that time.
      accuracy: its accuracy; -1 before the first evaluation.
      epoch: its epoch.
      accuracy_E: the accuracy at each evaluation.
    """

    params: Any
    accuracy: jax.Array
    epoch: jax.Array
    accuracy_E: jax.Array


class State(struct.PyTreeNode):
    """Everything that training changes.

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


def fit(
    network: Network,
    recipe: Recipe,
    train: Split,
    val: Split,
    *,
    val_holdout: Split | None = None,
    state: State | None = None,
    on_evaluation: Callable[[State], None] = lambda state: None,
) -> State:
    """Trains to the end of the recipe, keeping the parameters that are best on `val`.

    Classification is trained with a binary cross-entropy per class, alignment with text (splits
    that have `texts`) with the softmax cross-entropy over the candidates.

    Args:
      network: what is trained.
      recipe: how.
      train, val: data of the two splits; put on the device here, if it is not there.
      val_holdout: models of classes that are not trained on, among themselves; the parameters that
        are best on it are kept as well.
      state: where to go on from; None starts anew. Whether training was interrupted or not, the
        result is the same to the bit on the same machine.
      on_evaluation: called with the state after each evaluation; the next step reuses the memory
        of that state, so whoever wants to keep it copies it. The same holds for `state`.

    Returns:
      The final state.

    Example:
      >>> import jax.numpy as jnp
      >>> from probex_jax.experts import build_network
      >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1, 1) * jnp.ones([8, 3, 2])
      >>> data = Split(x, (x[:, 0, :1] > 0).astype(jnp.float32))
      >>> network = build_network({"name": "dense"}, head="none", n_classes=1)
      >>> recipe = Recipe(learning_rate=0.1, epochs=50, eval_every=10)
      >>> float(fit(network, recipe, data, data).best["val"].accuracy)
      1.0
    """
    evaluated = {"val": val} | ({} if val_holdout is None else {"val_holdout": val_holdout})
    train, evaluated = jax.device_put((train, evaluated))
    train = prepared(network, train)
    if state is None:
        state = initial_state(network, recipe, train, tuple(evaluated))
    while int(state.evaluation) < recipe.n_evaluations:
        until = min(int(state.evaluation) * recipe.eval_every, recipe.epochs)
        orders_ExN = epoch_orders(recipe, train.x.shape[0], state.epoch)
        n_epochs = until - int(state.epoch)
        state = advance(network, recipe, state, train, evaluated, orders_ExN, n_epochs)
        on_evaluation(state)
    return state


def prepared(network: Network, train: Split) -> Split:
    """The training models as the encoder reads them fastest, again and again."""
    if network.normalise != "none" or not hasattr(network.encoder, "prepare"):
        return train
    return train._replace(x=network.encoder.prepare(train.x))


@partial(jax.jit, static_argnames=("network", "recipe", "evaluated"))
def initial_state(
    network: Network, recipe: Recipe, train: Split, evaluated: tuple[str, ...] = ("val",)
) -> State:
    """A new network, before its first evaluation.

    Args:
      train: used for its shapes alone.
      evaluated: names of the splits to evaluate.
    """
    params = network.init(jax.random.key(recipe.seed), train.x[:1], train.texts)["params"]
    history = jnp.zeros(recipe.n_evaluations)
    best = Best(params, accuracy=jnp.float32(-1.0), epoch=jnp.int32(-1), accuracy_E=history)
    return State(
        epoch=jnp.int32(0),
        evaluation=jnp.int32(0),
        params=params,
        opt_state=optimiser(recipe).init(params),
        loss_E=history,
        best=dict.fromkeys(evaluated, best),
    )


def optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """Adam with the L2 term in the gradient, as PyTorch's Adam has it."""
    return optax.chain(optax.add_decayed_weights(recipe.l2), optax.adam(recipe.learning_rate))


@partial(jax.jit, static_argnames=("recipe", "n_models"))
def epoch_orders(recipe: Recipe, n_models: int, first_epoch: jax.Array) -> jax.Array:
    """The orders of the training models in the epochs up to the next evaluation, [E, N].

    A program of its own, so that drawing them is compiled once for all layers.
    """

    def order(epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), n_models)

    key = jax.random.fold_in(jax.random.key(recipe.seed), 1)
    return jax.lax.map(order, first_epoch + jnp.arange(min(recipe.eval_every, recipe.epochs)))


@partial(jax.jit, static_argnames=("network", "recipe"), donate_argnames="state")
def advance(
    network: Network,
    recipe: Recipe,
    state: State,
    train: Split,
    evaluated: dict[str, Split],
    orders_ExN: jax.Array,
    n_epochs: int,
) -> State:
    """Trains for `n_epochs` (at most E), then evaluates."""

    def epoch(index, carry):
        params, opt_state, total = carry
        params, opt_state, loss = train_epoch(
            network, recipe, params, opt_state, train, orders_ExN[index]
        )
        return params, opt_state, total + loss

    carry = (state.params, state.opt_state, jnp.float32(0.0))
    params, opt_state, total = jax.lax.fori_loop(0, n_epochs, epoch, carry)
    done = (state.epoch + n_epochs).astype(jnp.int32)
    best = {}
    for name, split in evaluated.items():
        logits_NY = logits(network, {"params": params}, split.x, split.texts)
        accuracy = jnp.mean(right(logits_NY, split.y))
        best[name] = _updated(state.best[name], params, accuracy, done, state.evaluation)
    return state.replace(
        epoch=done,
        evaluation=state.evaluation + 1,
        params=params,
        opt_state=opt_state,
        loss_E=state.loss_E.at[state.evaluation].set(total / jnp.maximum(n_epochs, 1)),
        best=best,
    )


def _updated(best: Best, params: Any, accuracy: Any, epoch: Any, evaluation: Any) -> Best:
    """With one more evaluation; a tie does not replace an earlier one."""
    better = accuracy > best.accuracy
    return Best(
        params=jax.tree.map(partial(jnp.where, better), params, best.params),
        accuracy=jnp.where(better, accuracy, best.accuracy),
        epoch=jnp.where(better, epoch, best.epoch),
        accuracy_E=best.accuracy_E.at[evaluation].set(accuracy),
    )


def train_epoch(
    network: Network, recipe: Recipe, params: Any, opt_state: Any, train: Split, order_N: jax.Array
) -> tuple[Any, Any, jax.Array]:
    """One pass over the training models in the order given.

    Returns:
      params, opt_state, and the mean loss over the models.
    """
    n_models = train.x.shape[0]
    batch_size = min(recipe.batch_size, n_models)
    n_full, rest = divmod(n_models, batch_size)

    def step(carry, index_B):
        params, opt_state = carry
        loss, gradient = loss_and_gradient(network, params, train, index_B)
        updates, opt_state = optimiser(recipe).update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    full = order_N[: n_full * batch_size].reshape(n_full, batch_size)
    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), full)
    total = losses.sum() * batch_size
    if rest:
        (params, opt_state), loss = step((params, opt_state), order_N[-rest:])
        total += loss * rest
    return params, opt_state, total / n_models


def loss_and_gradient(
    network: Network, params: Any, split: Split, index_B: jax.Array
) -> tuple[jax.Array, Any]:
    """Mean loss of a batch, and its gradient.

    Args:
      index_B: [B] int, the models of the batch.
    """
    index_KxM, weight_KxM = micro_batches(index_B, split.x)

    def micro_loss(params, index_M, weight_M):
        logits_MY: Any = network.apply({"params": params}, split.x[index_M], split.texts)
        return jnp.sum(weight_M * losses(logits_MY, split.y[index_M])) / len(index_B)

    def add(total, micro):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(micro_loss)(params, *micro)), None

    if len(index_KxM) == 1:
        return jax.value_and_grad(micro_loss)(params, index_KxM[0], weight_KxM[0])
    zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, (index_KxM, weight_KxM))[0]


def losses(logits_NY: jax.Array, y: jax.Array) -> jax.Array:
    """The loss of each model [N]: see `Split` for what y may be."""
    if y.ndim == 2:
        return optax.sigmoid_binary_cross_entropy(logits_NY, y).mean(axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(logits_NY, y)


def right(logits_NY: jax.Array, y: jax.Array) -> jax.Array:
    """What was told rightly: entries [N, Y] at probability one half, or models [N]."""
    if y.ndim == 2:
        return (logits_NY > 0) == (y > 0.5)
    return logits_NY.argmax(axis=1) == y


def logits(network: Network, variables: Any, x: Any, texts: jax.Array | None = None) -> jax.Array:
    """Logits [N, Y] of any number of matrices [N, H, W], a micro-batch at a time."""
    return _in_micro_batches(lambda x: network.apply(variables, x, texts), x)


def representations(network: Network, variables: Any, x: Any) -> jax.Array:
    """Representations [N, T] of any number of matrices [N, H, W], a micro-batch at a time."""
    return _in_micro_batches(lambda x: network.apply(variables, x, method="encode"), x)


def _in_micro_batches(function: Callable[[Any], Any], x: Any) -> jax.Array:
    n_models = x.shape[0]
    index_KxM, _ = micro_batches(jnp.arange(n_models), x)
    results_KxMxY = jax.lax.map(lambda index: function(x[index]), index_KxM)
    return results_KxMxY.reshape(-1, results_KxMxY.shape[-1])[:n_models]


def micro_batches(index_B: jax.Array, x: Matrices) -> tuple[jax.Array, jax.Array]:
    """Divides a batch into K micro-batches of M models, as equal as they get.

    Args:
      index_B: [B] int, the models of the batch.
      x: [N, H, W], for the size of its matrices or factors.

    Returns:
      [K, M] indices, the last ones repeated to fill up; [K, M] float32 weights, 0 for those.
    """
    (size,) = index_B.shape
    largest = size
    if jax.default_backend() == "cpu" and not isinstance(x, Squared):
        matrix_bytes = sum(leaf.nbytes // leaf.shape[0] for leaf in jax.tree.leaves(x))
        largest = max(1, int(_MICRO_BATCH_BYTES // matrix_bytes))
    count = -(-size // largest)
    width = -(-size // count)
    position = np.arange(count * width)
    weight = (position < size).astype(np.float32).reshape(count, width)
    return index_B[np.minimum(position, size - 1)].reshape(count, width), jnp.asarray(weight)
