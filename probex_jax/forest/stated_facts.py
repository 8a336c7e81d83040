"""What a model's file and folder say of it themselves: quoted, never believed."""

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

# What transformers calls classes that nobody named.
_NO_NAME = re.compile(r"(?:LABEL|label|class)_?\d+|\d+")
_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_LABELS = 10_000
_MAX_CHARACTERS = 200
_MAX_REASONS = 3

# What a model is for, by the ending of its class in transformers.
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
    """What a model says of itself.

    Args:
      labels: the classes that it was trained on; none where nothing says.
      source: where they stand, such as "config.json, id2label"; "" where nothing says.
      base: the model that it was fine-tuned from; "" where nothing says.
      architecture: name of its class in transformers; "" where nothing says.
      library: "transformers", "diffusers" or "peft", as its files show; "" for others.
      pipeline: what it is for, in the hub's terms; "" where nothing says.
      is_lora: whether it is an update of another model.
      parameters: how many.
      dtype: of most of them.
      layers: how many.
      unscaled: layers of a LoRA in PEFT's or kohya's dialect for which nothing says alpha.
      unread: tensors of adapters that are in no layer (`ModelFile.unread`).
      unread_reasons: why, the first few.
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
        """What the file holds, in words."""
        if self.is_lora:
            return "an update of another model (LoRA)"
        if 0 < self.unread >= self.layers:
            return "an adapter that could not be read"
        return "a whole model"


def read_stated_facts(model: ModelFile) -> StatedFacts:
    """Reads what an open model says of itself; what is damaged or no text counts as silence."""
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
        return 0  # what its config says is no number: reading the layer says so


def _labels(model: ModelFile, config: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The classes that a model names, and where."""
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
