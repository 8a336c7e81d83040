"""Map layouts of indexes, computed once and saved in the folder of the index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save

from probex_jax.errors import ProbexError
from probex_jax.files import write_bytes
from probex_jax.model_files import open_model
from probex_jax.reports.map_layout import layout_2d, sample_for_map
from probex_jax.search import Hit, Snapshot

_FILE = "map.safetensors"


@dataclass(frozen=True)
class Layout:
    """Positions of models of an index on a map.

    Args:
      models: N models.
      vectors: [N, T] float32 unit vectors.
      points: [N, 2] float32 positions.
    """

    models: Sequence[Hit]
    vectors: np.ndarray
    points: np.ndarray


def load_layout(snapshot: Snapshot) -> Layout | None:
    """The layout of an index; None if scikit-learn is missing.

    A thousand models take seconds, so the points are saved in the folder of the index, if it is
    writable, with a hash of the vectors.
    """
    chosen = sample_for_map(len(snapshot))
    vectors_NT = snapshot.vectors_NT[chosen]
    models = [snapshot.models[place] for place in chosen]
    path = snapshot.index.path / _FILE
    content = hashlib.sha256(np.ascontiguousarray(vectors_NT).tobytes()).hexdigest()
    with suppress(ProbexError), open_model(path) as kept:
        points_N2 = kept.tensor("points")
        if kept.metadata.get("of") == content and points_N2.shape == (len(models), 2):
            return Layout(models, vectors_NT, points_N2)
    try:
        points_N2 = np.asarray(layout_2d(vectors_NT), np.float32)
    except ProbexError:
        return None
    with suppress(ProbexError):
        write_bytes(path, save({"points": np.ascontiguousarray(points_N2)}, {"of": content}))
    return Layout(models, vectors_NT, points_N2)
