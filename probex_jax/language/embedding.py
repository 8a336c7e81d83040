"""Text encoders from specifications, and cached embeddings of lists of texts."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, user_cache
from probex_jax.language.clip import ClipTextEncoder
from probex_jax.language.hashing import HashingEncoder
from probex_jax.language.interface import (
    TextEncoder,
    check_directions,
    check_distinct,
    unit_rows,
)
from probex_jax.language.precomputed import PrecomputedEncoder, save_embeddings
from probex_jax.model_files.untrusted_text import is_unicode, quoted


def text_encoder(spec: str) -> TextEncoder:
    """Creates a text encoder from its specification.

    Args:
      spec: "hashing" or "hashing:DIM"; "clip:FOLDER" or "clip:HUB_ID", see
        `ClipTextEncoder.load`; "file:PATH" of precomputed embeddings, see `PrecomputedEncoder`.

    Returns:
      An encoder whose `name` identifies its weights.

    Raises:
      ProbexError: if the specification is unknown, or the encoder cannot be created.

    Example:
      >>> text_encoder("hashing:256").dim
      256
      >>> text_encoder("word2vec")
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: text encoder 'word2vec': expected hashing, hashing:DIM,
      clip:FOLDER, clip:HUB_ID or file:PATH.safetensors
    """
    kind, _, value = spec.partition(":")
    if spec == "hashing":
        return HashingEncoder()
    if kind == "hashing" and value.isascii() and value.isdigit() and len(value) < 10:
        return HashingEncoder(int(value))
    if kind == "clip" and value:
        return ClipTextEncoder.load(value)
    if kind == "file" and value:
        return PrecomputedEncoder(value)
    raise ProbexError(
        f"text encoder {quoted(spec)}: expected hashing, hashing:DIM, clip:FOLDER, clip:HUB_ID or "
        "file:PATH.safetensors"
    )


def embed(encoder: TextEncoder, texts: Sequence[str], cache: Path | None = None) -> np.ndarray:
    """Encodes a list of distinct texts, or reads the embeddings from a cache.

    A cache is a folder of files for `PrecomputedEncoder`, named by the hash of the encoder's name
    and the texts. Damaged files are replaced.

    Args:
      encoder: any text encoder.
      texts: n distinct texts, none empty.
      cache: folder, created if missing, such as `default_cache()`; None for no cache.
        Precomputed embeddings are not cached again.

    Returns:
      float32 [n, dim], rows of unit length; from the cache the same bits as without.

    Raises:
      ProbexError: if there are no texts, if one is empty or comes twice, if the encoder gives
        anything but a finite vector that is not zero for each, or if the cache cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     first = embed(HashingEncoder(), ["cat", "dog"], pathlib.Path(folder))
      ...     again = embed(HashingEncoder(), ["cat", "dog"], pathlib.Path(folder))
      >>> first.shape, bool((first == again).all())
      ((2, 512), True)
      >>> embed(HashingEncoder(), ["cat", "cat"])
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: texts to embed: 'cat' occurs twice, expected distinct texts
    """
    texts = list(texts)
    _check_texts(texts)
    # What is in a file already needs no second one, which the first may outdate.
    if cache is None or isinstance(encoder, PrecomputedEncoder):
        return _encoded(encoder, texts)
    content = hashlib.sha256(json.dumps([encoder.name, encoder.dim, texts]).encode()).hexdigest()
    path = Path(cache) / f"{content}.safetensors"
    kept = _kept(path, encoder, texts)
    if kept is None:
        kept = _encoded(encoder, texts)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        save_embeddings(path, encoder.name, texts, kept)
    return kept


class CachedEncoder:
    """A text encoder that caches its embeddings by `embed`.

    Args:
      encoder: computes the embeddings.
      cache: folder of the cache.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     encoder = CachedEncoder(HashingEncoder(), pathlib.Path(folder))
      ...     encoder.name == HashingEncoder().name, encoder.encode(["cat"]).shape
      (True, (1, 512))
    """

    def __init__(self, encoder: TextEncoder, cache: Path):
        self.name, self.dim = encoder.name, encoder.dim
        self._encoder, self._cache = encoder, cache

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dim], rows of unit length, of distinct texts."""
        return embed(self._encoder, texts, self._cache)


def default_cache() -> Path:
    """The cache of the user: `probex_jax/text_embeddings` in $XDG_CACHE_HOME or ~/.cache.

    Returns:
      The folder, which may not exist yet.

    Example:
      >>> default_cache().parts[-2:]
      ('probex_jax', 'text_embeddings')
    """
    return user_cache() / "text_embeddings"


def _check_texts(texts: list[str]) -> None:
    if not texts:
        raise ProbexError("texts to embed: expected at least one")
    for number, text in enumerate(texts):
        if not text.strip():
            raise ProbexError(f"texts to embed: text {number} is empty (counted from 0)")
        if not is_unicode(text):
            raise ProbexError(f"texts to embed: {quoted(text)} is not valid Unicode")
    check_distinct(texts, "texts to embed")


def _encoded(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    where = f"text encoder {quoted(encoder.name)}"
    vectors = np.asarray(encoder.encode(texts), np.float32)
    if vectors.shape != (len(texts), encoder.dim):
        raise ProbexError(
            f"{where}: returned an array of shape {list(vectors.shape)}, expected "
            f"{[len(texts), encoder.dim]}"
        )
    check_directions(texts, vectors, where)
    return unit_rows(vectors)


def _kept(path: Path, encoder: TextEncoder, texts: list[str]) -> np.ndarray | None:
    """The cached embeddings, or None if there are no usable ones."""
    if not path.exists():
        return None
    try:
        kept = PrecomputedEncoder(path)
    except ProbexError:
        return None
    same = (kept.name, kept.dim, [*kept.texts]) == (encoder.name, encoder.dim, texts)
    return kept.encode(texts) if same else None
