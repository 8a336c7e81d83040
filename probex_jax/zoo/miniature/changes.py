"""What is done to finished weights: merging, pruning, rounding, noise, permuting hidden units."""

import re
from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]

# A layer whose outputs are hidden units, what is applied to each of them, and the layer that reads
# them: of the ViT's MLPs, the denoiser's and the ResNet's blocks.
_HIDDEN = (
    (r"(.*\.layer\.\d+\.)intermediate\.dense\.(?:weight|bias)", "{}output.dense.weight"),
    (r"(.*\.ff\.net\.)0\.proj\.(?:weight|bias)", "{}2.weight"),
    (r"(.*\.layer\.)0\.(?:convolution|normalization)\..*", "{}1.convolution.weight"),
)


def linear(shares: Mapping[str, float], tensors: Mapping[str, Tensors]) -> Tensors:
    """The sum of models, each times its share; with a share of a base, task arithmetic.

    Tensors of other shapes in some of them, as classifiers are, stay those of the last model.
    """
    models = [(share, tensors[role]) for role, share in shares.items()]

    def merged(name: str, last: np.ndarray) -> np.ndarray:
        if any(np.shape(model[name]) != last.shape for _, model in models):
            return last
        return sum((share * model[name] for share, model in models), np.zeros(last.shape))

    return {name: _as(value, merged(name, value)) for name, value in models[-1][1].items()}


def slerp(one: Tensors, other: Tensors, share: float) -> Tensors:
    """Each tensor on the arc from one model's to the other's, at a share of its angle."""
    return {name: _as(value, _slerp(value, other[name], share)) for name, value in one.items()}


def _slerp(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    cosine = np.clip(np.vdot(one, other) / max(lengths, 1e-30), -1, 1)
    angle = np.arccos(cosine)
    if angle < 1e-4:
        return (1 - share) * one + share * other
    return (np.sin((1 - share) * angle) * one + np.sin(share * angle) * other) / np.sin(angle)


def pruned(tensors: Tensors, share: float) -> Tensors:
    """The smallest entries of each matrix set to zero, a share of them."""

    def cut(value: np.ndarray) -> np.ndarray:
        if value.ndim < 2:
            return value
        return np.where(np.abs(value) < np.quantile(np.abs(value), share), 0, value)

    return {name: _as(value, cut(value)) for name, value in tensors.items()}


def quantised(tensors: Tensors, bits: int) -> Tensors:
    """Each matrix rounded to whole numbers of some bits, a scale for each row, and back."""

    def rounded(value: np.ndarray) -> np.ndarray:
        if value.ndim < 2:
            return value
        rows = value.reshape(len(value), -1)
        scale = np.abs(rows).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
        return (np.round(rows / np.maximum(scale, 1e-30)) * scale).reshape(value.shape)

    return {name: _as(value, rounded(value)) for name, value in tensors.items()}


def noised(tensors: Tensors, size: float, rng: np.random.Generator) -> Tensors:
    """Normal noise added to each matrix, of a share of its entries' standard deviation."""

    def added(value: np.ndarray) -> np.ndarray:
        return value + size * value.std() * rng.normal(size=value.shape) * (value.ndim > 1)

    return {name: _as(value, added(value)) for name, value in tensors.items()}


def permuted(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    """Hidden units in another order: the model computes what it did."""
    made = dict(tensors)
    orders: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        for pattern, reader in _HIDDEN:
            if (found := re.fullmatch(pattern, name)) and value.ndim:
                of = reader.format(found[1])
                if of not in orders:
                    orders[of] = rng.permutation(len(value))
                made[name] = value[orders[of]]
    for name, order in orders.items():
        made[name] = tensors[name][:, order]
    return made


def halved(tensors: Tensors) -> Tensors:
    """The same numbers in half precision, as a wrapper names them."""
    return {
        f"module.{name}": value.astype(np.float16)
        if np.asarray(value).dtype == np.float32
        else value
        for name, value in tensors.items()
    }


def _as(like: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.asarray(value).astype(np.asarray(like).dtype)
