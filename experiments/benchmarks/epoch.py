"""One training epoch of ProbeX, against the rate of a 2048³ matrix product in the same process.

Counts 4·H·W·U + 6·U·H·V + 6·U·V·T FLOPs a model: forward and backward, no gradient for the data.

Example:
  python -m experiments.benchmarks.epoch
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.benchmarks import timing
from probex_jax.experts import Recipe, Split, build_network, training

_MODELS = flags.DEFINE_integer("models", 256, "Models of the epoch.")
_DIM = flags.DEFINE_integer("dim", 768, "Rows and columns of a matrix.")
_REP_DIM = flags.DEFINE_integer("rep_dim", 128, "Size of the representation.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed runs; the median is printed.")

N_PROBES = PROJ_DIM = 128
N_CLASSES = 100


def main() -> None:
    n, d, t = _MODELS.value, _DIM.value, _REP_DIM.value
    encoder = {"name": "probex", "n_probes": N_PROBES, "proj_dim": PROJ_DIM, "rep_dim": t}
    network, recipe = build_network(encoder, "class", N_CLASSES), Recipe()
    key = jax.random.key(1)
    x = 0.02 * jax.random.normal(key, [n, d, d])
    data = Split(x, jnp.asarray(jax.random.bernoulli(key, shape=[n, N_CLASSES]), jnp.float32))
    state = training.initial_state(network, recipe, data)
    order = training.epoch_orders(recipe, n, jnp.int32(0))[0]
    epoch = jax.jit(functools.partial(training.train_epoch, network, recipe))
    multiply, product_flops = timing.product()
    measured = timing.seconds(
        {"epoch": lambda: epoch(state.params, state.opt_state, data, order), "product": multiply},
        _REPEATS.value,
    )
    flops = n * (4 * d * d * N_PROBES + 6 * N_PROBES * d * PROJ_DIM + 6 * N_PROBES * PROJ_DIM * t)
    rate, limit = flops / measured["epoch"], product_flops / measured["product"]
    row = {
        "models": n,
        "matrix": f"{d}x{d}",
        "epoch, s": measured["epoch"],
        "GFLOP/s": round(rate / 1e9, 1),
        "2048³ product, GFLOP/s": round(limit / 1e9, 1),
        "fraction": rate / limit,
    }
    print(cli.table([row]))


if __name__ == "__main__":
    cli.run(main)
