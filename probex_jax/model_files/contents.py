"""Sorts the tensors of a file into matrices, vectors and others."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.adapters import LayerUpdate, factor, find_updates
from probex_jax.model_files.layers import MATRIX_DTYPES, MAX_EXPERTS, LayerInfo, as_layer, of_expert
from probex_jax.model_files.orientation import axes_of, stacks
from probex_jax.model_files.quantised import Packed, find_quantised
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.stored_tensors import StoredTensors
from probex_jax.model_files.untrusted_text import leads_out, quoted

Config = Callable[[], Mapping[str, Any]]

# What torch.compile, FSDP, PEFT and others put into the names of modules.
_WRAPPERS = re.compile(
    r"(?:\A|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer|"
    r"modules_to_save(?:\.default)?)\.|\Abase_model\.model\."
)
_MAX_STACKED = 100_000  # matrices in the stacks of a file
_STATE = ".quant_state."  # bitsandbytes's, read when a file is opened
_PARALLEL = "module."  # DistributedDataParallel's


@dataclass(frozen=True)
class Weight:
    """How a layer that is no update is read.

    Args:
      tensor: name of its tensor.
      axes: the order of axes that makes it [out, in, k...]; None if it is stored so.
      expert: its number, of several that are stacked in the tensor; None if they are not.
      packed: how a quantised one is computed.
    """

    tensor: str
    axes: tuple[int, ...] | None = None
    expert: int | None = None
    packed: Packed | None = None

    @property
    def is_as_stored(self) -> bool:
        """Whether the tensor, reshaped, is the matrix."""
        return self.axes is None and self.expert is None and self.packed is None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it is read from."""
        return self.packed.tensors if self.packed else (self.tensor,)

    def values(self, stored: StoredTensors, config: Config) -> np.ndarray:
        """Its values, float32 [out, in, k...]."""
        if self.packed is not None:
            values = self._dequantised(self.packed, stored, config)
        elif self.expert is not None:
            shape = stored.infos[self.tensor].shape[1:]
            values = stored.rows(self.tensor, [self.expert], int(np.prod(shape))).reshape(shape)
        else:
            values = stored.read(self.tensor)
        return values if self.axes is None else np.ascontiguousarray(values.transpose(self.axes))

    def _dequantised(self, packed: Packed, stored: StoredTensors, config: Config) -> np.ndarray:
        if self.expert is None:
            return packed.values(stored.raw, config)
        count, one = packed.shape[0], slice(self.expert, self.expert + 1)

        def sliced(name: str) -> np.ndarray:
            values = stored.raw(name)
            return values[one] if values.shape[:1] == (count,) else values

        return replace(packed, shape=(1, *packed.shape[1:])).values(sliced, config)[0]


