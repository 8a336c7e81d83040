"""Sorts the tensors of a file into matrices, vectors and others."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from probex_jax.errors import ProbexError
from probex_jax.model_files.adapters import unread_parts
from probex_jax.model_files.layers import MATRIX_DTYPES, LayerInfo, as_layer
from probex_jax.model_files.lora import Factors, as_lora, pair_factors
from probex_jax.model_files.orientation import axes_of
from probex_jax.model_files.quantised import Config, Packed, Raw, find_quantised
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import leads_out, quoted

# What torch.compile and DistributedDataParallel put before the names of modules.
_COMPILED = re.compile(r"(?:\A|(?<=\.))_orig_mod\.")
_PARALLEL = "module."


class Source(NamedTuple):
    """How a layer other than a LoRA is read.

    Args:
      tensor: name of its tensor.
      axes: the order of axes that makes it [out, in, k...]; None if it is stored so.
      packed: how it is computed, if it is quantised.
    """

    tensor: str
    axes: tuple[int, ...] | None = None
    packed: Packed | None = None

    @property
    def is_as_stored(self) -> bool:
        """Whether the tensor, reshaped, is the matrix."""
        return self.axes is None and self.packed is None


@dataclass(frozen=True)
class Contents:
    """The layers of a file, and its other tensors.

    Args:
      layers: name of every matrix and LoRA to LayerInfo, sorted by name.
      vectors: the same of every vector.
      sources: of the layers that are not LoRAs, and of the vectors.
      factors: of the LoRAs.
      left_out: name of every tensor that is in neither, to the reason.
      unread: the part of `left_out` that belongs to adapters.
      names: name of every tensor, to the same without wrappers' prefixes.
      quantiser: names of a quantiser's own tensors.
      packed: the quantised weights that are read, by name with wrappers' prefixes.
    """

    layers: Mapping[str, LayerInfo]
    vectors: Mapping[str, LayerInfo]
    sources: Mapping[str, Source]
    factors: Mapping[str, Factors]
    left_out: Mapping[str, str]
    unread: Mapping[str, str]
    names: Mapping[str, str]
    quantiser: frozenset[str]
    packed: Mapping[str, Packed]


def find_contents(
    tensors: Mapping[str, TensorInfo],
    where: str,
    raw: Raw,
    metadata: Mapping[str, str],
    config: Config,
) -> Contents:
    """Sorts the tensors of a file into matrices, vectors and others.

    Args:
      tensors: all tensors, by name.
      where: the file's name, for errors.
      raw: reads a tensor in its stored dtype and shape.
      metadata: the header's free text.
      config: reads the model's config.json.

    Raises:
      ProbexError: as `pair_factors` and `as_lora`; or if a name is a tensor's and a LoRA's.

    Example:
      >>> weight, factor = TensorInfo("F32", (4, 4), 0, 64), TensorInfo("F32", (4, 1), 64, 80)
      >>> tensors = {"_orig_mod.a.weight": weight, "b.lora_a": factor}
      >>> found = find_contents(tensors, "a file", raw=..., metadata={}, config=dict)
      >>> [*found.layers], dict(found.left_out)
      (['a.weight'], {'b.lora_a': "part of an adapter ('….lora_a'), which is not read"})
    """
    quantised = find_quantised(tensors, raw, metadata, config)
    packed = quantised.packed
    taken = {*quantised.left_out, *(name for one in packed.values() for name in one.tensors)}
    rest = {name: info for name, info in tensors.items() if name not in taken}
    for layer, one in packed.items():
        stored = tensors[one.tensors[0]]
        dtype = stored.dtype if stored.dtype in MATRIX_DTYPES else "F32"
        rest[layer] = replace(stored, dtype=dtype, shape=one.shape)
    names = _unwrapped({**tensors, **rest})
    infos = {**tensors, **rest}
    factors, unread = pair_factors(rest, where)
    layers: dict[str, LayerInfo] = {}
    left_out = dict(quantised.left_out)
    for layer, pair in factors.items():
        found = as_lora(layer, infos[pair.up], infos[pair.down], where)
        if packed.keys() & {pair.up, pair.down}:
            found = "a LoRA of quantised factors, which is not read"
        for name in filter(None, (pair.up, pair.down, pair.alpha)):
            rest.pop(name, None)
            if isinstance(found, str):
                unread[name] = found
        if isinstance(found, LayerInfo):
            layers[layer] = found
    factors = {layer: pair for layer, pair in factors.items() if layer in layers}
    unread |= unread_parts(name for name in rest if name not in unread)
    left_out |= unread
    vectors: dict[str, LayerInfo] = {}
    sources: dict[str, Source] = {}
    whole = {name: info for name, info in rest.items() if name not in unread}
    for name, info, source in _sources(whole, packed):
        layer = names[name]
        if isinstance(info, str):
            left_out[name] = info
        elif layer in layers:
            raise ProbexError(f"{where}: {quoted(layer)} is a tensor and a LoRA as well")
        else:
            (vectors if info.kind == "vector" else layers)[layer] = info
            sources[layer] = source
    return Contents(
        dict(sorted(layers.items())),
        dict(sorted(vectors.items())),
        sources,
        factors,
        dict(sorted(left_out.items())),
        dict(sorted(unread.items())),
        names,
        quantised.parts,
        packed,
    )


def _sources(
    tensors: Mapping[str, TensorInfo], packed: Mapping[str, Packed]
) -> Iterable[tuple[str, LayerInfo | str, Source]]:
    """Each tensor with its layer, or the reason why it is none, and how it is read."""
    infos = {name: as_layer(tensor) for name, tensor in tensors.items()}
    axes = axes_of(
        {n: t for n, t in tensors.items() if len(t.shape) > 1 and not isinstance(infos[n], str)}
    )
    for name, tensor in tensors.items():
        order, info = axes.get(name), infos[name]
        if isinstance(order, str) and isinstance(info, LayerInfo) and info.kind == "vector":
            order = None  # whatever the order of its axes, the values are in one order
        if order is None or isinstance(info, str):
            yield name, info, Source(name, None, packed.get(name))
        elif isinstance(order, str):
            yield name, order, Source(name)
        else:
            shape = tuple(tensor.shape[axis] for axis in order)
            yield (
                name,
                as_layer(replace(tensor, shape=shape)),
                Source(name, order, packed.get(name)),
            )


def _unwrapped(tensors: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers put before them; as they are where two would become one."""
    names = {name: name for name in tensors}
    short = {n: _COMPILED.sub("", n) if "_orig_mod." in n else n for n in names}
    if all(name.startswith(_PARALLEL) for name in short.values()):
        short = {name: rest.removeprefix(_PARALLEL) for name, rest in short.items()}
    if short == names or len({*short.values()}) < len(names):
        return names
    return names if any(not rest or leads_out(rest) for rest in short.values()) else short
