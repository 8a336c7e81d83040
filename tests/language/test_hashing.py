"""The embedded text encoder: what is close, what is not, and that it never changes."""

import itertools
import unicodedata

import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.language import HashingEncoder, text_encoder

SIGNS = "+++-+-++++++-+-+-+--+-++-+---++-"
FIRST = [0.0677256957, 0.1036383510, 0.0229884735, -0.2468511015]


def cosine(first, second, dim=512):
    a, b = HashingEncoder(dim).encode([first, second])
    return float(a @ b)


def test_never_changes():
    # Computed once, in another process; other features need another version in the name.
    encoder = HashingEncoder(32)
    assert encoder.name == "hashing-v1-32"
    assert encoder.dim == 32
    row = encoder.encode(["Inverted three"])[0]
    assert row.dtype == np.float32
    assert "".join("-+"[int(value > 0)] for value in row) == SIGNS
    np.testing.assert_allclose(row[:4], FIRST, rtol=0, atol=1e-6)


def test_concepts_share_their_words():
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    kinds = ["rotated", "inverted", "mirrored", "enlarged"]
    concepts = list(itertools.product(kinds, names))
    vectors = HashingEncoder().encode([" ".join(concept) for concept in concepts])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=1e-6)
    shared = {0: [], 1: []}
    for (a, x), (b, y) in itertools.combinations(zip(concepts, vectors, strict=True), 2):
        shared[(a[0] == b[0]) + (a[1] == b[1])].append(float(x @ y))
    assert 0.4 < np.mean(shared[1]) < 0.6
    assert abs(np.mean(shared[0])) < 0.1
    assert max(shared[0]) < min(shared[1])
    # Analogies hold: three - inverted + mirrored.
    at = dict(zip(concepts, vectors, strict=True))
    guess = at["inverted", "three"] - at["inverted", "seven"] + at["mirrored", "seven"]
    assert concepts[int(np.argmax(vectors @ guess))] == ("mirrored", "three")


def test_pieces_and_order_count():
    assert cosine("seven", "sevens") > 0.2 > 0.1 > cosine("seven", "three")
    assert 0.8 < cosine("dog bites man", "man bites dog") < 0.999
    assert cosine("dog dog cat", "dog cat") < 0.999
    assert abs(cosine("cat", "dog", dim=16384)) < 0.03


@pytest.mark.parametrize(
    "same",
    [
        ("Café", unicodedata.normalize("NFD", "cafÉ")),
        ("STRASSE", "straße"),
        ("\ufb01ve", "five"),
        ("\u0390", "\u03aa\u0301"),  # folded, the first falls apart
        ("three, seven!", " three\n\tseven"),
        ("İstanbul", unicodedata.normalize("NFD", "İstanbul").lower()),
        ("❤\ufe0f dog", "dog"),
    ],
)
def test_the_same_text_in_other_letters(same):
    assert cosine(*same) == pytest.approx(1, abs=1e-6)


def test_scripts():
    # Vowel signs are marks within a word, not ends of it.
    assert abs(cosine("किताब", "क त ब")) < 0.5
    assert cosine("猫の写真", "猫の写真です") > 0.15
    assert HashingEncoder().encode(["ปลา", "قطة", "٣", "7"]).any(axis=1).all()
    assert HashingEncoder().encode([]).shape == (0, 512)


@pytest.mark.parametrize("text", ["", " ", "?!", "\ufe0f", "❤\ufe0f", "_", "\ud800"])
def test_nothing_to_encode(text):
    with pytest.raises(ProbexError, match="neither letters nor digits") as raised:
        HashingEncoder().encode(["cat", text])
    assert "\n" not in str(raised.value).encode().decode()


@pytest.mark.parametrize("spec", ["hashing:0", "hashing:15", "hashing:65537"])
def test_dimensions_that_are_none(spec):
    with pytest.raises(ProbexError, match="expected 16 to 65536"):
        text_encoder(spec)
