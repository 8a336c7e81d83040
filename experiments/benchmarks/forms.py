"""Times several ways to compute the gradient of ProbeX's products.

Example:
  python -m experiments.benchmarks.forms
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.benchmarks import timing
from probex_jax.matrices import project

_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs; the median counts.")

BATCH, DIM, UNITS = 128, 768, 128


def einsum(x, left, right):
    """Right product, then a contraction of the middle axis."""
    return jnp.einsum("nhu,hv->nuv", x @ right, left)


def left_first(x, left, right):
    """Left product, then right."""
    return (jnp.einsum("nhw,hv->nvw", x, left) @ right).mT


def transposed(x, left, right):
    """Right product, transposed, left product."""
    return (x @ right).mT @ left


def ours(x, left, right):
    """What `project` does: probes as the first axis, so that no large array is transposed."""
    return project(x, left, right).mT


def gradient(form: Callable, x: jax.Array, micro: int) -> Callable:
    """Gradient of a scalar of all responses, summed over micro-batches."""

    def loss(params, x):
        return jnp.sum(jax.nn.relu(form(x, *params)) ** 2)

    def add(params, total, index):
        return jax.tree.map(jnp.add, total, jax.grad(loss)(params, x[index]))

    @jax.jit
    def run(params, index):
        zero = jax.tree.map(jnp.zeros_like, params)
        scanned = index.reshape(-1, micro)
        return jax.lax.scan(lambda t, i: (add(params, t, i), None), zero, scanned)[0]

    return run


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x = 0.02 * jax.random.normal(keys[0], [2 * BATCH, DIM, DIM])
    params = tuple(0.05 * jax.random.normal(key, [DIM, UNITS]) for key in keys[1:3])
    index = jax.random.permutation(keys[3], 2 * BATCH)[:BATCH]
    multiply, product_flops = timing.product()
    runs = {
        (form.__name__, micro): gradient(form, x, micro)
        for form in (ours, transposed, einsum, left_first)
        for micro in (128, 16, 4)
    }
    candidates = {str(key): lambda run=run: run(params, index) for key, run in runs.items()}
    measured = timing.seconds({**candidates, "product": multiply}, _REPEATS.value)
    flops = BATCH * (4 * DIM * DIM * UNITS + 6 * UNITS * DIM * UNITS)
    limit = product_flops / measured["product"]
    rows = [
        {"form": form, "models at once": micro, "fraction of the 2048³ rate": rate / limit}
        for form, micro in runs
        if (rate := flops / measured[str((form, micro))])
    ]
    print(cli.table(rows))


if __name__ == "__main__":
    cli.run(main)
