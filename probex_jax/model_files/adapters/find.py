"""Finds the layers that an adapter's tensors update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.matrices import LowRank
from probex_jax.model_files.adapters.modules import Slice, family, slices
from probex_jax.model_files.adapters.spellings import Factor, factors
from probex_jax.model_files.adapters.unread import unread_parts
from probex_jax.model_files.adapters.updates import Form, MismatchError, UnknownLayerError, Update
from probex_jax.model_files.layers import LayerInfo, are_experts, of_expert
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.stored_tensors import StoredTensors
from probex_jax.model_files.untrusted_text import leads_out, quoted

# AdaLoRA has a diagonal matrix between the factors.
_DIAGONAL = (".lora_E", ".lora_E.default")
_ADALORA = "of an AdaLoRA, which is not read"
_FUSED = "of a fused layer, beside those of the layers in it, which are read"
# Norms that BFL's LoRAs for control replace.
_NORMS = (".key_norm.scale", ".query_norm.scale")
_NORM = "the scale of a norm beside a LoRA, which is not read"
# The magnitude of a DoRA as MLX calls it, a name too short to mean it anywhere else.
_MAGNITUDE = ".m"


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one layer: some rows of an adapter's update.

    Args:
      update: how it is computed, without its scale.
      form: of the whole update.
      rows: which rows of it the layer has.
      info: of the layer.
      expert: its number, of several whose updates are stacked.
    """

    update: Update
    form: Form
    rows: Slice
    info: LayerInfo
    expert: int = 0

    def values(
        self, stored: StoredTensors, scale: float | None, rows: Sequence[int] | None = None
    ) -> np.ndarray | LowRank:
        """The layer's update, or some of its rows, times its scale if there is one."""
        (height, width), part = self.form.shape, self.rows
        begin, end = part.begin * height // part.of, part.end * height // part.of
        if rows is not None and self._can_read_rows:
            names = self.update.factors
            up = stored.rows(names["up"], [begin + row for row in rows], self.info.rank or 0)
            whole: np.ndarray | LowRank = LowRank(up, stored.read(names["down"]).reshape(-1, width))
            left = up
        else:
            whole = self.update.values(self.form, stored.read, self.expert)
            left = (whole.up if isinstance(whole, LowRank) else whole)[begin:end]
            left = np.roll(left, len(left) // 2, axis=0) if part.swapped else left
            left = left if rows is None else left[list(rows)]
        left = np.ascontiguousarray(left if scale in (None, 1.0) else left * np.float32(scale))
        return LowRank(left, whole.down) if isinstance(whole, LowRank) else left

    @property
    def _can_read_rows(self) -> bool:
        """Whether rows of the layer are rows of a stored factor."""
        is_moved = self.rows.swapped or self.form.experts or self.update.spelling.is_turned
        return self.update.factors.keys() == {"up", "down"} and not is_moved


def find_updates(
    tensors: Mapping[str, TensorInfo], config: Callable[[], Mapping[str, Any]], where: str
) -> tuple[dict[str, LayerUpdate], dict[str, str]]:
    """Finds the updates of layers in a file.

    Args:
      tensors: its tensors, by name.
      config: returns the adapter's config, {} if there is none; read only where names do not tell.
      where: the file's name, for errors.

    Returns:
      Canonical name of each layer to its update; and name of each tensor of an adapter that is in
      none, to the reason.

    Raises:
      ProbexError: if a factor lacks the other or does not fit it, or a layer has two updates.
    """
    grouped: dict[tuple[str, ...], list[tuple[str, Factor]]] = {}
    for name, found in factors(tensors).items():
        method = found.spelling.method
        key = (found.path, method, found.spelling.dialect, found.role * (method == "delta"))
        grouped.setdefault(key, []).append((name, found))
    known: list[tuple[Update, Form, str]] = []
    unread: dict[str, str] = {}
    for (path, *_), named in grouped.items():
        update = _update(path, named, tensors, where)
        if update is None:
            continue
        try:
            parameter, update = _of_experts(update, tensors, config)
            form = update.form(tensors, are_experts(path))
        except MismatchError as error:
            raise ProbexError(
                f"{where}: {update.spelling.method} {quoted(path)}: {error}"
            ) from None
        except UnknownLayerError as error:
            form = str(error)
        if any(path + end in tensors for end in _DIAGONAL):
            form = _ADALORA
        if isinstance(form, str):
            unread |= dict.fromkeys(update.tensors, form)
            continue
        known.append((update, form, parameter))
        if path + _MAGNITUDE in tensors:
            unread[path + _MAGNITUDE] = "the magnitude of a DoRA, which is not applied"
    of_family = family({update.path: form.shape for update, form, _ in known})
    layers: dict[str, LayerUpdate] = {}
    split = [_parts(*each, tensors, of_family) for each in known]
    for parts in sorted(split, key=len):
        update = next(iter(parts.values())).update
        if len(parts) > 1 and not update.rank and parts.keys() & layers.keys():
            unread |= dict.fromkeys(update.tensors, _FUSED)
            continue
        for layer, part in parts.items():
            if leads_out(layer):
                raise ProbexError(f"{where}: layer {quoted(layer)}: the name leads out of a folder")
            if layer in layers:
                raise ProbexError(f"{where}: two LoRAs are of layer {quoted(layer)}")
            layers[layer] = part
    if layers:
        unread |= {name: _NORM for name in tensors if name.endswith(_NORMS)}
    taken = {name for part in layers.values() for name in part.update.tensors}
    rest = (name for name in tensors if name not in taken and name not in unread)
    return layers, unread | unread_parts(rest)


def _update(
    path: str, named: list[tuple[str, Factor]], tensors: Mapping[str, TensorInfo], where: str
) -> Update | None:
    """The update of some factors; None if it is incomplete."""
    factors: dict[str, str] = {}
    for name, found in named:
        if found.role in factors:
            raise ProbexError(
                f"{where}: {found.spelling.method} {quoted(path)} has two {found.role} factors, "
                f"{quoted(factors[found.role])} and {quoted(name)}; one adapter a file is read"
            )
        factors[found.role] = name
    spelling = named[0][1].spelling
    path = f"{path}.modulation" if "modulation" in factors else path
    alpha = f"{path}.alpha" if f"{path}.alpha" in tensors and spelling.method != "delta" else ""
    update = Update(path, spelling, factors, alpha)
    missing = update.missing()
    if missing and spelling.method != "LoRA":
        return None
    if missing:
        role, name = next(iter(factors.items()))
        raise ProbexError(
            f"{where}: {spelling.method} {quoted(path)} has {quoted(name)}, the {role} factor, "
            f"without the {missing} one; expected both factors"
        )
    return update


def _of_experts(
    update: Update, tensors: Mapping[str, TensorInfo], config: Callable[[], Mapping[str, Any]]
) -> tuple[str, Update]:
    """The parameter that PEFT adapts of a module of stacked experts, and the update with its rank.

    Both stand in the adapter's config alone: the first of two is the inner `base_layer`.
    """
    module, is_peft = update.path.replace(".base_layer", ""), update.spelling.dialect == "peft"
    is_flat = all(len(tensors[name].shape) == 2 for name in update.factors.values())
    if not (is_peft and is_flat and module.endswith(".experts")):
        return "", update
    targets, rank = config().get("target_parameters"), config().get("r")
    named = [t.rpartition(".") for t in targets or () if isinstance(t, str)]
    names = [name for path, _, name in named if f".{module}".endswith(f".{path}")]
    # In the order of transformers' modules: what widens comes first.
    names.sort(key=lambda name: "down" in name)
    outer = update.path.count(".base_layer")
    if outer >= len(names) or not isinstance(rank, int) or rank < 1:
        raise UnknownLayerError(
            "a LoRA of stacked experts, whose config does not say of which parameter"
        )
    return names[-1 - outer], replace(update, rank=rank)


def _parts(
    update: Update,
    form: Form,
    parameter: str,
    tensors: Mapping[str, TensorInfo],
    of_family: str,
) -> dict[str, LayerUpdate]:
    """The layers of one update, by name; one layer where the rows of a fused one do not divide."""
    dtype = tensors[next(iter(update.factors.values()))].dtype
    height, width = form.shape
    end = ".bias" if "bias" in update.factors else ""
    parts = slices(update.path, of_family, form.shape)
    if any(height % rows.of for rows in parts):
        parts = (Slice(update.path),)
    found: dict[str, LayerUpdate] = {}
    for rows in parts:
        part = (rows.end - rows.begin) * height // rows.of
        info = LayerInfo((part, width), dtype, form.kind, form.rank)
        whole = LayerUpdate(update, form, rows, info)
        if form.experts:
            layer = ".".join(filter(None, (rows.layer, parameter)))
            found |= {of_expert(layer, n): replace(whole, expert=n) for n in range(form.experts)}
        else:
            found[rows.layer + end] = whole
    return found
