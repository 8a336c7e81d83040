"""Suite `train`: an epoch of training, against the rate of a large matrix product.

Dense matrices are trained on classes, factors are aligned with text; batches of 128. What an
encoder prepares once before all epochs (X Xᵀ and Xᵀ X of MVProbe) is not in the time, nor are its
FLOPs. Counted are the products of the forward and the backward pass. PyTorch multiplies factors
out, as the reference implementation does; so does "multiplied out", in our own program: the batch
of updates is formed in the step and then treated as dense matrices are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import products
from experiments.benchmarks.figures import PYTORCH, Figure, pytorch
from experiments.benchmarks.inputs import Case, epoch_of
from probex_jax.fitting import Adam, Split

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
    recipe = Adam(2e-3, l2=0.0, compute=mode.compute)
    if not case.rank:
        recipe = Adam(compute=mode.compute)
    network = case.network("text" if case.rank else "class")
    data = case.split(with_text=bool(case.rank))
    run, arguments = epoch_of(network, recipe, data)
    rates, _, carry, batches = arguments
    epoch = jax.jit(run)
    candidates = {"ours": lambda: epoch(*arguments)}
    if case.rank:
        out = jax.jit(_multiplied_out(run))
        candidates["multiplied out"] = lambda: out(rates, data, carry, batches)
    if torch := pytorch():
        of_torch = np.asarray(batches.index)
        candidates[PYTORCH] = torch.steps(
            torch.parameters(carry[0]),
            data.x,
            data.y,
            list(of_torch),
            recipe.learning_rate,
            recipe.l2,
            data.texts,
        )
    flops = products.flops(epoch, *arguments)
    return products.figure(case.name, mode, candidates, case.models, flops, repeats, product_size)


def _multiplied_out(epoch):
    """An epoch of updates that are multiplied out batch by batch."""

    def run(rates, train, carry, batches):
        def step(carry, index_B):
            batch = Split(train.x[index_B].dense(), train.y[index_B], train.texts)
            alone = batches.replace(index=jnp.arange(len(index_B))[None])
            return epoch(rates, batch, carry, alone)

        return jax.lax.scan(step, carry, batches.index)

    return run
