"""Small members without a head, which all answer in one compiled program.

An expert may have hundreds, of dozens of shapes. A program for each shape would take seconds to
compile, and microseconds to run. Here the entries of all matrices lie one after the other: what is
taken of a matrix's entries is a sum over a segment, or a place in a sorted one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.encoders import N_STATISTICS, TINY, Dense, Size, Statistics
from probex_jax.experts.member import Member
from probex_jax.fitting.inference import products
from probex_jax.matrices import may_be_sharded
from probex_jax.matrices.products import deviation

# Most entries of a matrix that is small: of larger ones there are few shapes.
SMALL = 2**12
_QUANTILES_Q = np.linspace(0.0, 1.0, 5)

# Shapes: M members, E entries of all their matrices, F features of these.
Variables = Mapping[str, Any]


class _Kind(NamedTuple):
    """What a program must know of a member."""

    layer: str
    size: int
    weight: float
    standardise: bool


def is_small(member: Member, x: Any) -> bool:
    """Whether a member may answer here, of matrices [N, H, W]."""
    network, card = member.network, member.card
    return (
        type(network.encoder) in _ANSWERS
        and network.head is None
        and isinstance(x, jax.Array | np.ndarray)
        and prod(card.shape) <= SMALL
        and not network.centre_rank
        and card.layout == "canonical"
        and not may_be_sharded(x)
    )


def logits(members: Sequence[tuple[Member, jax.Array]]) -> jax.Array:
    """The sum of the logits [N, Y] of small members, of the matrices [N, H, W] beside each."""
    kinds: dict[type, list[_Kind]] = {encoder: [] for encoder in _ANSWERS}
    variables: dict[type, list[Variables]] = {encoder: [] for encoder in _ANSWERS}
    for member, _ in members:
        encoder, card = member.network.encoder, member.card
        standardise = getattr(encoder, "standardise", False)
        size = prod(card.shape)
        kinds[type(encoder)].append(_Kind(card.layer, size, card.weight, standardise and size > 1))
        variables[type(encoder)].append(member.variables)
    x = {member.layer: matrices for member, matrices in members}
    return program(tuple(map(tuple, kinds.values())), [*variables.values()], x)


@partial(jax.jit, static_argnums=0)
def program(
    kinds: Sequence[Sequence[_Kind]],
    variables: Sequence[Sequence[Variables]],
    x: Mapping[str, jax.Array],
) -> jax.Array:
    """The sum of the logits [N, Y], of the members of each encoder of `_ANSWERS`."""
    parts = []
    with products("float32"):
        for answer, each, own in zip(_ANSWERS.values(), kinds, variables, strict=True):
            if each:
                features_NF = answer(each, _entries(each, own, x))
                parts.append(_linear(each, [one["params"]["encoder"] for one in own], features_NF))
    return sum(parts[1:], parts[0])


def _linear(
    kinds: Sequence[_Kind], params: Sequence[Variables], features_NF: jax.Array
) -> jax.Array:
    """[N, Y]: the weighted sum of all members' linear maps."""
    # Scaled together: a concatenation of hundreds of products takes seconds to compile.
    weights_FY = [own["weight"].reshape(-1, own["weight"].shape[-1]) for own in params]
    share_M = np.array([kind.weight for kind in kinds], np.float32)
    share_F = np.repeat(share_M, [len(weight_FY) for weight_FY in weights_FY])
    bias_Y = share_M @ jnp.stack([own["bias"] for own in params])
    return features_NF @ (share_F[:, None] * jnp.concatenate(weights_FY)) + bias_Y[None]


def _entries(
    kinds: Sequence[_Kind], variables: Sequence[Variables], x: Mapping[str, jax.Array]
) -> jax.Array:
    """[N, E], less their centres and divided by their scales."""
    trees = [own.get("tree", {}) for own in variables]
    entries_NE = jnp.concatenate(
        [x[kind.layer].reshape(-1, kind.size).astype(jnp.float32) for kind in kinds], axis=1
    )
    if any("centre" in tree for tree in trees):
        centres = [
            tree["centre"].ravel() if "centre" in tree else jnp.zeros(kind.size)
            for kind, tree in zip(kinds, trees, strict=True)
        ]
        entries_NE = entries_NE - jnp.concatenate(centres)[None]
    if any(trees):
        scale_M = jnp.stack([jnp.asarray(tree.get("scale", 1.0)) for tree in trees])
        entries_NE = entries_NE / scale_M[_matrix(kinds)][None]
    return entries_NE


