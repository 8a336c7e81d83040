"""Stratified and grouped splits: whole, disjoint, even, and the same for the same seed."""

from collections import Counter

import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.zoo.splitting import (
    FRACTIONS,
    PARTS,
    check_groups,
    make_split,
    make_text_split,
    ranges_of,
    too_rare,
)


def uneven(n=126, seed=0):
    """One class of a few, of which one is much commoner."""
    drawn = np.random.default_rng(seed).choice(["high", "crunch", "clean"], n, p=[0.7, 0.2, 0.1])
    return {f"m{number:03d}": (str(name),) for number, name in enumerate(drawn)}


def check_is_split(labels, split):
    assert tuple(split) == PARTS
    assert sorted(model for models in split.values() for model in models) == sorted(labels)
    assert all(split.values())


@pytest.mark.parametrize("seed", range(5))
def test_every_part_has_its_share_of_each_class(seed):
    labels = uneven(seed=seed)
    split = make_split(labels, seed=seed)
    check_is_split(labels, split)
    for name, count in Counter(label for (label,) in labels.values()).items():
        for part, share in zip(PARTS, FRACTIONS, strict=True):
            found = sum(labels[model] == (name,) for model in split[part])
            assert abs(found - share * count) <= 1


def test_seeds_decide_and_nothing_else_does():
    labels = uneven()
    drawn = [make_split(labels, seed=seed) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1]
    moved = set(drawn[0]["test"]) - set(drawn[2]["test"])
    assert len(moved) > len(drawn[0]["test"]) / 3


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_classes_are_in_every_part(seed):
    rng = np.random.default_rng(seed)
    labels = uneven(seed=seed)
    groups = {model: f"g{rng.integers(30)}" for model in labels if rng.random() < 0.9}
    split = make_split(labels, groups=groups, seed=seed)
    check_is_split(labels, split)
    parts_of = {}
    for part, models in split.items():
        for model in models:
            if model in groups:
                parts_of.setdefault(groups[model], set()).add(part)
    assert all(len(parts) == 1 for parts in parts_of.values())
    assert not too_rare(labels, split)
    for part, share in zip(PARTS, FRACTIONS, strict=True):
        assert abs(len(split[part]) - share * len(labels)) < 0.05 * len(labels)


def test_of_rare_classes_three_models_are_in_all_parts_two_are_trained_on_and_tested():
    labels = {**{f"m{n}": ("common",) for n in range(40)}, "x1": ("two",), "x2": ("two",)}
    labels |= {f"y{n}": ("three",) for n in range(3)} | {"z": ("single",)}
    for seed in range(10):
        split = make_split(labels, seed=seed)
        assert too_rare(labels, split) == {"single": ("val", "test"), "two": ("val",)}
        assert "z" in split["train"]


def test_models_of_several_classes_and_of_none():
    rng = np.random.default_rng(0)
    classes = [f"c{n}" for n in range(8)]
    labels = {f"m{n}": tuple(rng.permutation(classes)[: n % 4]) for n in range(120)}
    split = make_split(labels, fractions=(0.5, 0.25, 0.25))
    check_is_split(labels, split)
    for name in (*classes, None):
        of = [m for m, said in labels.items() if (name in said if name else not said)]
        for part, share in zip(PARTS, (0.5, 0.25, 0.25), strict=True):
            assert abs(len(set(of) & set(split[part])) - share * len(of)) <= 4, (name, part)


@pytest.mark.parametrize(
    "fractions", [(0.6, 0.4), (0.6, 0.2, 0.1), (1.0, 0.0, 0.0), (0.8, 0.3, -0.1)]
)
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(ProbexError, match="fractions"):
        make_split(uneven(), fractions=fractions)


def test_too_few_to_divide():
    labels = dict.fromkeys("abcd", ("x",))
    with pytest.raises(ProbexError, match="2 groups"):
        make_split(labels, groups={"a": "g", "b": "g", "c": "h", "d": "h"})
    with pytest.raises(ProbexError, match="too few"):
        make_split({"a": ("x",), "b": ("y",), "c": ("z",)})


def test_a_model_in_two_groups_is_refused():
    assert check_groups({"a": ("g",), "b": ()}, "device") == {"a": "g"}
    with pytest.raises(ProbexError, match="'device': 'b' is in 2"):
        check_groups({"a": ("g",), "b": ("g", "h")}, "device")


def test_of_groups_the_evenest_of_several_draws_is_taken():
    """A single draw is off by a fifth of a class's share, on average."""
    off = []
    for seed in range(8):
        rng, labels = np.random.default_rng(seed), uneven(seed=seed)
        groups = {model: f"g{rng.integers(12)}" for model in labels}
        split = make_split(labels, groups=groups, seed=seed)
        for name, count in Counter(label for (label,) in labels.values()).items():
            for part, share in zip(PARTS, FRACTIONS, strict=True):
                found = sum(labels[model] == (name,) for model in split[part])
                off.append(abs(found / count / share - 1))
    assert np.mean(off) < 0.15


def test_texts_are_held_out_whole_and_the_others_are_all_trained_on():
    texts = {f"m{n:03}": [f"text {n % 23 if n < 150 else n}"] for n in range(170)}
    groups = {f"m{n:03}": f"g{n % 5}" for n in range(150)}
    for split in (make_text_split(texts, seed=1), make_text_split(texts, groups=groups)):
        there = {part: {texts[m][0] for m in models} for part, models in split.items()}
        assert there["val"] | there["test"] <= there["train"]
        assert not there["train"] & (there["val_holdout"] | there["test_holdout"])
        assert not there["val_holdout"] & there["test_holdout"]
        assert all(split.values())
        models = [model for part in split.values() for model in part]
        assert len(models) == len(set(models))
    assert make_text_split(texts, seed=1) == make_text_split(texts, seed=1)
    assert make_text_split(texts, seed=1) != make_text_split(texts, seed=2)


def test_a_text_that_groups_keep_out_of_training_is_not_tested():
    shown = {"u": "b", "v": "dabf", "w": "abf", "x": "aced", "y": "e"}
    texts = {f"{g}{t}": [t] for g, named in shown.items() for t in named}
    groups = {f"{g}{t}": g for g, named in shown.items() for t in named}
    split = make_split(texts, groups=groups, seed=90)
    trained = {texts[model][0] for model in split["train"]}
    assert any(texts[model][0] not in trained for model in split["test"] + split["val"])
    found = make_text_split(texts, groups=groups, held_out=0, seed=90)
    assert {texts[m][0] for part in found.values() for m in part} == trained


def test_every_part_has_its_share_of_each_range_of_numbers():
    numbers = {f"m{n:03}": float(np.exp(n / 20)) for n in range(200)}
    ranges = ranges_of(numbers)
    assert set(Counter(ranges.values()).values()) == {40}
    for part, models in make_split(ranges).items():
        counts = Counter(ranges[model] for model in models)
        assert set(counts.values()) == {40 * FRACTIONS[PARTS.index(part)]}
    lowest = ranges["m000"]
    assert max(n for m, n in numbers.items() if ranges[m] == lowest) == numbers["m039"]


def test_equal_numbers_are_in_one_range_and_there_may_be_few():
    assert ranges_of({}) == {}
    assert len(set(ranges_of({f"m{n}": 3.0 for n in range(9)}).values())) == 1
    numbers = {f"m{n}": float(n > 3) for n in range(9)}
    ranges = ranges_of(numbers)
    assert len({(ranges[model], numbers[model]) for model in numbers}) == 2
    assert len(set(ranges_of({"a": 1.0, "b": 2.0, "c": 2.5}).values())) == 3
