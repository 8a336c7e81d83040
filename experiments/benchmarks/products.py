"""Limits of the suites `encoder` and `train`: rates of matrix products, and the FLOPs of theirs."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.figures import Figure, pytorch
from probex_jax.fitting import inference


@dataclass(frozen=True)
class Mode:
    """A precision of matrix products.

    Args:
      name: of the figures.
      compute: as `Adam.compute`.
    """

    name: str
    compute: str

    @property
    def dtype(self) -> Any:
        """Of the arrays that are multiplied."""
        return jnp.bfloat16 if self.compute == "bfloat16" else jnp.float32

    def applied(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """The function, its float32 products being of this precision."""

        def run() -> Any:
            with inference.products(self.compute):
                return function()

        return run


def modes() -> list[Mode]:
    """What this device multiplies in: float32 alone on a CPU."""
    float32 = Mode("float32", "float32")
    if jax.default_backend() == "cpu":
        return [float32]
    return [float32, Mode("TF32", "tensorfloat32"), Mode("bfloat16", "bfloat16")]


def figure(
    name: str,
    mode: Mode,
    candidates: Mapping[str, Callable[[], Any]],
    models: int,
    flops: float,
    repeats: int,
    size: int | None = None,
) -> Figure:
    """Models a second of each candidate, and how many the rate of a large product would do.

    The limit is the product of the same precision; those of the others stand beside it.

    Args:
      candidates: ours first; each works on `models` models.
      flops: of the products of ours, for all of them.
      size: rows of the limit's matrices; None for what keeps the device busy.
    """
    size = size or (timing.PRODUCT_SIZE if jax.default_backend() == "cpu" else 8192)
    if torch := pytorch():
        torch.multiply_in(mode.name)
    products, work = {}, dict.fromkeys(candidates, float(models))
    for other in modes():
        limit = f"{other.name} product"
        multiply, product_flops = timing.product(size, other.dtype)
        products[limit] = other.applied(multiply)
        work[limit] = models * product_flops / flops
    seconds = timing.times({**candidates, **products}, repeats)
    limit = f"{mode.name} product"
    rate = product_flops / statistics.median(seconds[limit])
    done = flops / statistics.median(seconds[next(iter(candidates))])
    return Figure(
        f"{name}, {mode.name}",
        "models/s",
        work,
        seconds,
        limit=limit,
        limit_is=f"{limit} of {size}³, {rate / 1e9:,.0f} GFLOP/s",
        notes={"GFLOP/s": done / 1e9},
    )


def flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the matrix products that a function makes, loops counted as often as they run."""
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            depth = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * float(np.prod(eqn.outvars[0].aval.shape) * depth)
        if eqn.primitive.name == "cond":  # one branch is run, as of a form for each platform
            total += max(_flops(branch.jaxpr) for branch in eqn.params["branches"])
            continue
        length = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += length * sum(_flops(inner) for inner in _inner(eqn.params.values()))
    return total


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _inner(value)
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
