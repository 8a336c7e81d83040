"""Models made from their numbers: fine-tunes of one root, with classes planted in a small layer.

They say nothing about real models; they make requests, bytes and vectors as real ones do. A file
holds `body.weight`, which fine-tuning hardly changes and no expert reads, before `head.weight`, so
that a reader needs two ranges: the header and the layer.

Letters: H rows, W columns, C classes.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from probex_jax.zoo.miniature import hf_files

LAYER, SHAPE = "head.weight", (48, 64)
_BODY = (32, 1024)
CLASSES, CHOSEN = 20, 3
_SPLITS = ("train",) * 7 + ("val",) + ("test",) * 2
_NUISANCE, _DRIFT = 4, 0.01
_ENTRIES = SHAPE[0] * SHAPE[1]
_NOISE_NORM = 0.75 * (CHOSEN / _ENTRIES) ** 0.5  # of each entry


class Models:
    """Any number of models.

    Args:
      seed: decides what every number means.
    """

    def __init__(self, seed: int = 0):
        self._seed = seed
        rng = np.random.default_rng(seed)
        self._body = rng.standard_normal(_BODY, np.float32)
        self._head_HW = rng.standard_normal(SHAPE, np.float32) / SHAPE[1] ** 0.5
        directions = CLASSES + _NUISANCE
        self._up_CH = rng.standard_normal((directions, SHAPE[0]), np.float32) / SHAPE[0] ** 0.5
        self._down_CW = rng.standard_normal((directions, SHAPE[1]), np.float32) / SHAPE[1] ** 0.5
        self._column = _DRIFT * rng.standard_normal(_BODY[1], np.float32)
        self.weights = lru_cache(64)(self._weights)

    def labels(self, number: int) -> list[str]:
        """The classes that a model was trained on."""
        return [f"planted {label:02}" for label in self._chosen(self._random(number)).tolist()]

    def readme(self, number: int) -> bytes:
        """The model card, whose tags are the classes."""
        tags = "".join(f"- {label}\n" for label in self.labels(number))
        return f"---\nlibrary_name: transformers\ntags:\n{tags}---\n# Model {number}\n".encode()

    def config(self) -> bytes:
        """config.json, the same in all models."""
        return json.dumps({"model_type": "planted", "architectures": ["Planted"]}).encode()

    def _weights(self, number: int) -> bytes:
        """The safetensors file."""
        rng = self._random(number)
        chosen = self._chosen(rng)
        strengths_C = np.zeros(len(self._up_CH), np.float32)
        strengths_C[chosen] = rng.uniform(0.5, 1.5, CHOSEN)
        strengths_C[CLASSES:] = rng.normal(0, 0.75, _NUISANCE)
        head_HW = (self._up_CH.T * strengths_C) @ self._down_CW + self._head_HW
        head_HW += _NOISE_NORM * rng.standard_normal(SHAPE, np.float32)
        rows = rng.standard_normal((_BODY[0], 1), np.float32)
        tensors = {"body.weight": self._body + rows * self._column, LAYER: head_HW}
        return hf_files.serialise(tensors, {})

    def _random(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, number])

    def _chosen(self, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(CLASSES, CHOSEN, replace=False)

    def heads(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`head.weight` [N, H, W] of further models, drawn together."""
        chosen = rng.random((count, CLASSES)).argsort(axis=1)[:, :CHOSEN]
        strengths_NC = np.zeros((count, len(self._up_CH)), np.float32)
        np.put_along_axis(strengths_NC, chosen, rng.uniform(0.5, 1.5, (count, CHOSEN)), axis=1)
        strengths_NC[:, CLASSES:] = rng.normal(0, 0.75, (count, _NUISANCE))
        planted_CX = (self._up_CH[:, :, None] * self._down_CW[:, None, :]).reshape(-1, _ENTRIES)
        heads_NX = strengths_NC @ planted_CX + self._head_HW.ravel()
        heads_NX += _NOISE_NORM * rng.standard_normal(heads_NX.shape, np.float32)
        return heads_NX.reshape(count, *SHAPE)

    def write_zoo(self, folder: Path, count: int) -> None:
        """Writes the first models as a zoo with labels and splits, for `pack`."""
        labels = {}
        for number in range(1, count + 1):
            split = _SPLITS[number % len(_SPLITS)]
            files = hf_files.cached(json.loads(self.config()), self.weights(number))
            name = f"models--sim--{number:07}"
            hf_files.write(folder / split, folder / split / name, files)
            labels[name] = self.labels(number)
        (folder / "labels.json").write_text(json.dumps(labels))