@dataclass(frozen=True)
class Contents:
    """The layers of a file, and its other tensors.

    Args:
      layers: name of every matrix and update to LayerInfo, sorted by name.
      vectors: the same of every vector.
      weights: of the layers and vectors that are no updates.
      updates: of the others.
      left_out: name of every tensor that is in neither, to the reason.
      unread: the part of `left_out` that belongs to adapters.
      shapes: what tells architectures apart: name of every tensor with one axis or more, without
        wrappers, to its shape; without those of adapters and a quantiser's own.
    """

    layers: Mapping[str, LayerInfo]
    vectors: Mapping[str, LayerInfo]
    weights: Mapping[str, Weight]
    updates: Mapping[str, LayerUpdate]
    left_out: Mapping[str, str]
    unread: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def find_contents(
    stored: StoredTensors,
    metadata: Mapping[str, str],
    config: Config,
    adapter_config: Config,
    where: str,
) -> Contents:
    """Sorts the tensors of a file into matrices, vectors and others.

    Args:
      stored: the tensors.
      metadata: of the header.
      config: returns the model's config, read only where the tensors do not tell.
      adapter_config: the same of an adapter.
      where: the file's name, for errors.

    Raises:
      ProbexError: as `find_updates`; or if a name is a tensor's and an update's.
    """
    tensors = {n: info for n, info in stored.infos.items() if n not in stored.left_out}
    with stored.fetched((name, None) for name in tensors if _STATE in name):
        quantised = find_quantised(tensors, stored.raw, metadata, config)
    packed, parts = dict(quantised.packed), quantised.parts
    taken = {*quantised.left_out, *parts, *(n for p in packed.values() for n in p.tensors)}
    rest = {name: info for name, info in tensors.items() if name not in taken}
    updates, unread = find_updates(rest, adapter_config, where)
    of_updates = {name for update in updates.values() for name in update.update.tensors}
    left_out = {**stored.left_out, **quantised.left_out, **unread}
    for name in [name for name in packed if factor(name)]:
        reason = f"a factor quantised by {packed[name].method}, which is not read"
        left_out |= dict.fromkeys(packed.pop(name).tensors, reason)
    whole = {n: info for n, info in rest.items() if n not in unread and n not in of_updates}
    # The dtype of what is computed from other tensors is that of the first of them.
    dtypes = {name: tensors[p.tensors[0]].dtype for name, p in packed.items()}
    whole |= {name: TensorInfo("F32", p.shape, 0, 0) for name, p in packed.items()}
    names = _unwrapped(whole)
    layers = {layer: update.info for layer, update in updates.items()}
    weights: dict[str, Weight] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, info, weight in _weights(whole, packed):
        if isinstance(info, str):
            left_out[name] = info
        else:
            layer = names[name]
            layer = layer if weight.expert is None else of_expert(layer, weight.expert)
            if layer in updates:
                raise ProbexError(f"{where}: {quoted(layer)} is a tensor and an update as well")
            layers[layer] = replace(info, dtype=dtypes[name]) if name in dtypes else info
            weights[layer] = weight
        shape = whole[name].shape
        if shape and whole[name].dtype in MATRIX_DTYPES:
            shapes[names[name]] = (
                shape
                if weight.axes is None or weight.expert is not None
                else tuple(shape[axis] for axis in weight.axes)
            )
    return Contents(
        {name: info for name, info in sorted(layers.items()) if info.kind != "vector"},
        {name: info for name, info in sorted(layers.items()) if info.kind == "vector"},
        weights,
        updates,
        dict(sorted(left_out.items())),
        dict(sorted(unread.items())),
        shapes,
    )


def _weights(
    tensors: Mapping[str, TensorInfo], packed: Mapping[str, Packed]
) -> Iterable[tuple[str, LayerInfo | str, Weight]]:
    """Each tensor with its layers, or the reason why it is none, and how they are read."""
    infos = {name: as_layer(tensor) for name, tensor in tensors.items()}
    possible = {
        n: t for n, t in tensors.items() if len(t.shape) > 1 and not isinstance(infos[n], str)
    }
    turned, axes = stacks(possible), axes_of(possible)
    stacked = sum(possible[name].shape[0] for name in turned)
    for name, tensor in tensors.items():
        info, order, weight = infos[name], axes.get(name), Weight(name, packed=packed.get(name))
        if name in turned and isinstance(info, LayerInfo) and info.kind != "vector":
            if tensor.shape[0] > MAX_EXPERTS or stacked > _MAX_STACKED:
                yield name, f"a stack of {tensor.shape[0]} matrices, which is not read", weight
                continue
            order = (1, 0) if turned[name] else None
            shape = tensor.shape[1:] if order is None else tensor.shape[:0:-1]
            found = as_layer(replace(tensor, shape=shape))
            for expert in range(tensor.shape[0]):
                yield name, found, replace(weight, axes=order, expert=expert)
        elif isinstance(info, str) or order is None:
            yield name, info, weight
        elif isinstance(order, str):
            # Whatever the order of a vector's axes, the values are in one order.
            yield name, info if info.kind == "vector" else order, weight
        else:
            shape = tuple(tensor.shape[axis] for axis in order)
            yield name, as_layer(replace(tensor, shape=shape)), replace(weight, axes=order)


def _unwrapped(tensors: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers put into them; as they are where two would become one."""
    names = {name: name for name in tensors}
    short = {name: _WRAPPERS.sub("", name) for name in names}
    if all(name.startswith(_PARALLEL) for name in short.values()):
        short = {name: rest.removeprefix(_PARALLEL) for name, rest in short.items()}
    if short == names or len({*short.values()}) < len(names):
        return names
    return names if any(not rest or leads_out(rest) for rest in short.values()) else short
