"""Facts that the files of a model state about it: quoted, never trusted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files import ModelFile, stated_base
from probex_jax.zoo.model_j import stated_in_metadata

# Default class names of transformers.
_NO_NAME = re.compile(r"(?:LABEL|label|class)_?\d+|\d+")
_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_LABELS = 10_000
_MAX_CHARACTERS = 200
_MAX_REASONS = 3

# Pipeline tag by the suffix of the class in transformers.
_PIPELINES = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
}


@dataclass(frozen=True)
class StatedFacts:
    """What the files of a model state about it.

    Args:
      labels: the classes that it was trained on; empty if not stated.
      source: where they are stated, such as "config.json, id2label", or "".
      base: the model that it was fine-tuned from, or "".
      architecture: name of its class in transformers, or "".
      library: "transformers", "diffusers", "peft" or "".
      pipeline: its pipeline tag on the hub, or "".
      is_lora: whether it is an update of another model.
      parameters: number of parameters.
      dtype: of most parameters.
      layers: number of layers.
      unscaled: number of layers of a PEFT or kohya LoRA without a stated alpha.
      unread: number of adapter tensors that are in no layer (`ModelFile.unread`).
      unread_reasons: the first reasons.
    """

    labels: tuple[str, ...]
    source: str
    base: str
    architecture: str
    library: str
    pipeline: str
    is_lora: bool
    parameters: int
    dtype: str
    layers: int
    unscaled: int = 0
    unread: int = 0
    unread_reasons: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of model in words."""
        if self.is_lora:
            return "an update of another model (LoRA)"
        if 0 < self.unread >= self.layers:
            return "an adapter that could not be read"
        return "a whole model"


def read_stated_facts(model: ModelFile) -> StatedFacts:
    """Reads what an open model states about itself; damaged values are ignored."""
    try:
        config = model.config
    except ProbexError:
        config = {}
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    architecture = first if _is_name(first) else ""
    is_lora = any(layer.kind == "lora" for layer in model.layers.values())
    labels, source = _labels(model, config)
    sizes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        sizes[tensor.dtype] += math.prod(tensor.shape)
    return StatedFacts(
        labels=labels,
        source=source,
        base=stated_base(model),
        architecture=architecture,
        library=_library(model, config, architecture, is_lora),
        pipeline=next((p for end, p in _PIPELINES.items() if architecture.endswith(end)), ""),
        is_lora=is_lora,
        parameters=sum(sizes.values()),
        dtype=sizes.most_common(1)[0][0] if sizes else "",
        layers=len(model.layers),
        unscaled=_unscaled(model),
        unread=len(model.unread),
        unread_reasons=tuple(dict.fromkeys(model.unread.values()))[:_MAX_REASONS],
    )


def _unscaled(model: ModelFile) -> int:
    try:
        return len(model.unscaled)
    except ProbexError:
        return 0  # reading the layer reports the invalid alpha


def _labels(model: ModelFile, config: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The stated classes, and where they are stated."""
    try:
        labels, key = stated_in_metadata(model)
    except ProbexError:
        labels, key = (), ""
    if labels and all(map(_is_name, labels)):
        return labels, f"metadata, {key}"
    names = config.get("id2label")
    if not isinstance(names, dict) or len(names) > _MAX_LABELS:
        return (), ""
    labels = tuple(dict.fromkeys(names.values())) if all(map(_is_name, names.values())) else ()
    if not labels or all(_NO_NAME.fullmatch(name) for name in labels):
        return (), ""
    return labels, "config.json, id2label"


def _library(model: ModelFile, config: Mapping[str, Any], architecture: str, is_lora: bool) -> str:
    if _has_adapter_config(model):
        return "peft"
    if is_lora:
        return "diffusers"
    return "transformers" if architecture and _is_name(config.get("model_type")) else ""


def _has_adapter_config(model: ModelFile) -> bool:
    try:
        return model.bytes_beside("adapter_config.json", _MAX_CONFIG_BYTES) is not None
    except ProbexError:
        return True


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_CHARACTERS and value.isprintable()
