"""Blocks, moments and parts of a store: one pass, in float64, with bounded memory."""

import shutil
from collections.abc import Mapping

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.fitting.centre import tree_of
from probex_jax.layer_store import store as store_module
from tests.conftest import write_toy_model


def wide(x):
    """Multiplied out, in float64."""
    if isinstance(x, px.LowRank):
        return np.asarray(x.up, np.float64) @ np.asarray(x.down, np.float64)
    return np.asarray(x, np.float64)


@pytest.fixture(params=["dense", "factors"])
def kind(request):
    return request.param


@pytest.fixture
def found(kind, toy_store, toy_lora_store):
    """A store, a layer and the bytes of one model of it."""
    if kind == "dense":
        return toy_store, "a.weight", 4 * 12 * 16
    return toy_lora_store, "a", 4 * 4 * (12 + 16)


# Bytes of a block in models: less than one, so many that the last block is short, all.
BLOCKS = {0.5: 1, 1: 1, 2.9: 2, 8: 8, 9: 9, 1000: 1000}


@pytest.mark.parametrize("models", BLOCKS)
def test_blocks_are_the_matrices_in_order_and_small(found, kind, models, monkeypatch):
    store, layer, model_bytes = found
    monkeypatch.setattr(store_module, "_BLOCK_BYTES", int(models * model_bytes))
    for split in ("train", "val"):
        blocks = list(store.blocks(layer, split))
        whole = store.matrices(layer, split)
        sizes = [block.shape[0] for block in blocks]
        n_models, size = whole.shape[0], BLOCKS[models]
        rest = n_models % size
        assert sizes == [size] * (n_models // size) + ([rest] if rest else [])
        assert all(isinstance(block, px.LowRank) == (kind == "factors") for block in blocks)
        joined = np.concatenate([wide(block) for block in blocks])
        np.testing.assert_array_equal(joined, wide(whole))


@pytest.mark.parametrize("models", [0.5, 3, 9, 1000])
def test_moments_are_numpys_whatever_the_block(found, models, monkeypatch):
    store, layer, model_bytes = found
    monkeypatch.setattr(store_module, "_BLOCK_BYTES", int(models * model_bytes))
    for split in ("train", "test"):
        x = wide(store.matrices(layer, split))
        moments = store.moments(layer, split)
        assert moments.mean.dtype == np.float64
        np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(moments.std, x.std(), rtol=1e-12)
        np.testing.assert_allclose(moments.centred_std, (x - x.mean(axis=0)).std(), rtol=1e-12)


def write_close_models(zoo, kind, spread):
    """Models whose differences are `spread` of what they have in common."""
    rng = np.random.default_rng(0)
    shared = 1 + rng.random((6, 5))
    up, down = rng.random((6, 2)), rng.random((2, 5))
    for index in range(11):
        folder = zoo / "train" / f"m{index:02d}"
        folder.mkdir(parents=True)
        if kind == "dense":
            weights = {"a.weight": shared + spread * rng.normal(size=shared.shape)}
        else:
            weights = {
                "a.lora.up.weight": up + spread * rng.normal(size=up.shape),
                "a.lora.down.weight": down,
            }
        weights = {name: value.astype(np.float32) for name, value in weights.items()}
        file = "model" if kind == "dense" else "pytorch_lora_weights"
        save_file(weights, folder / f"{file}.safetensors", {"concept": "x"})
    (zoo / "labels.json").write_text(str({f"m{i:02d}": ["x"] for i in range(11)}).replace("'", '"'))


@pytest.mark.parametrize("models", [1, 4, 1000])
@pytest.mark.parametrize("spread", [1e-2, 1e-5])
def test_a_spread_far_below_the_mean_is_found(tmp_path, kind, spread, models, monkeypatch):
    """In float32, or as squares minus the square of the mean, nothing would be left of it."""
    monkeypatch.setattr(store_module, "_BLOCK_BYTES", models * 4 * 30)
    write_close_models(tmp_path / "Close", kind, spread)
    store = px.pack(px.scan(tmp_path / "Close"), tmp_path / "s").store
    (layer,) = store.layers
    x = wide(store.matrices(layer))
    moments = store.moments(layer)
    expected = (x - x.mean(axis=0)).std()
    assert 0.1 * spread < expected < 10 * spread
    np.testing.assert_allclose(moments.centred_std, expected, rtol=1e-5)
    np.testing.assert_allclose(moments.std, x.std(), rtol=1e-9)


def test_by_layer_reads_what_is_asked_for_when_it_is(toy_store, monkeypatch):
    read = []
    real = px.LayerStore.matrices
    monkeypatch.setattr(
        px.LayerStore,
        "matrices",
        lambda self, *asked: read.append(asked[:2]) or real(self, *asked),
    )
    found = toy_store.by_layer("val")
    assert isinstance(found, Mapping)
    assert (list(found), len(found)) == (["a.weight", "b.weight", "c.bias"], 3)
    assert "a.weight" in found
    assert "c.weight" not in found
    assert not read
    np.testing.assert_array_equal(found["a.weight"], real(toy_store, "a.weight", "val"))
    assert read == [("a.weight", "val")]
    assert toy_store.by_layer()["b.weight"].shape == (70, 6, 18)
    some = toy_store.by_layer("train", [5, 2])["a.weight"]
    np.testing.assert_array_equal(some, real(toy_store, "a.weight")[[5, 2]])
    with pytest.raises(px.ProbexError, match=r"no layer 'c\.weight'.*'a\.weight', 'b\.weight'"):
        found["c.weight"]


def test_moments_and_blocks_of_nothing_are_refused(toy_store):
    with pytest.raises(px.ProbexError, match=r"no layer 'c\.weight'"):
        toy_store.moments("c.weight")
    with pytest.raises(px.ProbexError, match="no model in split 'val_holdout'"):
        toy_store.moments("a.weight", "val_holdout")


def test_a_limited_store_has_the_first_models_of_one_split(toy_store):
    full = toy_store.hash  # kept by the store, and not to be taken over
    limited = toy_store.limited(10)
    assert [m.id for m in limited.split("train")] == [m.id for m in toy_store.split("train")[:10]]
    np.testing.assert_array_equal(limited.matrices("a.weight"), toy_store.matrices("a.weight")[:10])
    np.testing.assert_array_equal(limited.targets(), toy_store.targets()[:10])
    for split in ("val", "test"):
        assert limited.split(split) == toy_store.split(split)
    assert len({full, limited.hash, toy_store.limited(11).hash}) == 3
    assert toy_store.hash == full
    assert len(toy_store.split("train")) == 70
    assert toy_store.limited(70).hash == full
    assert len(toy_store.limited(3, "val").split("val")) == 3
    np.testing.assert_allclose(
        limited.moments("a.weight").mean,
        wide(toy_store.matrices("a.weight")[:10]).mean(axis=0),
        rtol=1e-12,
    )


def test_a_limited_store_knows_its_own_classes(toy_lora_store):
    assert len(toy_lora_store.seen_classes) == 13
    limited = toy_lora_store.limited(3)
    expected = {label for model in toy_lora_store.split("train")[:3] for label in model.labels}
    assert set(limited.seen_classes) == expected
    assert limited.held_out_classes == toy_lora_store.held_out_classes
    assert limited.limited(2).seen_classes != limited.seen_classes


@pytest.mark.parametrize("n_models", [71, 0, -1])
def test_a_store_is_not_limited_to_what_it_has_not(toy_store, n_models):
    with pytest.raises(px.ProbexError, match=f"{n_models} of 70 models of split train"):
        toy_store.limited(n_models)
    with pytest.raises(px.ProbexError, match="no model in split 'val_holdout'"):
        toy_store.limited(1, "val_holdout")


@pytest.mark.parametrize("normalise", ["centre", "scale"])
def test_centre_and_scale_are_of_the_training_models_alone(toy_zoo, toy_store, tmp_path, normalise):
    shutil.copytree(toy_zoo, tmp_path / "Toy")
    rng = np.random.default_rng(9)
    for split in ("val", "test"):
        for model in sorted((tmp_path / "Toy" / split).iterdir()):
            write_toy_model(model, ["ant", "bee", "cat"], rng, signal=9.0)
    changed = px.pack(px.scan(tmp_path / "Toy"), tmp_path / "s").store
    assert changed.hash != toy_store.hash
    expected, found = (
        tree_of(store.moments("a.weight"), normalise, factors=False)
        for store in (toy_store, changed)
    )
    assert found.keys() == expected.keys() != set()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
