"""Specifications of encoders, and embeddings that are computed once."""

from pathlib import Path

import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.language import (
    HashingEncoder,
    PrecomputedEncoder,
    default_cache,
    embed,
    save_embeddings,
    text_encoder,
)


class Counting:
    """A hashing encoder that counts the texts it is asked for, or gives something else."""

    def __init__(self, name="counting", gives=None):
        self.name, self.dim, self.gives, self.encoded = name, 32, gives, 0

    def encode(self, texts):
        self.encoded += len(texts)
        vectors = 3 * HashingEncoder(32).encode(texts) if self.gives is None else self.gives
        return vectors


def test_specifications():
    assert text_encoder("hashing").dim == 512
    assert text_encoder("hashing:256").name == "hashing-v1-256"


@pytest.mark.parametrize(
    "spec", ["", "Hashing", "hashing:", "hashing:-3", "hashing:²", "clip", "clip:", "file:", "x:y"]
)
def test_specifications_that_are_none(spec):
    with pytest.raises(ProbexError, match="expected hashing, hashing:DIM, clip:FOLDER, clip:HUB"):
        text_encoder(spec)


def test_computed_once(tmp_path):
    cache = tmp_path / "not" / "there"
    encoder = Counting()
    texts = ["cat", "dög", "a line\nand another"]
    first = embed(encoder, texts, cache)
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=0, atol=1e-6)
    again = embed(Counting(gives="nothing"), texts, cache)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, embed(encoder, texts))
    # Other texts, another order, another encoder: other content.
    embed(encoder, texts[:2], cache)
    reversed_rows = embed(encoder, texts[::-1], cache)
    np.testing.assert_array_equal(first[::-1], reversed_rows)
    embed(Counting("other"), texts, cache)
    assert encoder.encoded == 3 + 3 + 2 + 3
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another's"])
def test_a_damaged_cache_is_computed_again(tmp_path, damage):
    encoder = Counting()
    first = embed(encoder, ["cat", "dog"], tmp_path)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-6] ^= 1
    elif damage == "another's":
        embed(encoder, ["dog", "cat"], tmp_path)
        (other,) = set(tmp_path.iterdir()) - {path}
        data = other.read_bytes()
    path.write_bytes(data[: {"cut": -3, "empty": 0}.get(damage, len(data))])
    before = encoder.encoded
    np.testing.assert_array_equal(embed(encoder, ["cat", "dog"], tmp_path), first)
    assert encoder.encoded == before + 2
    np.testing.assert_array_equal(embed(encoder, ["cat", "dog"], tmp_path), first)
    assert encoder.encoded == before + 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one"),
        (["cat", ""], "text 1"),
        ([" \n", "cat"], "text 0"),
        (["cat", "dog", "cat"], "'cat'"),
        (["cat", "\ud800"], r"'\\ud800' is not valid Unicode"),
        (["cat", "!"], "text '!' has neither letters nor digits"),
    ],
)
def test_texts_that_are_refused(texts, message):
    with pytest.raises(ProbexError, match=message):
        embed(HashingEncoder(), texts)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (np.ones([2, 31]), r"shape \[2, 31\], expected \[2, 32\]"),
        (np.ones([3, 32]), r"shape \[3, 32\], expected \[2, 32\]"),
        (np.ones([2, 32]) * [[1], [np.nan]], "the embedding of 'dog' is zero, NaN"),
        (np.zeros([2, 32]), "the embedding of 'cat' is zero"),
    ],
)
def test_encoders_that_give_no_embeddings(tmp_path, gives, message):
    with pytest.raises(ProbexError, match=f"text encoder 'counting': .*{message}"):
        embed(Counting(gives=gives), ["cat", "dog"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbexError, match="file"):
        embed(HashingEncoder(), ["cat"], tmp_path / "file" / "cache")


def test_default_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/probex_jax/text_embeddings")
    monkeypatch.setenv("HOME", "/home/me")
    for absent in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", absent)
        assert default_cache() == Path("/home/me/.cache/probex_jax/text_embeddings")


def test_a_file_that_changes_is_read_anew(tmp_path):
    for value in (1.0, -1.0):
        save_embeddings(tmp_path / "e.safetensors", "mine", ["cat"], np.array([[value, 0.0]]))
        encoder = PrecomputedEncoder(tmp_path / "e.safetensors")
        assert embed(encoder, ["cat"], tmp_path / "cache")[0, 0] == value
