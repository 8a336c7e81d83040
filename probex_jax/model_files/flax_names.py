"""Names and axes of JAX's parameters (Flax, Keras, TensorFlow), as PyTorch has them.

Flax keeps a kernel as [in, out] or [k..., in, out], the query, key and value of attention as
[in, heads, dim], its output as [heads, dim, out]; PyTorch all of them as [out, in, k...]. A
model and its twin in PyTorch then have the same names, shapes and numbers.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import leads_out

_KEYS = re.compile(r"[^/.|\[\]'\"]+")
# A path that is written with underscores: `params_Dense_0_kernel`.
_UNDERSCORED = re.compile(r"(.*\d)_(kernel|embedding|scale|bias)\Z")
# The parameters' own collections, and what may stand before them.
_COLLECTIONS = ("params", "batch_stats", "target", "model_weights")
_AROUND = (*_COLLECTIONS, "default", "state", "train_state", "model", "optimizer", "variables")
# What is trained beside a model that has no collection.
_BESIDE = ("opt", "opt_state", "optimizer", "optimizer_state", "optimizer_weights", "step")
_LEAVES = {
    "kernel": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "scale": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "kernel_scale": "weight_scale",
    "conv_kernel": "weight",
    "recurrent_kernel": "recurrent_weight",
    "pointwise_kernel": "pointwise_weight",
}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
# Behind the names of NNX's parameters.
_VALUES = ("value", "raw_value")
_FLAX = ("kernel", "recurrent_kernel", "depthwise_kernel")
_HEADS_OUT = re.compile(r"query|key|value|[qkv](?:_proj)?")
_HEADS_IN = re.compile(r"out|o|(?:out|o)_proj|attention_output")
_OTHER_ORDER = re.compile(r"conv.*transpose|depthwise", re.IGNORECASE)
_MAX_WINDOW = 64
_SCALED = "quantised with scales of an axis that is not known"
_UNKNOWN = "a kernel whose order of axes is not known"


@dataclass(frozen=True)
class Form:
    """What a stored tensor is in PyTorch.

    Args:
      name: its name there.
      shape: its shape there.
      turn: makes it of the stored array; None if it is stored so.
      reason: why it is no part of the model; "" if it is.
    """

    name: str
    shape: tuple[int, ...]
    turn: Callable[[np.ndarray], np.ndarray] | None = None
    reason: str = ""


def torch_forms(tensors: Mapping[str, TensorInfo], nested: bool = False) -> dict[str, Form]:
    """What the tensors of a file are in PyTorch; as they are if the file is not JAX's.

    Args:
      tensors: all tensors, by name: keys with a separator, such as `params/Dense_0/kernel`.
      nested: whether names are known to be paths in a tree.

    Returns:
      Name to form.

    Example:
      >>> kernels = {"params/fc/kernel": TensorInfo("F32", (4, 8)),
      ...            "opt/fc/kernel": TensorInfo("F32", (4, 8))}
      >>> for form in torch_forms(kernels).values():
      ...     print(form.name, form.shape, form.reason)
      fc.weight (8, 4)
      opt/fc/kernel (4, 8) in 'opt', beside the parameters
    """
    text = "\n".join(tensors)
    if not (nested or any(word in text for word in (*_COLLECTIONS, "kernel"))):
        return {name: Form(name, info.shape) for name, info in tensors.items()}
    paths = _paths(tensors)
    leaves = {path[-1] for path in paths.values()}
    depths = {name: _depth(path) for name, path in paths.items()}
    has_collection = any(depths.values())
    is_flax = has_collection or not ("weight" in leaves or leaves.isdisjoint(_FLAX))
    if not (is_flax or nested):
        return {name: Form(name, info.shape) for name, info in tensors.items()}
    siblings: dict[tuple[str, ...], set[str]] = {}
    for path in paths.values():
        siblings.setdefault(path[:-1], set()).add(path[-1])
    scales = {paths[name]: math.prod(info.shape) for name, info in tensors.items()}
    first = {path[0] for path in paths.values()}
    beside = first & {*_BESIDE} if first - {*_BESIDE} else set()
    found = {}
    for name, info in tensors.items():
        path, depth = paths[name], depths[name]
        if not depth and (has_collection or path[0] in beside):
            found[name] = Form(name, info.shape, None, f"in {path[0]!r:.50}, beside the parameters")
            continue
        if not depth and beside and first - beside == {"model"} and len(path) > 1:
            depth = 1
        if path[-1] == "kernel" and scales.get((*path[:-1], "kernel_scale"), 1) != 1:
            found[name] = Form(name, info.shape, None, _SCALED)
            continue
        known = siblings[path[:-1]]
        statistics = "batch_stats" in path[:depth] or bool(known & {"scale", "bias"})
        found[name] = _turned(name, _canonical(path[depth:], known, statistics), path, info.shape)
    count = Counter(form.name for form in found.values())
    return {
        name: form if count[form.name] == 1 else replace(form, name=name)
        for name, form in found.items()
    }


def _paths(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The keys of each name, at least one."""
    # transformers writes numbers for TensorFlow as `layer_._0`.
    plain = {name: name.removesuffix(":0").replace("_._", "/") for name in names}
    paths = {name: _KEYS.findall(path) or [name] for name, path in plain.items()}
    children = Counter(tuple(keys[:-1]) for keys in paths.values())
    for keys in paths.values():
        if len(keys) > 1 and keys[-1] in _VALUES and children[tuple(keys[:-1])] == 1:
            keys.pop()
        if found := _UNDERSCORED.fullmatch(keys[-1]):
            keys[-1:] = found.groups()
    return {name: tuple(keys) for name, keys in paths.items()}


