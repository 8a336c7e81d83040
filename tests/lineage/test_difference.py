"""The largest difference of two models, and whether it is rounding."""

import numpy as np
import pytest

from probex_jax.lineage.difference import copy_difference, largest_difference
from probex_jax.model_files import open_params
from tests.lineage import copying
from tests.lineage.copying import BF16, cast, weights


def differs(one, other, **settings):
    return largest_difference(open_params(one), open_params(other), **settings)


def test_the_largest_difference_of_all_entries_and_its_layer():
    one = weights()
    other = {name: value.copy() for name, value in copying.tuned(one, 1e-3).items()}
    other["model.layers.0.mlp.up_proj.weight"][-1, -1] += np.float32(0.5)
    found = differs(one, other)
    assert found.layer == "model.layers.0.mlp.up_proj.weight"
    assert found.largest == pytest.approx(0.5, abs=1e-3)
    assert not found.is_rounding
    expected = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    assert found.largest == expected


def test_rounding_is_as_large_as_the_dtypes_allow():
    one = weights()
    for dtype, bits in ((BF16, 8), ("f2", 11)):
        found = differs(one, cast(one, dtype))
        largest = max(float(np.abs(value).max()) for value in one.values())
        assert found.is_rounding
        assert 0 < found.largest <= largest * 2.0**-bits


def test_more_blocks_than_one_are_compared():
    one = np.random.default_rng(0).normal(size=(700, 4000)).astype("f4")
    for place in ((0, 0), (699, 3999), (300, 5)):
        other = one.copy()
        other[place] += np.float32(0.125)
        found = differs({"a.weight": one}, {"a.weight": other})
        assert found.largest == pytest.approx(0.125)
        assert not found.is_rounding
    assert differs({"a.weight": one}, {"a.weight": one.astype(BF16)}).is_rounding


def test_a_model_with_a_layer_more_is_no_copy():
    one = weights()
    other = one | {"extra.weight": np.ones((2, 3), "f4")}
    for pair in ((one, other), (other, one)):
        found = differs(*pair)
        assert (found.largest, found.is_rounding) == (0.0, False)
        assert copy_difference(*map(open_params, pair)) is None


def test_layers_are_compared_as_they_are_paired():
    one, other = weights(), copying.shuffled(weights())
    found = differs(one, other)
    assert (found.largest, found.is_rounding) == (0.0, True)
    names = dict(zip(one, one, strict=True))
    first, second = (f"model.layers.{block}.mlp.up_proj.weight" for block in (0, 1))
    names |= {first: second, second: first}
    assert differs(one, weights(), pairs=names).largest > 0.1
