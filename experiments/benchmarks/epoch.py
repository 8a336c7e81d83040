"""One training epoch of an encoder, against the rate of a 2048³ matrix product in the same process.

Counts the FLOPs of the products, forward and backward, with no gradient for the data: for a model
of ProbeX 4·H·W·U + 6·U·H·V + 6·U·V·T; of MVProbe 16·H·W·U + 12·U·(H+W)·V + 24·U·V·T for square
matrices, X Xᵀ and Xᵀ X being made once before all epochs and not in the measured one. With --torch
the same epoch in PyTorch (experiments/benchmarks/pytorch.py) takes turns with it.

Example:
  python -m experiments.benchmarks.epoch
  python -m experiments.benchmarks.epoch --encoder=mvprobe --torch
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from experiments.benchmarks import timing
from probex_jax.experts import Recipe, Split, build_network, training

_MODELS = flags.DEFINE_integer("models", 256, "Models of the epoch.")
_DIM = flags.DEFINE_integer("dim", 768, "Rows and columns of a matrix.")
_ENCODER = flags.DEFINE_enum("encoder", "probex", ["probex", "mvprobe"], "Which encoder.")
_REP_DIM = flags.DEFINE_integer(
    "rep_dim", None, "Size of the representation; 128 for probex, 512 for mvprobe if not given."
)
_TORCH = flags.DEFINE_bool("torch", False, "Whether to compare with PyTorch.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed runs; the median is printed.")

N_PROBES = PROJ_DIM = 128
N_CLASSES = 100


def main() -> None:
    n, d, name = _MODELS.value, _DIM.value, _ENCODER.value
    t = _REP_DIM.value or {"probex": 128, "mvprobe": 512}[name]
    encoder = {"name": name, "n_probes": N_PROBES, "proj_dim": PROJ_DIM, "rep_dim": t}
    network, recipe = build_network(encoder, "class", N_CLASSES), Recipe()
    key = jax.random.key(1)
    x = 0.02 * jax.random.normal(key, [n, d, d])
    data = Split(x, jnp.asarray(jax.random.bernoulli(key, shape=[n, N_CLASSES]), jnp.float32))
    prepared = training.prepared(network, data)
    state = training.initial_state(network, recipe, data)
    order = training.epoch_orders(recipe, n, jnp.int32(0))[0]
    epoch = jax.jit(functools.partial(training.train_epoch, network, recipe))
    multiply, product_flops = timing.product()
    candidates = {
        "epoch": lambda: epoch(state.params, state.opt_state, prepared, order),
        "product": multiply,
    }
    if _TORCH.value:
        candidates["torch"] = _in_torch(recipe, state.params, data, order)
    measured = timing.seconds(candidates, _REPEATS.value)
    branches, products = {"probex": (1, 4), "mvprobe": (4, 16)}[name]
    responses = branches * N_PROBES * PROJ_DIM
    flops = n * (products * d * d * N_PROBES + 6 * responses * (d + t))
    rate, limit = flops / measured["epoch"], product_flops / measured["product"]
    row = {
        "encoder": name,
        "models": n,
        "matrix": f"{d}x{d}",
        "epoch, s": measured["epoch"],
        "GFLOP/s": round(rate / 1e9, 1),
        "2048³ product, GFLOP/s": round(limit / 1e9, 1),
        "fraction": rate / limit,
    }
    if _TORCH.value:
        row["PyTorch, s"] = measured["torch"]
        row["times as fast as PyTorch"] = measured["torch"] / measured["epoch"]
    print(cli.table([row]))


def _in_torch(recipe, params, data, order):
    from experiments.benchmarks import pytorch  # where it is asked for alone

    batches = np.split(np.asarray(order), range(recipe.batch_size, len(order), recipe.batch_size))
    p = pytorch.parameters(params)
    return pytorch.steps(p, data.x, data.y, batches, recipe.learning_rate, recipe.l2)


if __name__ == "__main__":
    cli.run(main)
