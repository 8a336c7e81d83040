"""The interface of text encoders."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import quoted

# Rows this close to unit length are left alone, so that normalising is idempotent.
_UNIT = 1e-6


class TextEncoder(Protocol):
    """Encodes texts as vectors to be compared by their cosine.

    Attributes:
      name: of the encoder with its weights: encoders with the same name give the same vectors.
      dim: length of the vectors.

    Example:
      >>> class LettersAndWords:
      ...     name, dim = "letters-and-words", 2
      ...
      ...     def encode(self, texts):
      ...         return np.array([[len(t), len(t.split())] for t in texts], np.float32)
      >>> encoder: TextEncoder = LettersAndWords()
      >>> encoder.encode(["inverted three"])
      array([[14.,  2.]], dtype=float32)
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dim], a row per text; encoders of this package return unit rows."""
        ...


def check_distinct(texts: Sequence[str], where: str) -> None:
    """Raises a ProbexError that names the first duplicate."""
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise ProbexError(f"{where}: {quoted(text)} occurs twice, expected distinct texts")
        seen.add(text)


def check_directions(texts: Sequence[str], vectors: np.ndarray, where: str) -> None:
    """Raises a ProbexError that names the first text with a zero or non-finite vector [n, dim]."""
    good = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    if not good.all():
        text = quoted(texts[int(np.argmin(good))])
        raise ProbexError(
            f"{where}: the embedding of {text} is zero, NaN or infinite, expected a direction"
        )


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scales the rows [n, dim] to unit length in float32; zero rows stay zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    keep = (np.abs(lengths - 1) <= _UNIT) | (lengths == 0)
    return (vectors / np.where(keep, 1, lengths)).astype(np.float32)
