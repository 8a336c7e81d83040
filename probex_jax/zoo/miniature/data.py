"""The images of the miniature zoo: handwritten digits, upright and rotated."""

import dataclasses
import functools

import numpy as np

from probex_jax.errors import ProbexError

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CLASSES: tuple[str, ...] = _DIGITS + tuple(f"rotated {name}" for name in _DIGITS)

# What roots are pre-trained on: the same digits, mirrored.
ROOT_CLASSES: tuple[str, ...] = tuple(f"mirrored {name}" for name in CLASSES)

IMAGE_SIZE = 8
TRAIN_IMAGES = 140  # per class; the rarest digit has 174 images
_EVAL_IMAGES = 34
_SPLIT_SEED = 20240  # the split of images belongs to the data, not to an experiment


@dataclasses.dataclass(frozen=True)
class Digits:
    """The images by class, every class equally large.

    Attributes:
      train: float32 [20, 140, S, S], values in [-1, 1]; the first axis follows `CLASSES`.
      held_back: float32 [20, 34, S, S], images that no model is trained on in any rotation.
    """

    train: np.ndarray
    held_back: np.ndarray

    @property
    def pretraining(self) -> np.ndarray:
        """The training images mirrored; the first axis follows `ROOT_CLASSES`."""
        return self.train[..., ::-1]


@functools.cache
def load(image_size: int = IMAGE_SIZE) -> Digits:
    """scikit-learn's digits (1797 images of 8×8), and the same rotated by 90°.

    Args:
      image_size: side of the images, a multiple of 8: pixels are repeated.

    Raises:
      ProbexError: scikit-learn, of the extra `zoo`, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ProbexError(
            "the miniature zoo needs scikit-learn: pip install scikit-learn"
        ) from None
    bunch = load_digits()
    pixels = (bunch.images / 8.0 - 1.0).astype(np.float32)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(pixels))
    images, labels = pixels[order], bunch.target[order]
    enough = TRAIN_IMAGES + _EVAL_IMAGES
    upright = np.stack([images[labels == digit][:enough] for digit in range(10)])
    both = np.concatenate([upright, np.rot90(upright, axes=(2, 3))])
    both = both.repeat(image_size // IMAGE_SIZE, axis=2).repeat(image_size // IMAGE_SIZE, axis=3)
    return Digits(train=both[:, :TRAIN_IMAGES], held_back=both[:, TRAIN_IMAGES:])
