"""Files of precomputed text embeddings."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors
from probex_jax.language.interface import check_directions, check_distinct, unit_rows
from probex_jax.model_files import ModelFile, open_model
from probex_jax.model_files.untrusted_text import is_unicode, quoted

_TENSOR = "embeddings"


class PrecomputedEncoder:
    """Looks up texts in a safetensors file of embeddings.

    The file holds one tensor, `embeddings` [n, dim], and in its metadata `texts`, a JSON list of n
    distinct strings, `encoder`, the name of what encoded them, and, if the file is to be checked
    against damage, `sha256` of the tensor's float32 bytes. `save_embeddings` writes such files.

    Args:
      path: the file.

    Raises:
      ProbexError: if the file is invalid, or a row is zero, NaN or infinite.

    Attributes:
      name: `encoder` of the file.
      dim: length of the vectors.
      texts: the texts in the file, in order.

    Example:
      >>> import pathlib, tempfile
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = pathlib.Path(folder.name) / "classes.safetensors"
      >>> save_embeddings(path, "mine", ["cat", "dog"], np.eye(2, dtype=np.float32))
      >>> encoder = PrecomputedEncoder(path)
      >>> encoder.name, encoder.encode(["dog"]).tolist()
      ('mine', [[0.0, 1.0]])
      >>> encoder.encode(["eel"])
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: ...classes.safetensors: no embedding of 'eel' among its 2 texts
      >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with open_model(self.path) as file:
            self.name, self.texts, vectors = _contents(file)
        self.dim = vectors.shape[1]
        self._vectors = unit_rows(vectors)
        self._row_of = {text: row for row, text in enumerate(self.texts)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Looks up texts, which must match exactly.

        Args:
          texts: some of `self.texts`.

        Returns:
          float32 [n, dim], rows of unit length.

        Raises:
          ProbexError: if a text is not in the file.
        """
        for text in texts:
            if text not in self._row_of:
                raise ProbexError(
                    f"{self.path}: no embedding of {quoted(text)} among its {len(self.texts)} texts"
                )
        return self._vectors[[self._row_of[text] for text in texts]]


def save_embeddings(
    path: str | os.PathLike[str], name: str, texts: Sequence[str], vectors: np.ndarray
) -> None:
    """Writes a file for `PrecomputedEncoder` atomically.

    Args:
      path: the file, `.safetensors`; its folder must exist.
      name: of the encoder.
      texts: n distinct texts.
      vectors: float [n, dim], stored as float32.

    Raises:
      ProbexError: if texts and vectors do not match, a vector is zero, NaN or infinite, or the
        file cannot be written.

    Example:
      See `PrecomputedEncoder`.
    """
    path = Path(path)
    # safetensors silently writes non-contiguous arrays wrongly.
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    _check(str(path), texts, array)
    metadata = {
        "encoder": name,
        "texts": json.dumps(list(texts), ensure_ascii=False),
        "sha256": hashlib.sha256(array.data).hexdigest(),
    }
    # Several processes may share a cache.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        with partial.open("wb") as file:
            file.write(save({_TENSOR: array}, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def _contents(file: ModelFile) -> tuple[str, tuple[str, ...], np.ndarray]:
    where = str(file.path)
    if [*file.tensors] != [_TENSOR]:
        raise ProbexError(
            f"{where}: expected one tensor named {_TENSOR!r}, found "
            f"{', '.join(quoted(name) for name in [*file.tensors][:3])}"
        )
    for key in ("encoder", "texts"):
        if not file.metadata.get(key):
            raise ProbexError(f"{where}: no {key!r} in its metadata; use save_embeddings")
    texts = _texts(file.metadata["texts"], where)
    vectors = file.tensor(_TENSOR)
    _check(where, texts, vectors)
    digest = hashlib.sha256(vectors.data).hexdigest()
    if file.metadata.get("sha256", digest) != digest:
        raise ProbexError(f"{where}: damaged: the sha256 of its embeddings does not match")
    return file.metadata["encoder"], texts, vectors


def _texts(text: str, where: str) -> tuple[str, ...]:
    try:
        texts = json.loads(text)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(t, str) and is_unicode(t) for t in texts):
        raise ProbexError(f"{where}: metadata 'texts': expected a JSON list, got {quoted(text)}")
    return tuple(texts)


def _check(where: str, texts: Sequence[str], vectors: np.ndarray) -> None:
    if vectors.ndim != 2 or len(vectors) != len(texts) or 0 in vectors.shape:
        raise ProbexError(
            f"{where}: embeddings of shape {list(vectors.shape)} for {len(texts)} texts, expected "
            "a row for each"
        )
    check_distinct(texts, where)
    check_directions(texts, vectors, where)
