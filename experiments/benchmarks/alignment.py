"""One alignment step on LoRAs kept in factors, against the same step with them multiplied out.

A step is the gradient of the alignment loss over one batch, and Adam; as in training several run in
one compiled scan. Multiplied out, the batch of updates is formed in the step and then treated as
dense matrices are: the faster of taking it whole and in micro-batches. Memory is what the compiled
program needs at its peak, arguments and results included.

Example:
  python -m experiments.benchmarks.alignment
  python -m experiments.benchmarks.alignment --encoder=mvprobe
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from absl import flags

import probex_jax as px
from experiments import cli
from experiments.benchmarks import timing
from probex_jax.experts import Recipe, Split, build_network, training

_ENCODER = flags.DEFINE_enum("encoder", "probex", ["probex", "mvprobe"], "Which encoder.")
_DIM = flags.DEFINE_integer("dim", 1280, "Rows and columns of an update.")
_RANK = flags.DEFINE_integer("rank", 16, "Rank of the factors.")
_BATCH = flags.DEFINE_integer("batch", 128, "LoRAs in the batch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs; the median is printed.")

SIZES = {"n_probes": 128, "proj_dim": 128, "rep_dim": 512}
N_CLASSES, TEXT_DIM = 150, 768
STEPS = 4  # of one run


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    batch, dim, rank = _BATCH.value, _DIM.value, _RANK.value
    data = Split(
        px.LowRank(
            jax.random.normal(keys[0], [batch, dim, rank]),
            jax.random.normal(keys[1], [batch, rank, dim]),
        ),
        jax.random.randint(keys[2], [batch], 0, N_CLASSES),
        jax.random.normal(keys[3], [N_CLASSES, TEXT_DIM]),
    )
    encoder = {"name": _ENCODER.value, **SIZES}
    network, recipe = build_network(encoder, "text", N_CLASSES), Recipe(2e-3, l2=0.0)
    state = training.initial_state(network, recipe, data)
    given = network, recipe, state, data
    steps = {
        "factors": _compiled(_in_micro_batches, *given),
        "multiplied out, in micro-batches": _compiled(_in_micro_batches, *given, dense=True),
        "multiplied out, whole": _compiled(_whole, *given, dense=True),
    }
    measured = timing.seconds(
        {
            name: partial(step, state.params, state.opt_state, data, _orders(data))
            for name, step in steps.items()
        },
        _REPEATS.value,
    )
    fastest = min(seconds for name, seconds in measured.items() if name != "factors")
    rows = [
        {
            "step": name,
            "d": dim,
            "rank": rank,
            "batch": batch,
            "seconds a step": measured[name] / STEPS,
            "peak memory, MB": round(_peak_bytes(step) / 1e6),
            "times as fast as the faster multiplied out": fastest / measured[name],
        }
        for name, step in steps.items()
    ]
    print(cli.table(rows))


def _in_micro_batches(network, params, split):
    """As the library trains; factors are small enough for one batch."""
    return training.loss_and_gradient(network, params, split, jnp.arange(len(split.y)))


def _whole(network, params, split):
    def loss(params):
        logits_NY = network.apply({"params": params}, split.x, split.texts)
        return training.losses(logits_NY, split.y).mean()

    return jax.value_and_grad(loss)(params)


def _compiled(gradient, network, recipe, state, data, *, dense=False):
    def steps(params, opt_state, data, orders_SxN):
        def step(carry, order_N):
            params, opt_state = carry
            x = data.x[order_N]
            batch = Split(x.dense() if dense else x, data.y[order_N], data.texts)
            loss, grads = gradient(network, params, batch)
            updates, opt_state = training.optimiser(recipe).update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, (params, opt_state), orders_SxN)

    return jax.jit(steps).lower(state.params, state.opt_state, data, _orders(data)).compile()


def _orders(data):
    keys = jax.random.split(jax.random.key(1), STEPS)
    return jnp.stack([jax.random.permutation(key, len(data.y)) for key in keys])


def _peak_bytes(step) -> int:
    memory = step.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


if __name__ == "__main__":
    cli.run(main)
