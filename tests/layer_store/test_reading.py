"""Reading some models of a split: what training on several devices and streaming ask for."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import probex_jax as px
from probex_jax.matrices import LowRank
from tests.conftest import write_toy_zoo

LAYER = "a.weight"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    px.pack(px.scan(write_toy_zoo(folder / "Toy", 20)), folder / "store")
    return folder / "store"


@pytest.fixture
def store(path):
    return px.LayerStore.open(path)


@pytest.mark.parametrize(
    "models",
    [
        slice(3, 9),
        slice(None, None, -2),
        slice(-2, None),
        [5],
        [7, 2, 2, 13],
        range(1, 14, 3),
        np.array([4, 3], np.int32),
        slice(0, 0),
        [],
    ],
)
def test_models_come_in_the_order_they_are_asked_for(store, models):
    everything = store.matrices(LAYER, "train")
    expected = everything[models if isinstance(models, slice) else np.array([*models], int)]
    np.testing.assert_array_equal(store.matrices(LAYER, "train", models), expected, strict=True)


def test_of_another_split_and_of_a_limited_store(store):
    everything = store.matrices(LAYER, "test")
    np.testing.assert_array_equal(store.matrices(LAYER, "test", [1, 0]), everything[[1, 0]])
    limited = store.limited(5)
    np.testing.assert_array_equal(
        limited.matrices(LAYER, "train", slice(2, None)), store.matrices(LAYER, "train")[2:5]
    )
    with pytest.raises(px.ProbexError, match="no model 5 in split 'train', which has 5"):
        limited.matrices(LAYER, "train", [0, 5])


@pytest.mark.parametrize("models", [[14], [0, -1], [10**12]])
def test_a_model_that_is_not_there_is_one_line(store, models):
    with pytest.raises(px.ProbexError, match=f"no model {models[-1]} in split 'train', which has"):
        store.matrices(LAYER, "train", models)


def test_factors(toy_lora_store):
    everything, some = (toy_lora_store.matrices("a", "train", m) for m in (None, [3, 1]))
    assert isinstance(some, LowRank)
    np.testing.assert_array_equal(some.up, everything.up[[3, 1]])
    np.testing.assert_array_equal(some.down, everything.down[[3, 1]])


def test_only_the_models_asked_for_are_read(store, path, tmp_path):
    """A flipped byte in one model is no matter to who reads the others."""
    (tmp_path / "store").mkdir()
    for file in path.rglob("*"):
        target = tmp_path / "store" / file.relative_to(path)
        target.mkdir(exist_ok=True) if file.is_dir() else target.write_bytes(file.read_bytes())
    [shard] = (tmp_path / "store" / "layers" / LAYER).glob("matrices/c/*/*/*")
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    broken = px.LayerStore.open(tmp_path / "store")
    np.testing.assert_array_equal(
        broken.matrices(LAYER, "train", slice(1, None)), store.matrices(LAYER, "train")[1:]
    )
    with pytest.raises(px.ProbexError, match="damaged"):
        broken.matrices(LAYER, "train", [0])


def test_from_several_threads(store):
    everything = store.matrices(LAYER, "train")
    fresh = px.LayerStore.open(store.path)
    orders = [np.random.default_rng(seed).permutation(len(everything)) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda order: fresh.matrices(LAYER, "train", order), orders)
        for order, matrices in zip(orders, read, strict=True):
            np.testing.assert_array_equal(matrices, everything[order])


def test_a_store_that_was_read_can_be_pickled(store):
    everything = store.matrices(LAYER)
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.matrices(LAYER), everything)
