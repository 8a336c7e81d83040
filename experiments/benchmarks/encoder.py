"""Suite `encoder`: representations of a batch, dense and in factors.

Each is compiled once and the whole batch given to it, as the library encodes what it knows already:
a micro-batch at a time on a CPU. The rate is against that of a large matrix product. PyTorch
multiplies factors out.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.benchmarks import products
from experiments.benchmarks.figures import PYTORCH, Figure, pytorch
from experiments.benchmarks.inputs import Case
from probex_jax.fitting import inference

DEFAULT = (
    Case("probex", dim=768, rank=0, models=128, rep_dim=128),
    Case("mvprobe", dim=768, rank=0, models=128, rep_dim=512),
    Case("probex", dim=1280, rank=16, models=128, rep_dim=512),
    Case("mvprobe", dim=1280, rank=16, models=128, rep_dim=512),
)
QUICK = tuple(Case(c.encoder, c.dim, c.rank, 32, c.rep_dim) for c in DEFAULT)


def measure(cases: Sequence[Case], repeats: int, product_size: int | None = None) -> list[Figure]:
    """The figures of the suite."""
    return [
        _figure(case, mode, repeats, product_size) for case in cases for mode in products.modes()
    ]


def _figure(case: Case, mode: products.Mode, repeats: int, product_size: int | None) -> Figure:
    network = case.network()
    x = case.matrices(jax.random.key(0), mode.dtype)
    params = network.init(jax.random.key(1), x[:1])["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(mode.dtype), params)

    def encode(params, x):
        return inference.representations(network, {"params": params}, x, mode.compute)

    encoded = jax.jit(encode)
    candidates = {"ours": lambda: encoded(params, x)}
    if torch := pytorch():
        theirs = torch.parameters(params, jnp.dtype(mode.dtype).name)
        candidates[PYTORCH] = torch.encoding(theirs, x)
    flops = products.flops(encode, params, x)
    return products.figure(case.name, mode, candidates, case.models, flops, repeats, product_size)
