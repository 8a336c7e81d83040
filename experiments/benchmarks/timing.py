"""Interleaved timing: candidates take turns, so that a noisy machine is unfair to all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PRODUCT_SIZE = 2048


def seconds(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median wall-clock seconds of each candidate, after one run of each to compile."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def product() -> tuple[Callable[[], jax.Array], float]:
    """A float32 matrix product of 2048³, the limit that rates are compared with, and its FLOPs."""
    a = jax.random.normal(jax.random.key(0), [PRODUCT_SIZE, PRODUCT_SIZE])
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, a), 2.0 * PRODUCT_SIZE**3
