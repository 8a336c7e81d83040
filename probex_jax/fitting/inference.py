"""Logits and representations of any number of models, at a stated precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.fitting.network import Network
from probex_jax.fitting.task import Task
from probex_jax.matrices import Matrices, Squared, may_be_sharded

# A CPU takes a batch in micro-batches of about this many bytes of weights: 16 matrices of 768x768.
# The intermediate products then stay in cache (experiments/benchmarks/forms.py measures it);
# accelerators take the batch whole, and so does an encoder that reads `Squared` matrices one after
# the other.
MICRO_BATCH_BYTES = 40e6


@partial(jax.jit, static_argnums=0)
def logits(network: Network, variables: Any, x: Any, texts: jax.Array | None = None) -> jax.Array:
    """Logits [N, Y] of any number of matrices [N, H, W], in float32."""
    with products("float32"):
        return in_micro_batches(lambda x: network.apply(variables, x, texts), x)


@partial(jax.jit, static_argnums=(0, 3))
def representations(
    network: Network, variables: Any, x: Any, compute: str = "float32"
) -> jax.Array:
    """Representations [N, T] of any number of matrices [N, H, W]."""
    with products(compute):
        return in_micro_batches(lambda x: network.apply(variables, x, method="encode"), x)


@partial(jax.jit, static_argnums=0)
def predictions(task: Task, logits: jax.Array, temperature: float) -> jax.Array:
    """What a task makes of logits [N, Y], in one program."""
    return task.predictions(logits, temperature)


def forward(
    network: Network, params: Any, x: Matrices, texts: Any = None, compute: str = "float32"
) -> jax.Array:
    """Logits [N, Y] float32 of a batch of matrices [N, H, W] of any float, in training."""
    params = {**params, "encoder": as_read(params["encoder"], compute)}
    with products(compute):
        answer: Any = network.apply({"params": params}, as_read(x, compute), texts)
    return answer.astype(jnp.float32)


def products(compute: str) -> AbstractContextManager:
    """How products of float32 are computed inside of it: stated, not left to the hardware.

    Args:
      compute: as `Adam.compute`; in bfloat16 the encoder's are, and the rest is exact.
    """
    exact = "tensorfloat32" if compute == "tensorfloat32" else "highest"
    return jax.default_matmul_precision(exact)


def as_read(tree: Any, compute: str) -> Any:
    """Arrays as the encoder's products take them; integers stay."""
    dtype = jnp.bfloat16 if compute == "bfloat16" else jnp.float32

    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def in_micro_batches(
    function: Callable[[Any], Any], x: Any, platform: str | None = None
) -> jax.Array:
    """A function of matrices [N, H, W] -> [N, Y], on a CPU applied to a micro-batch at a time.

    A sharded batch is passed whole, since indexing its models would gather them; so is one of a
    symbolic number of models.

    Args:
      function: what is applied.
      x: [N, H, W].
      platform: what the program is lowered for; None to find out when it is.
    """
    if may_be_sharded(x) or not isinstance(x.shape[0], int):
        return function(x)
    position_KxM, _ = micro_batches(x.shape[0], x, "cpu")
    if len(position_KxM) == 1 or platform not in ("cpu", None):
        return function(x)

    def looped(x):
        results_KxMxY = jax.lax.map(lambda index: function(x[index]), jnp.asarray(position_KxM))
        return results_KxMxY.reshape(-1, results_KxMxY.shape[-1])[: x.shape[0]]

    return looped(x) if platform else jax.lax.platform_dependent(x, cpu=looped, default=function)


def micro_batches(size: int, x: Matrices, platform: str) -> tuple[np.ndarray, np.ndarray]:
    """Divides a batch into K micro-batches of M models, as equal as they get.

    Args:
      size: models of the batch.
      x: [N, H, W], for the size of its matrices or factors.
      platform: "cpu", or one that takes the batch whole.

    Returns:
      [K, M] places in the batch, the last one repeated to fill up; [K, M] float32 weights, 0 for
      those.
    """
    largest = size
    if platform == "cpu" and not isinstance(x, Squared):
        matrix_bytes = sum(leaf.nbytes // leaf.shape[0] for leaf in jax.tree.leaves(x))
        largest = max(1, int(MICRO_BATCH_BYTES // matrix_bytes))
    count = -(-size // largest)
    width = -(-size // count)
    position = np.arange(count * width).reshape(count, width)
    return np.minimum(position, size - 1), (position < size).astype(np.float32)
