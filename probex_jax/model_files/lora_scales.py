"""What LoRA updates are multiplied by.

The scale is alpha / R. kohya keeps alpha in a tensor beside the factors; PEFT in
adapter_config.json, and divides by the root of R where `use_rslora` says so; diffusers may keep
PEFT's fields in the header. Where nothing says alpha, the scale is 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from probex_jax.errors import ProbexError
from probex_jax.model_files.lora import Factors
from probex_jax.model_files.untrusted_text import json_object, quoted

T = TypeVar("T")

if TYPE_CHECKING:
    from probex_jax.model_files.model_file import ModelFile

_MAX_ALPHA = 1e6
# Metadata of diffusers: fields of PEFT's config, each after the part of the pipeline that it is of.
_PEFT = "adapter_config.json"
_METADATA = "lora_adapter_metadata"
_MAX_PATTERN = 200
_PLAIN_PATTERN = re.compile(rf"\^?[\w.]{{1,{_MAX_PATTERN}}}\$?")
_ROOT = "base_model.model."


class Scales:
    """Of the LoRA layers of an open model; its configs are parsed once, damaged ones, too.

    Args:
      model: the model.
      factors: its LoRA layers.
      depth: how deep a config may be nested.
    """

    def __init__(self, model: ModelFile, factors: Mapping[str, Factors], depth: int):
        self._model, self._factors, self._depth = model, factors, depth
        self._known: dict[str, float | None] = {}

    def of(self, layer: str) -> float | None:
        """What the update of a layer is multiplied by; None where nothing says.

        Raises:
          ProbexError: if what is said is no number, or the config that says it is damaged.
        """
        if layer not in self._known:
            pair, rank = self._factors[layer], self._model.layers[layer].rank
            assert rank is not None
            alpha = self._model.number(pair.alpha) if pair.alpha else None
            stated = self._stated(layer.partition(".")[0], pair.dialect)
            where = str(self._model.path)
            self._known[layer] = scale(layer, pair.path, rank, alpha, stated, where)
        return self._known[layer]

    def _stated(self, part: str, dialect: str) -> PeftScales:
        """What PEFT, or diffusers in the header, says of the adapter of a part of a pipeline."""
        if dialect == "kohya":
            return PeftScales()
        if dialect == "peft" and (beside := _or_raise(self._in_its_folder)) is not None:
            return beside
        return _or_raise(self._in_its_header).get(part, PeftScales())

    @cached_property
    def _in_its_folder(self) -> PeftScales | ProbexError | None:
        try:
            config = self._model.beside(_PEFT)
            return peft_scales(config, self._model.path_beside(_PEFT)) if config else None
        except ProbexError as error:
            return error

    @cached_property
    def _in_its_header(self) -> dict[str, PeftScales] | ProbexError:
        """By the part of the pipeline that each field begins with."""
        text = self._model.metadata.get(_METADATA, "{}").encode()
        where = f"{self._model.path}: metadata {_METADATA}"
        parts: dict[str, dict[str, Any]] = {}
        try:
            for key, value in json_object(text, where, depth=self._depth).items():
                part, _, name = key.partition(".")
                parts.setdefault(part, {})[name] = value
            return {part: peft_scales(config, where) for part, config in parts.items()}
        except ProbexError as error:
            return error


def _or_raise(found: T | ProbexError) -> T:
    if isinstance(found, ProbexError):
        raise ProbexError(str(found))
    return found


@dataclass(frozen=True)
class PeftScales:
    """What PEFT's config of an adapter says of scales; as it stands there, checked where used.

    Args:
      alpha: of all layers but those of `patterns`; None where it says nothing.
      patterns: name of a module, or the end of it, to its place in the file and its alpha; a whole
        name after "^".
      root: whether alpha is divided by the root of R.
    """

    alpha: object = None
    patterns: Mapping[str, tuple[int, object]] = field(default_factory=dict)
    root: bool = False

    def of(self, path: str) -> object:
        """Alpha of a module; the first pattern that fits counts, as in PEFT."""
        # Only ends that are short enough: a stranger's path may be a million dots.
        end = path[-_MAX_PATTERN - 1 :]
        ends = [end[dot.end() :] for dot in re.finditer(r"\.", end)]
        whole = (f"^{path}", f"^{path.removeprefix(_ROOT)}")
        fitting = [self.patterns[e] for e in (path, *ends, *whole) if e in self.patterns]
        return min(fitting, key=lambda found: found[0])[1] if fitting else self.alpha


def peft_scales(config: Mapping[str, Any], where: str) -> PeftScales:
    """Reads PEFT's config of an adapter, from adapter_config.json or from a header.

    Raises:
      ProbexError: if `alpha_pattern` is no object, or has a regular expression or a long name.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ProbexError(f"{where}: alpha_pattern is no object")
    for pattern in patterns:
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise ProbexError(
                f"{where}: alpha_pattern {quoted(pattern)} is a regular "
                f"expression; only names of modules are read, of at most {_MAX_PATTERN} characters"
            )
    numbered = {
        name.removesuffix("$"): (place, alpha)
        for place, (name, alpha) in reversed([*enumerate(patterns.items())])
    }
    return PeftScales(config.get("lora_alpha"), numbered, config.get("use_rslora") is True)


def scale(
    layer: str, path: str, rank: int, alpha: float | None, peft: PeftScales, where: str
) -> float | None:
    """What an update is multiplied by; None where nothing says.

    Args:
      layer: canonical name.
      path: the layer's own name in the file, for the patterns of PEFT.
      rank: R.
      alpha: of a tensor beside the factors, where there is one.
      peft: what the config of the adapter says; `PeftScales()` where nothing does.
      where: the file's name, for errors.

    Raises:
      ProbexError: if alpha is no number.
    """
    root = alpha is None and peft.root
    if alpha is None:
        stated = peft.of(path)
        if stated is None:
            return None
        if not (isinstance(stated, int | float) and not isinstance(stated, bool)):
            raise ProbexError(
                f"{where}: lora_alpha of the adapter's config is {quoted(stated)}, no number"
            )
        alpha = stated
    if not abs(alpha) <= _MAX_ALPHA:
        raise ProbexError(
            f"{where}: LoRA {quoted(layer)}: alpha is {quoted(alpha)}, expected a number of at "
            f"most {_MAX_ALPHA:g}"
        )
    return alpha / (math.sqrt(rank) if root else rank)
