"""ProbeX and MVProbe in PyTorch as their equations read: what we are compared with.

For benchmarks and parity tests alone; nothing else may need PyTorch.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from probex_jax.errors import ProbexError

try:
    import torch
except ImportError:
    raise ProbexError("PyTorch is not installed: pip install torch==2.13.0") from None


def parameters(params: Any, dtype: Any = torch.float32) -> dict[str, Any]:
    """The parameters of a `Network`, of the same names, as PyTorch's."""
    return {
        name: torch.nn.Parameter(torch.tensor(np.array(leaf)).to(dtype))
        for name, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }


def logits(p: Mapping[str, Any], x: Any) -> Any:
    """[N, H, W] matrices -> [N, Y] logits."""
    features = probex(p, x) if "encoder/probes" in p else mvprobe(p, x)
    e = features @ p["encoder/encoder/dense/kernel"] + p["encoder/encoder/dense/bias"]
    return e @ p["head/linear/dense/kernel"] + p["head/linear/dense/bias"]


def probex(p: Mapping[str, Any], x: Any) -> Any:
    """relu(Vᵀ X u) of every probe, [N, U · V]."""
    response = torch.einsum("nhw,wu->nuh", x, p["encoder/probes"]) @ p["encoder/projection"]
    return torch.relu(response).flatten(1)


def mvprobe(p: Mapping[str, Any], x: Any) -> Any:
    """relu(Ŝᵀ P) of every branch and probe, [N, 4 · U · V]."""
    responses = {
        "xu": x @ p["encoder/probes_xu"],
        "xxtu": x @ (x.mT @ p["encoder/probes_xxtu"]),
        "xtu": x.mT @ p["encoder/probes_xtu"],
        "xtxu": x.mT @ (x @ p["encoder/probes_xtxu"]),
    }
    features = []
    for name, s in responses.items():
        s = (s - s.mean((1, 2), keepdim=True)) / (s.std((1, 2), keepdim=True) + 1e-8)
        features.append(torch.relu(s.mT @ p[f"encoder/projection_{name}"]).flatten(1))
    return torch.cat(features, 1)


def steps(
    p: Mapping[str, Any], x: Any, y: Any, batches: list, learning_rate: float, l2: float
) -> Callable[[], None]:
    """What trains a step of Adam on each batch, given as indices, whenever it is called."""
    torch.set_num_threads(os.cpu_count() or 1)
    dtype = next(iter(p.values())).dtype
    x, y = (torch.tensor(np.asarray(array)).to(dtype) for array in (x, y))
    batches = [torch.tensor(np.asarray(batch)).long() for batch in batches]
    adam = torch.optim.Adam(p.values(), lr=learning_rate, weight_decay=l2)
    loss = torch.nn.functional.binary_cross_entropy_with_logits

    def run() -> None:
        for batch in batches:
            adam.zero_grad()
            loss(logits(p, x[batch]), y[batch]).backward()
            adam.step()

    return run
