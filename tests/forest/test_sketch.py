"""Sketches: which rows of which layers, and that they tell how far models are apart."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax import ProbexError, open_model
from probex_jax.forest.sketch import Sketch
from probex_jax.model_files.byte_ranges import ByteRanges
from tests.forest.conftest import SHAPES, write_member

# One worker makes the toy trees and the forest.
pytestmark = pytest.mark.xdist_group("forest")

NAMES = {f"layer.{n:02d}.weight": (300, 64) for n in range(20)}


def test_a_sketch_is_of_a_few_rows_spread_over_the_layers():
    sketch = Sketch.of_layers(NAMES)
    chosen = [layer.name for layer in sketch.layers]
    assert len(chosen) == 4
    assert (chosen[0], chosen[-1]) == ("layer.00.weight", "layer.19.weight")
    for layer in sketch.layers:
        assert len(set(layer.rows)) == 16  # of 64 entries each: 1024
        assert layer.rows == tuple(sorted(layer.rows))
        assert 0 <= layer.rows[0] <= layer.rows[-1] < 300
    assert len({layer.rows for layer in sketch.layers}) == 4
    assert sketch.size == 4 * 16 * 64
    backwards = dict(reversed(NAMES.items()))
    assert Sketch.of_layers(backwards) == sketch


def test_a_wide_row_is_taken_whole_and_a_small_layer_is():
    sketch = Sketch.of_layers({"wide": (8, 5000), "small": (3, 2)})
    assert {layer.name: len(layer.rows) for layer in sketch.layers} == {"wide": 1, "small": 3}


def test_neither_heads_nor_positions_are_in_a_sketch():
    others = {"classifier.weight": (5, 8), "x.position_embeddings": (9, 8), "head.weight": (5, 8)}
    sketch = Sketch.of_layers({"w": (4, 8)} | others)
    assert [layer.name for layer in sketch.layers] == ["w"]
    alone = Sketch.of_layers({"x.pos_embed": (9, 8)})
    assert [layer.name for layer in alone.layers] == ["x.pos_embed"]


def test_what_is_in_a_sketch_is_read_from_the_file(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype("f4") for name, shape in NAMES.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    sketch = Sketch.of_layers(NAMES)
    rows = [tensors[layer.name][list(layer.rows)].ravel() for layer in sketch.layers]
    expected = [row / np.linalg.norm(row) for row in rows]
    with open_model(tmp_path) as model:
        read = []
        real = ByteRanges.read
        monkeypatch.setattr(
            ByteRanges, "read", lambda self, a, b: read.append(b - a) or real(self, a, b)
        )
        sketch_D, lengths_K = sketch.of_model(model)
        np.testing.assert_allclose(sketch_D, np.concatenate(expected), rtol=1e-6)
        np.testing.assert_allclose(lengths_K, [np.linalg.norm(row) for row in rows], rtol=1e-6)
        assert sum(read) == 4 * sketch.size


def test_a_layer_that_unrelated_models_share_does_not_make_them_related(tmp_path):
    """Such as sines: large, and the same in all."""
    sketches = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        weights = {f"body.{n}.weight": rng.normal(size=(16, 64)).astype("f4") for n in range(3)}
        weights["body.sines.weight"] = np.full((16, 64), 100, np.float32)
        save_file(weights, tmp_path / f"{seed}.safetensors")
        with open_model(tmp_path / f"{seed}.safetensors") as model:
            shapes = {name: layer.shape for name, layer in model.layers.items()}
            sketches.append(Sketch.of_layers(shapes).of_model(model)[0])
    assert np.dot(*sketches) < 0.5 * np.dot(sketches[0], sketches[0])


@pytest.fixture(scope="module")
def tall_store(tmp_path_factory):
    """Models of which not all rows are in a sketch."""
    folder, rng = tmp_path_factory.mktemp("tall"), np.random.default_rng(0)
    for number in range(3):
        path = folder / "Tall" / "val" / f"m{number}"
        tall = {"w": rng.normal(size=(90, 64)), "conv": rng.normal(size=(90, 8, 4, 4))}
        write_member(path, number, ["ant"], of=1, **tall)
        write_member(folder / "Tall" / "train" / f"t{number}", number, ["ant"], of=1, **tall)
    return px.pack(px.scan(folder / "Tall"), folder / "store").store


def test_stores_and_files_give_the_same_sketches(tall_store, trees, toy_lora_store):
    _, stores = trees
    for store in (tall_store, stores["Ant"], toy_lora_store):
        sketch = Sketch.of_layers(store.layers)
        models = store.split("val")
        sketches_ND, lengths_NK = sketch.of_store(store, "val")
        assert sketches_ND.shape == (len(models), sketch.size)
        assert lengths_NK.shape == (len(models), len(sketch.layers))
        for model, *expected in zip(models, sketches_ND, lengths_NK, strict=True):
            with open_model(model.source) as file:
                for found, one in zip(sketch.of_model(file), expected, strict=True):
                    np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-8)


def test_further_layers_are_sketched_but_no_heads_nor_positions():
    layers = {f"body.{n}.weight": (8, 8) for n in range(9)}
    layers |= {"classifier.weight": (3, 8), "body.position_embeddings": (9, 8)}
    few = {layer.name for layer in Sketch.of_layers(layers).layers}
    more = Sketch.of_layers(layers, also=layers)
    assert len(few) == 4
    assert {layer.name for layer in more.layers} == {f"body.{n}.weight" for n in range(9)}


def test_distances_between_sketches_estimate_those_between_weights():
    rng = np.random.default_rng(0)
    sketch = Sketch.of_layers(NAMES)
    for scale in (0.1, 1.0):
        apart = {name: scale * rng.normal(size=shape) for name, shape in NAMES.items()}
        part = sum(np.sum(apart[layer.name][list(layer.rows)] ** 2) for layer in sketch.layers)
        whole = sum(np.sum(w**2) for w in apart.values())
        assert part / sketch.size == pytest.approx(whole / (20 * 300 * 64), rel=0.1)


def test_a_model_that_does_not_fit_the_sketch_is_refused(tmp_path):
    shapes = {name: (s[0], int(np.prod(s[1:]))) for name, s in SHAPES.items() if len(s) in (2, 4)}
    sketch = Sketch.of_layers(shapes)
    wide = write_member(tmp_path / "w", 0, of=1, **{"body.0.weight": np.ones((12, 17))})
    small = write_member(tmp_path / "s", 0, of=1, **{"body.0.weight": np.ones(12)})
    for path, message in (
        (wide, "12x17, that of the tree's models is 12x16"),
        (small, "12x1, that of"),
    ):
        with open_model(path) as model, pytest.raises(ProbexError, match=message):
            sketch.of_model(model)
