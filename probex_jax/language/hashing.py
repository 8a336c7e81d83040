"""The built-in text encoder, which hashes words and parts of words: no weights, no download."""

import hashlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.language.interface import unit_rows
from probex_jax.model_files.untrusted_text import quoted

_PIECE = 3
# Words dominate; parts of words weigh less, but enough for "seven" and "sevens" to be close.
_WORD_WEIGHT, _PIECES_WEIGHT, _PAIR_WEIGHT = 1.0, 0.7, 0.3


class HashingEncoder:
    """Encodes a text as the normalised sum of random signs of its words and parts of words.

        e = normalise(sum_f w_f s(f)),    s(f) in {-1, +1}^dim from SHAKE-256 of f

    The features f of a text are its words (weight 1), the runs of three characters in each word
    (0.7 for a word's runs together) and its pairs of adjacent words (0.3). Texts are compared
    without case and compatibility variants; punctuation and symbols separate words. Signs of
    different features are nearly orthogonal, to about 1/sqrt(dim).

    Args:
      dim: length of the vectors, 16 to 65,536.

    Raises:
      ProbexError: if `dim` is out of range.

    Example:
      >>> encoder = HashingEncoder(dim=512)
      >>> encoder.name
      'hashing-v1-512'
      >>> three, seven, dog = encoder.encode(["inverted three", "Inverted SEVEN", "a dog"])
      >>> print(f"{three @ seven:.1f} {abs(three @ dog):.1f}")
      0.5 0.0

    References:
      Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
    """

    def __init__(self, dim: int = 512):
        if not 16 <= dim <= 65_536:
            raise ProbexError(f"a hashing encoder of dimension {dim}: expected 16 to 65536")
        self.dim = dim

    @property
    def name(self) -> str:
        """Includes the version of the features."""
        return f"hashing-v1-{self.dim}"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts.

        Args:
          texts: any; case does not matter.

        Returns:
          float32 [n, dim], rows of unit length; the same in every process and on every machine.

        Raises:
          ProbexError: if a text has neither letters nor digits.
        """
        vectors = np.zeros([len(texts), self.dim])
        for row, text in zip(vectors, texts, strict=True):
            for feature, weight in _features(text):
                row += weight * self._signs(feature)
        return unit_rows(vectors)

    def _signs(self, feature: str) -> np.ndarray:
        digest = hashlib.shake_256(feature.encode()).digest(-(-self.dim // 8))
        bits = np.unpackbits(np.frombuffer(digest, np.uint8), count=self.dim)
        return 2.0 * bits - 1


def _features(text: str) -> Iterator[tuple[str, float]]:
    """Features with their weights; the name starts with the kind of feature."""
    words = _words(text)
    if not words:
        raise ProbexError(f"text {quoted(text)} has neither letters nor digits to encode")
    for word in words:
        yield f"word {word}", _WORD_WEIGHT
        framed = f"<{word}>"
        pieces = [framed[i : i + _PIECE] for i in range(len(framed) - _PIECE + 1)]
        for piece in pieces:
            yield f"piece {piece}", _PIECES_WEIGHT / len(pieces) ** 0.5
    for first, second in itertools.pairwise(words):
        yield f"pair {first} {second}", _PAIR_WEIGHT


def _words(text: str) -> list[str]:
    """Runs of letters, digits and their combining marks."""
    # Folding case can undo the normal form.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    # A combining mark without a letter, as in an emoji, is not a word.
    return [w for w in spaced.split() if any(unicodedata.category(c)[0] in "LN" for c in w)]
