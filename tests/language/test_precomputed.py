"""Files of embeddings: written, read, and refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probex_jax import ProbexError
from probex_jax.language import PrecomputedEncoder, save_embeddings, text_encoder

TEXTS = ["cat", "dög", "eel\n🐟"]


def some_vectors():
    return np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "animals.safetensors"
    vectors = some_vectors()
    # Neither contiguous nor float32: what safetensors alone would write wrongly.
    save_embeddings(path, "mine", TEXTS, np.asfortranarray(vectors.astype(np.float64)))
    np.testing.assert_array_equal(load_file(path)["embeddings"], vectors)
    encoder = text_encoder(f"file:{path}")
    assert (encoder.name, encoder.dim, encoder.texts) == ("mine", 5, tuple(TEXTS))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1]), unit[::-1], rtol=0, atol=1e-6)
    assert encoder.encode([]).shape == (0, 5)
    with pytest.raises(ProbexError, match=r"animals\.safetensors: no embedding of 'Cat' among its"):
        encoder.encode(["cat", "Cat"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_one_text_and_half_precision(tmp_path):
    path = tmp_path / "one.safetensors"
    metadata = {"encoder": "theirs", "texts": '["cat"]', "more": "of theirs"}
    save_file({"embeddings": np.array([[3, 4]], np.float16)}, path, metadata)
    vector = PrecomputedEncoder(path).encode(["cat"])
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": None}, "no 'texts' in its metadata"),
        ({"encoder": None}, "no 'encoder' in its metadata"),
        ({"encoder": ""}, "no 'encoder' in its metadata"),
        ({"texts": "cat, dog"}, "metadata 'texts': expected a JSON list"),
        ({"texts": "[1, 2, 3]"}, "metadata 'texts': expected a JSON list"),
        ({"texts": "[" * 100_000}, "metadata 'texts': expected a JSON list"),
        ({"texts": '["a", "b", "\\ud800"]'}, "metadata 'texts': expected a JSON list"),
        ({"texts": '["a", "b"]'}, r"shape \[3, 5\] for 2 texts"),
        ({"texts": '["a", "b", "a"]'}, "'a'"),
        ({"sha256": "0"}, "sha256"),
        ({"embeddings": np.zeros([3], "f4")}, r"shape \[3\] for 3 texts"),
        (
            {"embeddings": np.eye(3, 5, dtype="f4") * np.array([[1], [0], [1]], "f4")},
            "'dög' is zero",
        ),
        ({"embeddings": np.full([3, 5], np.inf, "f4")}, "infinite"),
        ({"embeddings": np.ones([3, 5], "i4")}, "is of I32, expected one of"),
        ({"bias": np.zeros([3], "f4")}, "expected one tensor named 'embeddings', found 'bias'"),
    ],
)
def test_files_that_are_refused(tmp_path, change, message):
    path = tmp_path / "bad.safetensors"
    metadata = {"encoder": "mine", "texts": json.dumps(TEXTS)}
    tensors = {"embeddings": some_vectors()}
    for key, value in change.items():
        if value is None:
            del metadata[key]
        else:
            (metadata if isinstance(value, str) else tensors)[key] = value
    save_file(tensors, path, metadata)
    with pytest.raises(ProbexError, match=message) as raised:
        PrecomputedEncoder(path)
    assert "bad.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("texts", "vectors", "message"),
    [
        (["a"], np.ones([2, 3]), r"shape \[2, 3\] for 1 texts"),
        (["a", "a"], np.ones([2, 3]), "'a'"),
        (["a", "b"], np.array([[1, 1], [0, 0]]), "the embedding of 'b' is zero"),
        (["a", "b"], np.array([[np.nan, 1], [0, 1]]), "the embedding of 'a' is zero, NaN"),
    ],
)
def test_embeddings_that_are_not_written(tmp_path, texts, vectors, message):
    with pytest.raises(ProbexError, match=message):
        save_embeddings(tmp_path / "x.safetensors", "mine", texts, vectors)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(ProbexError, match=r"missing.*No such file"):
        save_embeddings(tmp_path / "missing" / "x.safetensors", "mine", ["a"], np.ones([1, 2]))
