"""Sketches: what they depend on, and what they tell of whole models."""

import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.lineage.sketch import natural_order, sketch
from probex_jax.model_files import open_model, open_params
from tests.lineage import copying
from tests.lineage.copying import cast, saved, weights


def sketched(tensors):
    return sketch(open_params(tensors))


def test_names_and_containers_do_not_matter(tmp_path):
    tensors = weights()
    tensors = {name: tensors[name] for name in sorted(tensors)}
    with open_model(copying.sharded(cast(tensors, "f8"), tmp_path)) as model:
        one = sketch(model)
    other = sketched({f"a{place:02d}": value for place, value in enumerate(tensors.values())})
    assert one.kind == other.kind
    np.testing.assert_array_equal(one.values, other.values)
    assert one.kind != sketched(tensors | {"extra": np.ones(3, "f4")}).kind


def test_values_are_those_of_the_layers_they_name():
    """Entries are told by their values, each of which is there once."""
    tensors = {
        "a": np.arange(30_000, dtype="f4").reshape(150, 200),
        "b": np.arange(30_000, 30_090, dtype="f4").reshape(3, 30),
        "c": np.arange(30_090, 30_100, dtype="f4"),
    }
    found = sketched(tensors)
    parts = {layer.name: found.of_layer(layer) for layer in found.layers}
    for name, part in parts.items():
        assert np.isin(part, tensors[name]).all()
        assert len(np.unique(part)) == len(part)
    assert len(parts["b"]) == 90
    assert len(parts["c"]) == 10
    assert 3000 < len(parts["a"]) <= 8192


def test_distances_of_samples_are_those_of_models():
    rng = np.random.default_rng(0)
    shapes = {"a": (300, 400), "b": (64, 9), "c": (50, 2000), "d": (900,), "e": (2, 3000)}
    one = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    noise = {name: np.float32(1 + len(name)) * rng.normal(size=v.shape) for name, v in one.items()}
    other = {name: (value + noise[name]).astype("f4") for name, value in one.items()}
    sketches = sketched(one), sketched(other)
    apart = np.square(sketches[0].values - sketches[1].values) @ sketches[0].stands_for
    true = sum(np.square(one[name] - other[name]).sum() for name in one)
    assert apart == pytest.approx(true, rel=0.08)
    assert sketches[0].stands_for.sum() == pytest.approx(sum(v.size for v in one.values()))


def test_another_head_leaves_the_others_where_they_were():
    """Fewer entries of each layer are the first of more."""
    body = {f"layers.{k}": np.random.default_rng(k).normal(size=(40, 50)) for k in range(4)}
    body = cast(body, "f4")
    one = sketched(body)
    other = sketched(body | {f"head.{k}": np.ones((60, 70), "f4") for k in range(30)})
    of_other = {layer.name: other.of_layer(layer) for layer in other.layers}
    sizes = set()
    for layer in one.layers:
        sizes.add((len(one.of_layer(layer)), len(of_other[layer.name])))
        size = len(of_other[layer.name])
        np.testing.assert_array_equal(one.of_layer(layer)[:size], of_other[layer.name])
    [(more, fewer)] = sizes
    assert more > fewer


def test_of_many_layers_some_stand_for_all():
    tensors = {f"layers.{k}.weight": np.full((4, 8), k, "f4") for k in range(1500)}
    found = sketched(tensors)
    assert not found.layout.is_complete
    assert found.stands_for.sum() == pytest.approx(1500 * 32)
    assert len(found.values) <= 8192
    names = [layer.name for layer in found.layers]
    assert names[0] == "layers.0.weight"
    assert names[-1] == "layers.1499.weight"
    assert names == sorted(names, key=natural_order)
    assert sketch(open_params(tensors), every_layer=True).layout.is_complete


def test_a_lora_is_sketched_by_its_updates(tmp_path):
    rng = np.random.default_rng(0)
    up_HR, down_RW = rng.normal(size=(64, 4)).astype("f4"), rng.normal(size=(4, 48)).astype("f4")
    name = "base_model.model.layers.0.q_proj"
    factors = {f"{name}.lora_A.weight": down_RW, f"{name}.lora_B.weight": up_HR}
    with open_model(saved(factors, tmp_path / "adapter_model.safetensors")) as model:
        found = sketch(model)
    (layer,) = found.layers
    assert layer.is_update
    whole = sketched({"w": up_HR @ down_RW})
    size = min(len(found.values), len(whole.values))
    np.testing.assert_allclose(found.values[:size], whole.values[:size], rtol=1e-4, atol=1e-5)
    assert found.kind != whole.kind


def test_numbers_of_any_length_are_in_natural_order():
    names = ["l.9", "l.10", "l.010", "l." + "9" * 5000, "l.1" + "0" * 5000, "l", "9"]
    ordered = sorted(names, key=natural_order)
    assert ordered.index("l.9") < ordered.index("l.10") < ordered.index(names[3])
    assert ordered.index(names[3]) < ordered.index(names[4])


def test_values_that_are_not_finite_are_refused():
    model = open_params({"a.weight": np.full((4, 4), np.nan, "f4")})
    with pytest.raises(ProbexError, match=r"a\.weight"):
        sketch(model)
