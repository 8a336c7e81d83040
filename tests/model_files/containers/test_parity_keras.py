"""Keras's own files, written here: named layers, attention, recurrence, models in models."""

import jax
import numpy as np
import pytest

from probex_jax.model_files import fingerprint, open_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def layers(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):
        yield pytest.importorskip("keras").layers


def made(layers):
    import keras

    words = keras.Input((6,))
    x = layers.Embedding(10, 8, name="words")(words)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.LayerNormalization()(x)
    x = layers.LSTM(3, name="rnn")(x)
    inner = keras.Sequential([layers.Dense(4), layers.Dense(2, name="last")], name="inner")
    return keras.Model(words, inner(x), name="outer")


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras", "a.h5"])
def test_layers_are_those_of_the_model(tmp_path, layers, name):
    prints = []
    for copy in "ab":
        model = made(layers)
        (model.save_weights if "weights" in name else model.save)(tmp_path / f"{copy}{name[1:]}")
        with open_model(tmp_path / f"{copy}{name[1:]}") as m:
            prints.append(fingerprint(m))
            kernels = {
                w.path.split("/")[-2]: w.numpy() for w in model.weights if "kernel" in w.path
            }
            query, out = kernels["query"], kernels["attention_output"]
            np.testing.assert_array_equal(
                m.matrix("attention.query.weight"), query.reshape(8, -1).T
            )
            np.testing.assert_array_equal(
                m.matrix("attention.attention_output.weight"), out.reshape(-1, 8).T
            )
            np.testing.assert_array_equal(m.matrix("inner.last.weight"), kernels["last"].T)
            assert {"words.weight", "inner.dense.weight", "layer_normalization.weight"} <= {
                *m.all_layers
            }
            assert not m.left_out
    assert prints[0] == prints[1]


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras", "a.h5"])
def test_half_precision_and_sequential_models(tmp_path, layers, name):
    import keras

    parts = [layers.Dense(3, dtype="bfloat16", name="one"), layers.Dense(2, dtype="float16")]
    model = keras.Sequential([keras.Input((4,)), *parts])
    (model.save_weights if "weights" in name else model.save)(tmp_path / name)
    with open_model(tmp_path / name) as m:
        assert {layer: info.dtype for layer, info in m.layers.items()} == {
            "one.weight": "BF16",
            "dense.weight": "F16",
        }
        expected = np.asarray(model.layers[0].kernel.value, np.float32)
        np.testing.assert_array_equal(m.matrix("one.weight"), expected.T)
