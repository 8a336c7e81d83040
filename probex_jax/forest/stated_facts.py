"""Facts that the files of a model state about it: quoted, never trusted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from probex_jax.errors import ProbexError
from probex_jax.model_files import ModelFile, Stated, read_stated

_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_REASONS = 3
# What tells what a model was trained on, the first one first.
_TOLD_BY = ("labels", "tags", "triggers", "topics", "folders")

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
      labels: the classes that it was trained on, or else its trigger words, its topics and the tags
        of many of its images; empty if not stated.
      source: where they are stated, such as "config.json, id2label", or "".
      base: the model that it was fine-tuned from, or "".
      architecture: name of its class in transformers or diffusers, or of its kind, or "".
      library: "transformers", "diffusers", "peft" or "".
      pipeline: its pipeline tag on the hub, or "".
      is_lora: whether it is an update of another model.
      parameters: number of parameters.
      dtype: of most parameters.
      layers: number of layers.
      unscaled: number of layers of a PEFT or kohya LoRA without a stated alpha.
      unread: number of adapter tensors that are in no layer (`ModelFile.unread`).
      unread_reasons: the first reasons.
      said: all that the files say.
      attributes: what a table beside the models says of this one: a number or classes by name.
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
    said: Stated = field(default_factory=Stated)
    attributes: Mapping[str, float | tuple[str, ...]] = field(default_factory=dict)

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
    said = read_stated(model)
    is_lora = any(layer.is_update for layer in model.layers.values())
    sizes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        sizes[tensor.dtype] += math.prod(tensor.shape)
    return StatedFacts(
        labels=said.about,
        source=next(
            (said.sources[f] for f in _TOLD_BY if set(said.about) & set(getattr(said, f))), ""
        ),
        base=said.base,
        architecture=said.architecture,
        library=_library(model, said.architecture, is_lora),
        pipeline=next((p for end, p in _PIPELINES.items() if said.architecture.endswith(end)), ""),
        is_lora=is_lora,
        parameters=sum(sizes.values()),
        dtype=sizes.most_common(1)[0][0] if sizes else "",
        layers=len(model.layers),
        unscaled=_unscaled(model),
        unread=len(model.unread),
        unread_reasons=tuple(dict.fromkeys(model.unread.values()))[:_MAX_REASONS],
        said=said,
    )


def _unscaled(model: ModelFile) -> int:
    try:
        return len(model.unscaled)
    except ProbexError:
        return 0  # reading the layer reports the invalid alpha


def _library(model: ModelFile, architecture: str, is_lora: bool) -> str:
    if _has_adapter_config(model):
        return "peft"
    if is_lora:
        return "diffusers"
    try:
        model_type = model.config.get("model_type")
    except ProbexError:
        return ""
    return "transformers" if architecture and isinstance(model_type, str) and model_type else ""


def _has_adapter_config(model: ModelFile) -> bool:
    try:
        return model.bytes_beside("adapter_config.json", _MAX_CONFIG_BYTES) is not None
    except ProbexError:
        return True
