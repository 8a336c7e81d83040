"""Which layer of one model is which of another."""

import numpy as np

from probex_jax.lineage.pairs import pair_layers
from probex_jax.model_files import open_params
from tests.lineage import copying
from tests.lineage.copying import tuned, weights


def paired(one, other, **settings):
    return pair_layers(open_params(one), open_params(other), **settings)


def shuffled_names(tensors, seed=0):
    """New names, and which of them is which old one's."""
    order = np.random.default_rng(seed).permutation(len(tensors))
    return {name: f"t{place}" for place, name in zip(order, tensors, strict=True)}


def test_one_name_is_one_layer_even_of_unrelated_models():
    one, other = weights(), weights(1)
    assert paired(one, other) == {name: name for name in one}


def test_a_child_under_shuffled_names():
    one = weights()
    names = shuffled_names(one)
    child = {names[name]: value for name, value in tuned(one, 0.3).items()}
    assert paired(one, child) == names


def test_names_that_have_changed_places_are_seen_by_value():
    one = weights()
    child = copying.swapped(tuned(one, 0.1))
    assert paired(one, child) == {name: name for name in one}
    found = paired(one, child, by_name=False)
    assert found["model.layers.0.self_attn.q_proj.weight"] == (
        "model.layers.1.self_attn.q_proj.weight"
    )
    assert found["lm_head.weight"] == "lm_head.weight"


def test_layers_that_only_one_has_are_left_out():
    one = weights()
    names = shuffled_names(one)
    other = {names[name]: value for name, value in tuned(one, 0.1).items()}
    del other[names["lm_head.weight"]]
    del names["lm_head.weight"]
    assert paired(one, other | {"head": np.ones((5, 7), "f4")}) == names


def test_unrelated_layers_are_paired_in_natural_order():
    rng = np.random.default_rng(0)
    one = {f"a.{k}": rng.normal(size=(16, 16)).astype("f4") for k in range(12)}
    other = {f"b.{k}": rng.normal(size=(16, 16)).astype("f4") for k in range(12)}
    assert paired(one, other) == {f"a.{k}": f"b.{k}" for k in range(12)}


def test_more_layers_than_a_sketch_has():
    rng = np.random.default_rng(0)
    one = {f"a.{k}": rng.normal(size=(4, 8)).astype("f4") for k in range(700)}
    names = shuffled_names(one)
    assert paired(one, {names[name]: value for name, value in one.items()}) == names