def _depth(path: tuple[str, ...]) -> int:
    """How many keys lead to the parameters; 0 if no key is their collection."""
    depth = 0
    for number, key in enumerate(path[:-1], 1):
        if key in _COLLECTIONS:
            depth = number
        elif key not in _AROUND:
            break
    return depth


def _canonical(path: tuple[str, ...], siblings: set[str], statistics: bool) -> str:
    *module, leaf = path
    names = _LEAVES | _STATISTICS if statistics else _LEAVES
    new = names.get(leaf, leaf)
    taken = new in siblings or (leaf == "scale" and "kernel" in siblings)
    return ".".join([*module, leaf if taken else new])


def _turned(name: str, canonical: str, path: tuple[str, ...], shape: tuple[int, ...]) -> Form:
    canonical = name if leads_out(canonical) else canonical
    module, leaf = path[-2] if len(path) > 1 else "", path[-1]
    is_vector = sum(size > 1 for size in shape) < 2
    if leaf == "bias" and len(shape) == 2 and _HEADS_OUT.fullmatch(module):
        return Form(canonical, (math.prod(shape),), partial(np.reshape, shape=(-1,)))
    if leaf != "kernel" and not leaf.endswith("_kernel"):
        return Form(canonical, shape)
    module = {"conv_kernel": "conv", "pointwise_kernel": "conv"}.get(leaf, module)
    is_known = leaf in _LEAVES and not (leaf == "recurrent_kernel" and len(shape) != 2)
    order = _order(module, shape) if is_known else None
    if order is None:
        return Form(canonical, shape) if is_vector else Form(name, shape, None, _UNKNOWN)
    merged = tuple(math.prod(shape[axis] for axis in axes) for axes in order)
    return Form(canonical, merged, partial(_reordered, order, merged))


def _order(module: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """The axes of a kernel that each axis in PyTorch is made of; None if unknown."""
    if _OTHER_ORDER.search(module):
        return None
    if len(shape) == 2:
        return ((1,), (0,))
    if len(shape) == 3:
        if "conv" in module.lower():
            return ((2,), (1,), (0,))
        if _HEADS_OUT.fullmatch(module):
            return ((1, 2), (0,))
        return ((2,), (0, 1)) if _HEADS_IN.fullmatch(module) else None
    is_window = len(shape) in (4, 5) and max(shape[:-2]) <= _MAX_WINDOW
    if not is_window or _HEADS_OUT.fullmatch(module) or _HEADS_IN.fullmatch(module):
        return None
    *window, inputs, outputs = range(len(shape))
    return ((outputs,), (inputs,), *((axis,) for axis in window))


def _reordered(
    order: tuple[tuple[int, ...], ...], shape: tuple[int, ...], values: np.ndarray
) -> np.ndarray:
    return values.transpose([axis for axes in order for axis in axes]).reshape(shape)
