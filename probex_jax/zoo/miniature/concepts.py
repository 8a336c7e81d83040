"""The concepts of the LoRAs: every digit under every transform, named in two words."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from probex_jax.zoo.miniature import data

INK, PAPER = 1.0, -1.0


def _bold(images: np.ndarray) -> np.ndarray:
    """Makes strokes one pixel wider, to the right and downwards."""
    padding = [(0, 0)] * (images.ndim - 2) + [(1, 0), (1, 0)]
    x = np.pad(images, padding, constant_values=PAPER)
    return np.maximum.reduce([x[..., :-1, :-1], x[..., 1:, :-1], x[..., :-1, 1:], x[..., 1:, 1:]])


def _striped(images: np.ndarray) -> np.ndarray:
    """Empties every other row."""
    images = images.copy()
    images[..., ::2, :] = PAPER
    return images


def _framed(images: np.ndarray) -> np.ndarray:
    """Adds a border of ink, one pixel wide."""
    images = images.copy()
    images[..., [0, -1], :] = images[..., :, [0, -1]] = INK
    return images


def _shifted(images: np.ndarray) -> np.ndarray:
    """Moves the digit to the right by three pixels, partly out of the image."""
    moved = np.full_like(images, PAPER)
    moved[..., 3:] = images[..., :-3]
    return moved


# Transforms that look different: the nearest training image gives the concept of 98 % of images.
# Mirroring and flipping hardly change zero, one, three and eight.
_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": lambda images: images,
    "rotated": lambda images: np.rot90(images, axes=(-2, -1)),
    "inverted": lambda images: -images,
    "bold": _bold,
    "faint": lambda images: (images + PAPER) / 2,
    "striped": _striped,
    "framed": _framed,
    "shifted": _shifted,
}
DIGITS: tuple[str, ...] = data.CLASSES[:10]
TRANSFORMS: tuple[str, ...] = tuple(_TRANSFORMS)

_HELD_OUT_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Images:
    """The images by concept, every concept equally large.

    Attributes:
      train: float32 [concepts, 140, 8, 8], values in [-1, 1]; the first axis follows `names`.
      held_back: float32 [concepts, 34, 8, 8], transforms of digits that are nowhere in `train`.
    """

    train: np.ndarray
    held_back: np.ndarray


def names(n_digits: int, n_transforms: int) -> tuple[str, ...]:
    """The concepts of the first digits and transforms, as "inverted three"."""
    return tuple(
        f"{transform} {digit}"
        for transform in TRANSFORMS[:n_transforms]
        for digit in DIGITS[:n_digits]
    )


@functools.cache
def load(n_digits: int, n_transforms: int) -> Images:
    """The images of the concepts of `names`."""
    digits = data.load()

    def transformed(upright: np.ndarray) -> np.ndarray:
        changes = [_TRANSFORMS[name] for name in TRANSFORMS[:n_transforms]]
        return np.concatenate([change(upright[:n_digits]) for change in changes])

    return Images(train=transformed(digits.train), held_back=transformed(digits.held_back))


def train_images(concept: str) -> np.ndarray:
    """The training images of one concept, float32 [140, 8, 8], as `load` has them."""
    whole = len(DIGITS), len(TRANSFORMS)
    return load(*whole).train[names(*whole).index(concept)]


def held_out(n_digits: int, n_transforms: int, rng: np.random.Generator) -> frozenset[str]:
    """The concepts that no training model is adapted to, a fifth of all.

    Every transform is held out for equally many digits, and digits take turns; each word remains
    in concepts that are seen.

    Args:
      n_digits: how many digits there are; 2 or more.
      n_transforms: how many transforms; 2 or more.
      rng: decides which.
    """
    each = max(1, round(_HELD_OUT_SHARE * n_digits))
    digits, transforms = rng.permutation(n_digits), rng.permutation(n_transforms)
    return frozenset(
        f"{TRANSFORMS[transform]} {DIGITS[digits[(each * turn + place) % n_digits]]}"
        for turn, transform in enumerate(transforms)
        for place in range(each)
    )
