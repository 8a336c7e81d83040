"""Merges are found with their parents and weights, and nothing else is taken for one."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from probex_jax.lineage.merges import find_merges

LAYERS = [slice(300 * k, 300 * (k + 1)) for k in range(10)]
SIZE = 3000


def brood(count, share=0.1, seed=0):
    """A root and children of it [1 + count, D]."""
    rng = np.random.default_rng([1, seed])
    root = rng.normal(size=SIZE)
    return np.stack([root] + [root + share * rng.normal(size=SIZE) for _ in range(count)])


def found_in(models, weights=None, rounding=0.0):
    models = np.asarray(models, np.float32)
    apart = np.square(models[:, None] - models[None]).sum(-1)
    nearest = [[k for k in np.argsort(row, kind="stable") if k != n] for n, row in enumerate(apart)]
    weights = np.ones(SIZE) if weights is None else weights
    return find_merges(models, LAYERS, weights, nearest, [rounding] * len(models))


def spherical(a, b, t):
    """SLERP of each layer."""
    found = np.empty_like(a)
    for layer in LAYERS:
        x, y = a[layer], b[layer]
        angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        found[layer] = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
    return found


def check(found, number, shares, tolerance=0.02, error=0.03):
    """That one model is a merge of the others with these shares, and no other is one."""
    assert {*found} == {number}
    merge = found[number]
    assert dict(zip(merge.parents, merge.coefficients, strict=True)) == pytest.approx(
        shares, abs=tolerance
    )
    assert sum(merge.coefficients) == pytest.approx(1)
    assert merge.error < error


@pytest.mark.parametrize(
    "shares",
    [(0.5, 0.5), (0.9, 0.1), (0.3, 0.7), (0.5, 0.3, 0.2), (0.6, 0.3, 0.1), (0.4, 0.3, 0.2, 0.1)],
)
def test_linear_merges(shares):
    models = brood(6)
    merged = sum(s * models[k + 2] for k, s in enumerate(shares))
    found = found_in([*models, merged])
    check(found, 7, {k + 2: s for k, s in enumerate(shares)}, 1e-3)


@pytest.mark.parametrize("t", [0.3, 0.5])
@pytest.mark.parametrize("share", [0.1, 0.7])
def test_spherical_merges(t, share):
    models = brood(4, share)
    check(found_in([*models, spherical(models[2], models[3], t)]), 5, {2: 1 - t, 3: t})


@pytest.mark.parametrize("scale", [0.3, 0.8, 1.0])
def test_task_arithmetic(scale):
    """base + scale · (a - base) + scale · (b - base): a share of the base of either sign."""
    models = brood(4)
    base, a, b = models[[0, 1, 3]]
    found = found_in([*models, base + scale * (a - base) + scale * (b - base)])
    if scale == 1:  # and a child of the root by a's change would be the same parallelogram
        assert [{n, *merge.parents} for n, merge in found.items()] == [{0, 1, 3, 5}]
    check(found, 5, {0: 1 - 2 * scale, 1: scale, 3: scale})


def test_a_negative_share_of_the_base_with_three_tasks():
    models = brood(4)
    merged = models[0] + 0.6 * (models[1:4] - models[0]).sum(0)
    check(found_in([*models, merged]), 5, {0: -0.8, 1: 0.6, 2: 0.6, 3: 0.6})


def in_bfloat16(models):
    return np.asarray(models).astype(ml_dtypes.bfloat16).astype("f4")


@pytest.mark.parametrize(
    ("share", "shares"),
    [
        (0.02, (0.5, 0.5)),
        (0.02, (0.5, 0.3, 0.2)),
        (0.05, (0.3, 0.7)),
        (0.05, (0.6, 0.3, 0.1)),
    ],
)
def test_merges_that_were_rounded_to_bfloat16(share, shares):
    for seed in range(3):
        models = in_bfloat16(brood(5, share, seed))
        merged = in_bfloat16(sum(s * models[k + 1] for k, s in enumerate(shares)))
        found = found_in([*models, merged], rounding=2.0**-8)
        check(found, 6, {k + 1: s for k, s in enumerate(shares)}, error=0.3)


@pytest.mark.parametrize("share", [0.003, 0.01, 0.02, 0.1])
def test_fine_tunes_in_bfloat16_are_no_merges(share):
    """However near they are: rounding explains little of what training changed."""
    rng = np.random.default_rng(0)
    models = [*brood(8, share)]
    models += [models[1] + share * rng.normal(size=SIZE) for _ in range(2)]
    models = in_bfloat16(models)
    assert found_in(models, rounding=2.0**-8) == {}
    assert found_in(models[1:], rounding=2.0**-8) == {}


def test_entries_count_as_many_as_they_stand_for():
    """Of two layers that were merged with other weights the larger one decides."""
    models = brood(4)
    merged = 0.2 * models[1] + 0.8 * models[2]
    merged[LAYERS[0]] = (0.8 * models[1] + 0.2 * models[2])[LAYERS[0]]
    weights = np.ones(SIZE)
    weights[LAYERS[0]] = 900
    check(found_in([*models, merged], weights), 5, {1: 0.794, 2: 0.206})


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_children_siblings_and_chains_are_no_merges(share):
    rng = np.random.default_rng(0)
    models = [*brood(8, share)]
    for parent in (1, 1, 2, 9, 10, 3, 12):
        models.append(models[parent] + share * rng.normal(size=SIZE))
    assert found_in(models) == {}
    # Nor where the root is not there.
    assert found_in(models[1:]) == {}
    # Copies of which some are shorter or partly zero.
    others = [0.97 * models[1], np.where(np.abs(models[2]) < 0.3, 0, models[2])]
    assert found_in([*models, *others]) == {}


@pytest.mark.parametrize("parents", [2, 3])
def test_a_merge_with_noise_of_a_tenth_of_the_distance_is_none(parents):
    rng = np.random.default_rng(0)
    models = brood(5)
    merged = models[1 : 1 + parents].mean(0)
    apart = np.linalg.norm(models[1] - merged)
    noise = rng.normal(size=SIZE)
    noisy = merged + 0.1 * apart / np.linalg.norm(noise) * noise
    assert found_in([*models, noisy]) == {}
    barely = merged + 0.01 * apart / np.linalg.norm(noise) * noise
    check(found_in([*models, barely]), 6, {k + 1: 1 / parents for k in range(parents)})


def test_a_child_of_a_merge_is_none():
    rng = np.random.default_rng(0)
    models = brood(4)
    merged = 0.4 * models[1] + 0.6 * models[2]
    child = merged + 0.05 * rng.normal(size=SIZE)
    check(found_in([*models, merged, child]), 5, {1: 0.4, 2: 0.6})
    assert found_in([*models, child]) == {}


def test_near_duplicates_are_no_parents_of_merges():
    rng = np.random.default_rng(0)
    models = brood(4)
    near = models[1] + 1e-3 * rng.normal(size=SIZE)
    nearer = models[1] + 1e-5 * rng.normal(size=SIZE)
    assert found_in([*models, near, nearer]) == {}


def test_a_parallelogram_has_one_merge():
    """A, B, R and A + B - R: each is a sum of the three others; which order they stand in and the
    models beside them do not matter."""
    for seed, order in enumerate(itertools.islice(itertools.permutations(range(6)), 0, None, 97)):
        models = brood(4, seed=seed)
        models = np.stack([*models, models[1] + models[2] - models[0]])[[*order]]
        place = {old: new for new, old in enumerate(order)}
        check(found_in(models), place[5], {place[1]: 1, place[2]: 1, place[0]: -1})


def test_several_merges_among_many():
    models = [*brood(12)]
    models += [0.5 * models[1] + 0.5 * models[2], 0.25 * models[3] + 0.75 * models[4]]
    models += [models[0] + 0.9 * (models[5] + models[6] - 2 * models[0])]
    found = found_in(models)
    assert {n: {*m.parents} for n, m in found.items()} == {13: {1, 2}, 14: {3, 4}, 15: {0, 5, 6}}


def test_a_merge_of_a_merge():
    models = [*brood(4)]
    models.append(0.5 * models[1] + 0.5 * models[2])
    models.append(0.5 * models[5] + 0.5 * models[3])
    found = found_in(models)
    assert {*found[6].parents} in ({5, 3}, {1, 2, 3})
    assert {*found} <= {5, 6}


def test_fewer_than_two_parents_or_equal_models():
    models = brood(1)
    assert found_in(models) == {}
    assert found_in(np.stack([models[0]] * 4)) == {}


def test_a_soup_of_six():
    models = brood(6)
    found = found_in([*models, models[1:].mean(0)])
    check(found, 7, dict.fromkeys(range(1, 7), 1 / 6), 1e-2)


def by_layer(one, other, shares):
    """A merge of two whose shares differ from layer to layer."""
    found = np.empty_like(one)
    for layer, share in zip(LAYERS, shares, strict=True):
        found[layer] = share * one[layer] + (1 - share) * other[layer]
    return found


@pytest.mark.parametrize(
    "shares", [np.linspace(0.1, 0.9, 10), np.array([0.2] * 3 + [0.8] * 7), np.array([0, 1] * 5)]
)
def test_shares_that_differ_from_layer_to_layer(shares):
    """Of gradients of SLERP, and of models that were put together of others' layers."""
    models = brood(3)
    found = found_in([*models, by_layer(models[1], models[2], shares)])
    assert {*found} == {4}
    assert {*found[4].parents} == {1, 2}
    assert found[4].error < 0.03


def test_a_parent_that_is_not_there_makes_no_soup():
    models = brood(6)
    assert found_in([*models[:6], models[1:].mean(0)]) == {}
