"""What one network is trained to do: losses and gradients, logits and what of them is right.

Pure functions of one network's parameters and the matrices of some models.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from probex_jax.experts.network import Network
from probex_jax.matrices import Matrices, Squared, may_be_sharded

# On a CPU the gradient of a batch is taken over micro-batches of about this many bytes of weights:
# 16 matrices of 768x768. The intermediate products then stay in cache
# (experiments/benchmarks/forms.py measures it); accelerators take the batch whole, and so does an
# encoder that reads `Squared` matrices one after the other.
MICRO_BATCH_BYTES = 40e6


class Split(NamedTuple):
    """The models of one split.

    Args:
      x: [N, H, W] float, one layer's matrices; or `LowRank` or `Centred` of that shape.
      y: [N, Y] of zeros and ones, which classes each model is of; or [N] int, which one of `texts`.
      texts: [Y, D] float, embeddings of the candidate texts; None for classification.
      weight: [N] float, 0 for what only fills a split up and counts for nothing, else 1; None
        where all models count.
    """

    x: Matrices
    y: jax.Array
    texts: jax.Array | None = None
    weight: jax.Array | None = None


def products(compute: str) -> AbstractContextManager:
    """How products of float32 are computed inside of it: stated, not left to the hardware.

    Args:
      compute: as `Recipe.compute`; in bfloat16 the encoder's are, and what is left is exact.
    """
    exact = "tensorfloat32" if compute == "tensorfloat32" else "highest"
    return jax.default_matmul_precision(exact)


def forward(
    network: Network, params: Any, x: Matrices, texts: Any = None, compute: str = "float32"
) -> jax.Array:
    """Logits [N, Y] float32 of a batch of matrices [N, H, W] of any float, in training."""
    params = {**params, "encoder": as_read(params["encoder"], compute)}
    with products(compute):
        answer: Any = network.apply({"params": params}, as_read(x, compute), texts)
    return answer.astype(jnp.float32)


def as_read(tree: Any, compute: str) -> Any:
    """Arrays as the encoder's products take them; what is no number of any precision stays."""
    dtype = jnp.bfloat16 if compute == "bfloat16" else jnp.float32

    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def loss_and_gradient(
    network: Network,
    params: Any,
    split: Split,
    index_B: jax.Array,
    weight_B: jax.Array | None = None,
    *,
    n_models: int | None = None,
    compute: str = "float32",
) -> tuple[jax.Array, Any]:
    """Mean loss of a batch, and its gradient.

    Args:
      index_B: [B] int, the models of the batch.
      weight_B: [B] float, 0 for those that only fill it up, else 1; None where all count.
      n_models: how many the mean is over; None for B. More, where `split` is a part of the batch:
        the losses and gradients of all parts then add up to those of the batch.
      compute: as `Recipe.compute`.
    """
    n_models = len(index_B) if n_models is None else n_models
    position_KxM, weight_KxM = micro_batches(len(index_B), split.x)
    index_KxM, counts_KxM = index_B[position_KxM], jnp.asarray(weight_KxM)
    if weight_B is not None:
        counts_KxM *= weight_B[position_KxM]

    def micro_loss(params, index_M, weight_M):
        logits_MY = forward(network, params, split.x[index_M], split.texts, compute)
        return jnp.sum(weight_M * losses(logits_MY, split.y[index_M])) / n_models

    def add(total, micro):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(micro_loss)(params, *micro)), None

    if len(index_KxM) == 1:
        return jax.value_and_grad(micro_loss)(params, index_KxM[0], counts_KxM[0])
    zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, (index_KxM, counts_KxM))[0]


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


def share_right(
    network: Network, params: Any, split: Split, compute: str = "float32"
) -> tuple[jax.Array, jax.Array]:
    """How much of a split is told rightly, and of how much: their ratio is the accuracy."""

    def answer(x):
        return forward(network, params, x, split.texts, compute)

    told = right(in_micro_batches(answer, split.x), split.y).astype(jnp.float32)
    share_N = told.mean(axis=1) if told.ndim == 2 else told
    weight_N = jnp.ones_like(share_N) if split.weight is None else split.weight
    return jnp.sum(weight_N * share_N), jnp.sum(weight_N)


def logits(network: Network, variables: Any, x: Any, texts: jax.Array | None = None) -> jax.Array:
    """Logits [N, Y] of any number of matrices [N, H, W], a micro-batch at a time."""
    with products("float32"):
        return in_micro_batches(lambda x: network.apply(variables, x, texts), x)


def representations(
    network: Network, variables: Any, x: Any, compute: str = "float32"
) -> jax.Array:
    """Representations [N, T] of any number of matrices [N, H, W], a micro-batch at a time."""
    with products(compute):
        return in_micro_batches(lambda x: network.apply(variables, x, method="encode"), x)


def in_micro_batches(function: Callable[[Any], Any], x: Any) -> jax.Array:
    """A function of matrices [N, H, W] -> [N, Y], applied to a micro-batch at a time.

    A sharded batch is passed whole: indexing its models would gather them.
    """
    if may_be_sharded(x):
        return function(x)
    n_models = x.shape[0]
    position_KxM, _ = micro_batches(n_models, x)
    results_KxMxY = jax.lax.map(lambda index: function(x[index]), jnp.asarray(position_KxM))
    return results_KxMxY.reshape(-1, results_KxMxY.shape[-1])[:n_models]


def micro_batches(size: int, x: Matrices) -> tuple[np.ndarray, np.ndarray]:
    """Divides a batch into K micro-batches of M models, as equal as they get.

    Args:
      size: models of the batch.
      x: [N, H, W], for the size of its matrices or factors.

    Returns:
      [K, M] places in the batch, the last one repeated to fill up; [K, M] float32 weights, 0 for
      those.
    """
    largest = size
    if jax.default_backend() == "cpu" and not isinstance(x, Squared):
        matrix_bytes = sum(leaf.nbytes // leaf.shape[0] for leaf in jax.tree.leaves(x))
        largest = max(1, int(MICRO_BATCH_BYTES // matrix_bytes))
    count = -(-size // largest)
    width = -(-size // count)
    position = np.arange(count * width).reshape(count, width)
    return np.minimum(position, size - 1), (position < size).astype(np.float32)
