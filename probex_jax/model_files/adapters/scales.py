"""The scales of updates.

The scale is alpha / R. kohya and LyCORIS keep alpha in a tensor beside the factors. PEFT keeps it
in adapter_config.json, and divides by the root of R if `use_rslora` is set; MLX keeps the scale
itself there. diffusers may keep PEFT's fields in the header. Where nothing states alpha, the scale
is 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from probex_jax.errors import ProbexError
from probex_jax.model_files.adapters.find import LayerUpdate
from probex_jax.model_files.files_beside import FilesBeside
from probex_jax.model_files.stored_tensors import StoredTensors
from probex_jax.model_files.untrusted_text import json_object, quoted

T = TypeVar("T")

_MAX_ALPHA = 1e6
# diffusers' metadata: fields of PEFT's config, each prefixed with its part of the pipeline.
_PEFT = "adapter_config.json"
_METADATA = "lora_adapter_metadata"
_MAX_PATTERN = 200
_PLAIN_PATTERN = re.compile(rf"\^?[\w.]{{1,{_MAX_PATTERN}}}\$?")
_ROOT = "base_model.model."


class Scales:
    """The scales of the updates of an open model; each config is parsed at most once.

    Args:
      updates: layer to its update.
      tensors: its tensors, among them kohya's alphas.
      beside: the files beside it, among them PEFT's config.
      metadata: of its header.
      where: the model's name, for errors.
    """

    def __init__(
        self,
        updates: Mapping[str, LayerUpdate],
        tensors: StoredTensors,
        beside: FilesBeside,
        metadata: Mapping[str, str],
        where: str,
    ):
        self._updates, self._tensors, self._beside = updates, tensors, beside
        self._metadata, self._where = metadata, where
        self._known: dict[str, float | None] = {}

    def of(self, layer: str) -> float | None:
        """The scale of a layer's update; None where nothing states it.

        Raises:
          ProbexError: if what is stated is no number, or the config is damaged.
        """
        if layer not in self._known:
            found = self._updates[layer]
            update, rank, dialect = (
                found.update,
                found.form.alpha_rank,
                found.update.spelling.dialect,
            )
            if update.spelling.method == "delta" or (
                dialect == "lycoris" and self._is_whole(found)
            ):
                self._known[layer] = 1.0
            else:
                alpha = self._tensors.number(update.alpha) if update.alpha else None
                stated = self._stated(layer.partition(".")[0], dialect)
                self._known[layer] = scale(layer, update.path, rank, alpha, stated, self._where)
        return self._known[layer]

    def _is_whole(self, found: LayerUpdate) -> bool:
        """Whether it is a LoKr of two whole halves, of which LyCORIS sets alpha to R."""
        return not found.form.alpha_rank and _or_raise(self._in_its_folder) is None

    def _stated(self, part: str, dialect: str) -> PeftScales:
        """What PEFT, or diffusers in the header, states for one part of a pipeline."""
        if dialect == "kohya":
            return PeftScales()
        if dialect != "diffusers" and (beside := _or_raise(self._in_its_folder)) is not None:
            return beside
        return _or_raise(self._in_its_header).get(part, PeftScales())

    @cached_property
    def _in_its_folder(self) -> PeftScales | ProbexError | None:
        try:
            config = self._beside.json(_PEFT)
            return peft_scales(config, self._beside.path(_PEFT)) if config else None
        except ProbexError as error:
            return error

    @cached_property
    def _in_its_header(self) -> dict[str, PeftScales] | ProbexError:
        """The scales by part of the pipeline, with which each field's name begins."""
        text = self._metadata.get(_METADATA, "{}").encode()
        where = f"{self._where}: metadata {_METADATA}"
        parts: dict[str, dict[str, Any]] = {}
        try:
            for key, value in json_object(text, where, depth=self._beside.depth).items():
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
    """What an adapter's PEFT config states about scales, unchecked until it is used.

    Args:
      alpha: of all layers that match none of `patterns`; None where the config has none.
      patterns: name of a module, or the end of one, to its position in the file and its alpha; a
        whole name begins with "^".
      root: whether alpha is divided by the root of R.
      rank: R where no factor tells it.
      scale: the scale itself, as MLX states it.
    """

    alpha: object = None
    patterns: Mapping[str, tuple[int, object]] = field(default_factory=dict)
    root: bool = False
    rank: object = None
    scale: object = None

    def of(self, path: str) -> object:
        """Alpha of a module; the first pattern that matches counts, as in PEFT."""
        # Only ends of bounded length: a stranger's path may be a million dots.
        end = path[-_MAX_PATTERN - 1 :]
        ends = [end[dot.end() :] for dot in re.finditer(r"\.", end)]
        whole = (f"^{path}", f"^{path.removeprefix(_ROOT)}")
        fitting = [self.patterns[e] for e in (path, *ends, *whole) if e in self.patterns]
        return min(fitting, key=lambda found: found[0])[1] if fitting else self.alpha


def peft_scales(config: Mapping[str, Any], where: str) -> PeftScales:
    """Reads the PEFT config of an adapter, from adapter_config.json or from a header.

    Raises:
      ProbexError: if `alpha_pattern` is no object, or holds a regular expression or a long name.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ProbexError(f"{where}: alpha_pattern is not an object")
    # What PEFT's patterns are, but for regular expressions: names, ends of names, escaped dots.
    patterns = {key.replace(r"\.", ".").removeprefix(".*."): a for key, a in patterns.items()}
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
    mlx = config.get("lora_parameters")
    return PeftScales(
        config.get("lora_alpha", config.get("alpha")),
        numbered,
        config.get("use_rslora") is True,
        config.get("r"),
        mlx.get("scale") if isinstance(mlx, dict) else None,
    )


def scale(
    layer: str, path: str, rank: int, alpha: float | None, peft: PeftScales, where: str
) -> float | None:
    """The scale of an update; None where nothing states it.

    Args:
      layer: canonical name.
      path: the layer's name in the file, which PEFT's patterns match.
      rank: R.
      alpha: from a tensor beside the factors, if there is one.
      peft: what the adapter's config states; `PeftScales()` for nothing.
      where: the file's name, for errors.

    Raises:
      ProbexError: if alpha is no number.
    """
    root = alpha is None and peft.root
    if alpha is None and peft.scale is not None:
        return _number(peft.scale, f"{where}: LoRA {quoted(layer)}: scale")
    if alpha is None:
        stated = peft.of(path)
        if stated is None:
            return None
        alpha = _number(stated, f"{where}: LoRA {quoted(layer)}: alpha")
        rank = rank or int(_number(peft.rank, f"{where}: LoRA {quoted(layer)}: r")) or 1
    if not abs(alpha) <= _MAX_ALPHA:
        raise _refusal(f"{where}: LoRA {quoted(layer)}: alpha", alpha)
    return alpha / ((math.sqrt(rank) if root else rank) or 1)


def _number(value: object, what: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and abs(value) <= _MAX_ALPHA):  # type: ignore[arg-type]
        raise _refusal(what, value)
    return value  # type: ignore[return-value]


def _refusal(what: str, value: object) -> ProbexError:
    return ProbexError(f"{what} is {quoted(value)}, expected a number of at most {_MAX_ALPHA:g}")