def _dense(kinds: Sequence[_Kind], entries_NE: jax.Array) -> jax.Array:
    """[N, E]: the entries that `Dense` takes."""
    matrix_E, sizes_M = _matrix(kinds), _sizes(kinds)
    standardise_1M = np.array([kind.standardise for kind in kinds])[None]
    standardise_1E = standardise_1M[:, matrix_E]
    entries_NE = jnp.where(standardise_1E, _centred(kinds, entries_NE)[1], entries_NE)
    unbiased_M = np.asarray(sizes_M / np.maximum(sizes_M - 1, 1), np.float32)
    variance_NM = _means(kinds, entries_NE**2) * unbiased_M[None]
    deviation_NM = jnp.where(standardise_1M, deviation(variance_NM, (2, 1)), 1.0)
    return entries_NE / deviation_NM[:, matrix_E]


def _statistics(kinds: Sequence[_Kind], entries_NE: jax.Array) -> jax.Array:
    """[N, 7 M]: the statistics that `Statistics` takes."""
    matrix_E, sizes_M = _matrix(kinds), _sizes(kinds)
    mean_NM, centred_NE = _centred(kinds, entries_NE)
    variance_NM = _means(kinds, centred_NE**2)
    matrix_NE = jnp.broadcast_to(matrix_E[None], entries_NE.shape)
    _, sorted_NE = jax.lax.sort((matrix_NE, entries_NE), num_keys=2)
    place_MQ = np.outer(sizes_M - 1, _QUANTILES_Q)
    low_MQ = np.floor(place_MQ).astype(int)
    high_MQ = np.ceil(place_MQ).astype(int)
    start_M1 = np.cumsum(sizes_M)[:, None] - sizes_M[:, None]
    share_1MQ = np.asarray(place_MQ - low_MQ, np.float32)[None]
    quantiles_NMQ = sorted_NE[:, start_M1 + low_MQ] * (1 - share_1MQ)
    quantiles_NMQ += sorted_NE[:, start_M1 + high_MQ] * share_1MQ
    moments_NM2 = jnp.stack([mean_NM, variance_NM], axis=2)
    found_NMS = jnp.concatenate([moments_NM2, quantiles_NMQ], axis=2)
    return found_NMS.reshape(-1, N_STATISTICS * len(kinds))


def _sizes_of(kinds: Sequence[_Kind], entries_NE: jax.Array) -> jax.Array:
    """[N, M]: what `Size` takes."""
    return jnp.log(jnp.sqrt(_means(kinds, entries_NE**2)) + TINY)


def _centred(kinds: Sequence[_Kind], entries_NE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N, M], [N, E]: the mean of each matrix, and the entries less that."""
    mean_NM: Any = 0.0
    for _ in range(2):  # sums of a segment round each addend: what is left once more
        left_NM = _means(kinds, entries_NE)
        mean_NM += left_NM
        entries_NE = entries_NE - left_NM[:, _matrix(kinds)]
    return mean_NM, entries_NE


def _means(kinds: Sequence[_Kind], values_NE: jax.Array) -> jax.Array:
    """[N, M]: the mean over the entries of each matrix."""
    sums_MN = jax.ops.segment_sum(values_NE.T, _matrix(kinds), len(kinds), indices_are_sorted=True)
    return sums_MN.T / np.asarray(_sizes(kinds), np.float32)[None]


def _matrix(kinds: Sequence[_Kind]) -> np.ndarray:
    """[E]: the matrix of each entry."""
    return np.repeat(np.arange(len(kinds), dtype=np.int32), _sizes(kinds))


def _sizes(kinds: Sequence[_Kind]) -> np.ndarray:
    """[M]: entries of each matrix."""
    return np.array([kind.size for kind in kinds])


# What a linear map then takes, of the entries of all matrices.
_ANSWERS: Mapping[type, Callable[[Sequence[_Kind], jax.Array], jax.Array]] = {
    Dense: _dense,
    Statistics: _statistics,
    Size: _sizes_of,
}
