"""Suite `train`: an epoch of training, against the rate of a large matrix product.

Dense matrices are trained on classes, factors are aligned with text; batches of 128. What an
encoder prepares once before all epochs (X Xᵀ and Xᵀ X of MVProbe) is not in the time, nor are its
FLOPs. Counted are the products of the forward and the backward pass. PyTorch multiplies factors
out, as the reference implementation does; so does "multiplied out", in our own program: the batch
of updates is formed in the step and then treated as dense matrices are.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import products
from experiments.benchmarks.figures import PYTORCH, Figure, pytorch
from experiments.benchmarks.inputs import Case
from probex_jax.experts import Recipe, Split, advancing, objective, optimising, training

DEFAULT = (
    Case("probex", dim=768, rank=0, models=256, rep_dim=128),
    Case("mvprobe", dim=768, rank=0, models=256, rep_dim=512),
    *(Case("probex", dim=dim, rank=16, models=256, rep_dim=512) for dim in (320, 640, 1280)),
)
QUICK = tuple(Case(c.encoder, c.dim, c.rank, 128, c.rep_dim) for c in DEFAULT if c.dim != 640)


def measure(cases: Sequence[Case], repeats: int, product_size: int | None = None) -> list[Figure]:
    """The figures of the suite."""
    return [
        _figure(case, mode, repeats, product_size) for case in cases for mode in products.modes()
    ]


def _figure(case: Case, mode: products.Mode, repeats: int, product_size: int | None) -> Figure:
    recipe = Recipe(2e-3, l2=0.0, compute=mode.compute)
    if not case.rank:
        recipe = Recipe(compute=mode.compute)
    network = case.network("text" if case.rank else "class")
    data = case.split(with_text=bool(case.rank))
    given = advancing.prepared(network, data)
    given = given._replace(x=objective.as_read(given.x, mode.compute))
    state = training.initial_state(network, recipe, data)
    order_N = advancing.epoch_orders(recipe.seed, case.models, 0, 1)[0]
    start = state.params, state.opt_state
    epoch = jax.jit(partial(advancing.train_epoch, network, recipe))
    candidates = {"ours": lambda: epoch(*start, given, order_N)}
    if case.rank:
        out = jax.jit(partial(_multiplied_out, network, recipe))
        candidates["multiplied out"] = lambda: out(*start, data, order_N)
    if torch := pytorch():
        batches = np.split(
            np.asarray(order_N), range(recipe.batch_size, case.models, recipe.batch_size)
        )
        candidates[PYTORCH] = torch.steps(
            torch.parameters(state.params),
            data.x,
            data.y,
            batches,
            recipe.learning_rate,
            recipe.l2,
            data.texts,
        )
    flops = products.flops(epoch, *start, given, order_N)
    return products.figure(case.name, mode, candidates, case.models, flops, repeats, product_size)


def _multiplied_out(network, recipe, params, opt_state, train, order_N):
    """`advancing.train_epoch`, of updates that are multiplied out batch by batch."""

    def step(carry, index_B):
        params, opt_state = carry
        batch = Split(train.x[index_B].dense(), train.y[index_B], train.texts)
        loss, grads = objective.loss_and_gradient(
            network, params, batch, jnp.arange(len(batch.y)), compute=recipe.compute
        )
        updates, opt_state = optimising.optimiser(recipe).update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    batches = order_N.reshape(-1, min(recipe.batch_size, len(order_N)))
    return jax.lax.scan(step, (params, opt_state), batches)
