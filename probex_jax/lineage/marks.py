"""Marks of models: a few hundred bytes of each, which tell what may have the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import ml_dtypes
import numpy as np

from probex_jax.engine import HERE, Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.lineage.difference import coarsest, rounding_of
from probex_jax.lineage.sketch import Sketch, sketch
from probex_jax.model_files import open_model

_FEATURES = 16
_ROUNDED = (np.float16, ml_dtypes.bfloat16)
_LARGEST = 65504  # of F16
_LEAST_SCALE = 1e-4  # below it F16 keeps too little for features to agree


@dataclass(frozen=True, eq=False)
class Mark:
    """What tells whether two models may be copies; made by `mark`.

    Args:
      kind: a hash of the shapes of all layers.
      content: a hash of the sampled entries, the same whatever the order of layers.
      roundings: a hash of the roundings of the layers' dtypes; models with the same are copies
        only if `content` is the same, too. "" if any rounding may be.
      bits: of the significands, on average.
      least_bits: of the coarsest.
      features: random projections [2, 16] of the samples as F16 and as BF16 have them, float32.
    """

    kind: str
    content: str
    roundings: str
    bits: float
    least_bits: int
    features: np.ndarray


def mark(model: Sketch) -> Mark | None:
    """The mark of a model.

    Args:
      model: its sketch.

    Returns:
      The mark; None if each of its layers has one value throughout, as untrained ones have: that
      says nothing of where they are from.

    Example:
      >>> from probex_jax.lineage.sketch import sketch
      >>> from probex_jax.model_files import open_params
      >>> weights = np.random.default_rng(0).normal(size=(16, 16)).astype("f4")
      >>> one, other = ({name: weights} for name in ("a.weight", "b.kernel.weight"))
      >>> marks = [mark(sketch(open_params(tree))) for tree in (one, other)]
      >>> marks[0].content == marks[1].content
      True
      >>> mark(sketch(open_params({"a.weight": np.ones((4, 4), "f4")}))) is None
      True
    """
    if not any(np.ptp(model.of_layer(layer)) for layer in model.layers):
        return None
    parts, bits, features = [], [], np.zeros((len(_ROUNDED), _FEATURES))
    is_float = {layer.dtype for layer in model.layers} <= {"F32", "F64"}
    meant = coarsest(model.values) if is_float else ""
    for (shape, is_update), group in groupby(
        model.layers, lambda each: (each.shape, each.is_update)
    ):
        layers = list(group)
        # Of -0 and 0, the same bytes.
        samples_LD = np.stack([model.of_layer(layer) for layer in layers]) + np.float32(0)
        hashes = sorted(hashlib.sha256(sample_D).digest() for sample_D in samples_LD)
        parts.append(repr((shape, is_update, hashes)))
        bits += [(shape, rounding_of(meant or layer.dtype)[0]) for layer in layers]
        bounded_LD = np.clip(samples_LD, -_LARGEST, _LARGEST)
        features += np.stack([_projected(bounded_LD.astype(kind), shape) for kind in _ROUNDED])
    return Mark(
        kind=model.kind,
        content=hash_of(parts),
        # Products of factors have rounding of their own.
        roundings="" if any(layer.is_update for layer in model.layers) else hash_of(sorted(bits)),
        bits=float(np.mean([each for _, each in bits])),
        least_bits=min(each for _, each in bits),
        features=(features / max(len(model.values), 1) ** 0.5).astype(np.float32),
    )


def read_marks(
    models: Sequence[tuple[str, Path]],
    *,
    engine: Engine = HERE,
    on_model: Callable[[], None] = lambda: None,
) -> list[Mark | None]:
    """The marks of models; None for those without one, and those that cannot be read."""
    marks: list[Mark | None] = []
    paths = in_parts(path for _, path in models)
    for _, found in flattened(engine.map(_marking, paths, computes=False)):
        marks.append(found if isinstance(found, Mark) else None)
        on_model()
    return marks


def hash_of(value: object) -> str:
    """A hash of what prints alike."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:32]


def _marking() -> Work:
    return Work(_mark_of, lambda part, found: found)


def _mark_of(path: Path) -> Mark | None:
    try:
        with open_model(path) as model:
            found = mark(sketch(model))
            model.check_unchanged()
            return found
    except ProbexError:
        return None


def _projected(samples_LD: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Random projections [16] of the sum of layers of one shape, scaled to one size."""
    samples_LD = samples_LD.astype(np.float64)
    scale = np.square(samples_LD).mean() ** 0.5 + _LEAST_SCALE
    sum_D = samples_LD.sum(0) / (scale * len(samples_LD) ** 0.5)
    return sum_D @ _signs(*shape, len(sum_D))


@lru_cache(maxsize=1024)
def _signs(height: int, width: int, count: int) -> np.ndarray:
    """Random signs [count, 16], float32."""
    rng = np.random.default_rng([height, width, count])
    return rng.choice(np.array([-1, 1], np.float32), (count, _FEATURES))
