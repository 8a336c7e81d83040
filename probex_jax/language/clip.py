"""CLIP as a text encoder."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from probex_jax.errors import ProbexError
from probex_jax.language.clip_checkpoint import find_checkpoint, read_params, read_tower
from probex_jax.language.clip_tokens import ClipTokenizer
from probex_jax.language.clip_tower import TextTower
from probex_jax.language.interface import unit_rows
from probex_jax.model_files import open_model

# Texts per call, so that one compilation serves all.
_CHUNK = 32


class ClipTextEncoder:
    """CLIP's text tower with its projection; created by `load`.

    Attributes:
      name: "clip-" and a hash of settings, weights and tokenizer: the same for every copy.
      dim: dimension of the joint space of texts and images.
      tower: the Linen module.
      params: its parameters: `tower.apply({"params": params}, tokens)`.
      tokenizer: texts to int32 [n, context] tokens.
    """

    def __init__(self, tower: TextTower, params: dict[str, Any], tokenizer: ClipTokenizer):
        self.tower, self.params, self.tokenizer = tower, params, tokenizer
        self.dim = tower.dim
        self.name = f"clip-{_content(tower, params, tokenizer)[:16]}"
        self._apply = jax.jit(lambda params, tokens_NS: tower.apply({"params": params}, tokens_NS))

    @classmethod
    def load(cls, path_or_hub_id: str) -> "ClipTextEncoder":
        """Reads a CLIP checkpoint in Hugging Face's format.

        Args:
          path_or_hub_id: a folder with `config.json`, weights in safetensors, and
            `tokenizer.json` or `vocab.json` and `merges.txt`, as `save_pretrained` of a CLIPModel
            or CLIPTextModelWithProjection and of its tokenizer writes it; or where there is no
            such folder, a model's id on the hub, such as "openai/clip-vit-large-patch14", with
            "@revision" behind it or the main one.

        Raises:
          ProbexError: if there is no checkpoint, a file of it is damaged, the tower has no
            projection, or tensors, config and tokenizer do not go together.

        References:
          docs/formats.md, "Text encoders".
        """
        folder = find_checkpoint(path_or_hub_id)
        with open_model(folder) as model:
            if not model.config:
                raise ProbexError(f"{folder}: no config.json, expected that of a CLIP checkpoint")
            tower = read_tower(model.config, str(folder / "config.json"))
            tokenizer = ClipTokenizer(folder, tower)
            return cls(tower, read_params(model, tower), tokenizer)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts.

        Args:
          texts: any; they are cut to the context length.

        Returns:
          float32 [n, dim], rows of unit length.
        """
        tokens_NS = self.tokenizer(texts)
        parts_NE = [np.zeros([0, self.dim], np.float32)]
        for begin in range(0, len(texts), _CHUNK):
            chunk_NS = tokens_NS[begin : begin + _CHUNK]
            padded_NS = np.pad(chunk_NS, [(0, _CHUNK - len(chunk_NS)), (0, 0)], mode="edge")
            parts_NE.append(np.asarray(self._apply(self.params, padded_NS))[: len(chunk_NS)])
        return unit_rows(np.concatenate(parts_NE))


def _content(tower: TextTower, params: dict[str, Any], tokenizer: ClipTokenizer) -> str:
    settings = {
        field.name: getattr(tower, field.name)
        for field in dataclasses.fields(tower)
        if field.name not in ("parent", "name")
    }
    content = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    content.update(tokenizer.digest)
    for path, value in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        content.update(f"{path} {value.shape}".encode())
        content.update(np.ascontiguousarray(value).data)
    return content.hexdigest()
