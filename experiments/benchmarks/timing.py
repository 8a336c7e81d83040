"""Interleaved timing: candidates take turns, so that a noisy machine is unfair to all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PRODUCT_SIZE = 2048
_PRODUCTS = 8  # of one timed run


def times(
    candidates: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Wall-clock seconds of every run of each candidate, after one run of each to compile."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(not warm_up, repeats + 1):
        for name, function in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:
                found[name].append(time.perf_counter() - start)
    return found


def seconds(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median wall-clock seconds of each candidate."""
    return {name: statistics.median(runs) for name, runs in times(candidates, repeats).items()}


def product(
    size: int = PRODUCT_SIZE, dtype: Any = jnp.float32
) -> tuple[Callable[[], jax.Array], float]:
    """Matrix products of size³, the limit that rates are compared with, and their FLOPs.

    Several, one after the other: what is over in a blink finds a busy machine quiet more often than
    what it is compared with.
    """
    a = jax.random.normal(jax.random.key(0), [size, size], dtype)
    multiply = jax.jit(jnp.matmul)

    def run() -> jax.Array:
        found = a
        for _ in range(_PRODUCTS):
            found = multiply(a, found)
        return found

    return run, _PRODUCTS * 2.0 * size**3
