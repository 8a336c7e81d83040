"""Names and axes of JAX's parameters (Flax, Haiku, Keras, TensorFlow), as PyTorch has them.

Flax keeps a kernel as [in, out] or [k..., in, out], the query, key and value of attention as
[in, heads, dim], its output as [heads, dim, out]; PyTorch all of them as [out, in, k...]. A
model and its twin in PyTorch then have the same names, shapes and numbers.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import eq

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
# Haiku's and AlphaFold's names of kernels, and of their biases.
_HAIKU = {"w": "b", "weights": "bias"}
_OF_ANY_ORDER = re.compile(r"w|weights|linear|.*_(?:w|weights|einsum)")
_OF_VECTORS = ("bias", "scale", "gamma", "beta", *_STATISTICS, "moving_mean", "moving_variance")
_OF_WINDOWS = re.compile(r"conv|embed|patch|stem", re.IGNORECASE)
_OTHER_ORDER = re.compile(r"conv.*transpose|depthwise", re.IGNORECASE)
_MAX_WINDOW = 64
_SCALED = "quantised with scales of an axis that is not known"
_UNKNOWN = "a kernel whose order of axes is not known"
_UNKNOWN_BIAS = "the bias of a kernel whose order of axes is not known"
_STACKED = "stacked with those of other layers, which is not read"
Path = tuple[str, ...]
Shape = tuple[int, ...]
Modules = Mapping[Path, Mapping[str, Shape]]


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
    stated = _paths(tensors)
    depths = {name: _depth(path) for name, path in stated.items()}
    has_collection = any(depths.values())
    is_tree = nested or has_collection
    paths = _without_haiku(stated, _modules(stated, tensors)) if is_tree else stated
    leaves = {path[-1] for path in paths.values()}
    is_flax = has_collection or not ("weight" in leaves or leaves.isdisjoint(_FLAX))
    if not (is_flax or nested):
        return {name: Form(name, info.shape) for name, info in tensors.items()}
    siblings = _modules(paths, tensors)
    stacked = _stacked(siblings, {paths[name]: depth for name, depth in depths.items()})
    of_jax = is_flax or "weight" not in leaves
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
        known = siblings[path[:-1]]
        is_inner = of_jax and len(path) > depth + 1
        reason = ""
        if path[-1] == "kernel" and math.prod(known.get("kernel_scale", ())) != 1:
            reason = _SCALED
        elif of_jax and path in stacked:
            reason = _STACKED
        elif is_inner and _OF_ANY_ORDER.fullmatch(path[-1]) and not _is_vector(info.shape):
            reason = "" if _leads_with_outputs(known) else _UNKNOWN
        statistics = "batch_stats" in path[:depth] or not known.keys().isdisjoint(("scale", "bias"))
        new = _canonical(path[depth:], known, statistics)
        found[name] = (
            Form(name, info.shape, None, reason)
            if reason
            else _turned(name, new, path, info.shape, known)
        )
    count = Counter(form.name for form in found.values())
    return {
        name: form if count[form.name] == 1 else replace(form, name=name)
        for name, form in found.items()
    }


def _paths(names: Iterable[str]) -> dict[str, Path]:
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


def _without_haiku(paths: Mapping[str, Path], modules: Modules) -> Mapping[str, Path]:
    """The paths, with Flax's names of kernels and biases if the file is Haiku's."""
    leads = {_leads_with_outputs(leaves) for leaves in modules.values()}
    if (
        leads.isdisjoint((False,))
        or True in leads
        or any("weight" in each for each in modules.values())
    ):
        return paths
    found = {}
    for name, (*module, leaf) in paths.items():
        known = modules[(*module,)]
        if "kernel" not in known and (leaf in _HAIKU or (leaf == "b" and "w" in known)):
            leaf = "kernel" if leaf in _HAIKU else "bias"
        elif leaf == "offset" and "scale" in known:
            leaf = "bias"
        found[name] = (*module, leaf)
    return found


def _leads_with_outputs(leaves: Mapping[str, Shape]) -> bool | None:
    """Whether a module's `w` is [out, in], as its bias tells, or [in, out]; None if unknown."""
    for leaf, bias in _HAIKU.items():
        if len(shape := leaves.get(leaf, ())) > 1 and len(leaves.get(bias, ())) == 1:
            outputs = leaves[bias][0]
            return None if outputs not in (shape[0], shape[-1]) else outputs != shape[-1]
    return None


def _modules(paths: Mapping[str, Path], tensors: Mapping[str, TensorInfo]) -> Modules:
    """The leaves of each module, with their shapes."""
    found: dict[Path, dict[str, Shape]] = {}
    for name, path in paths.items():
        found.setdefault(path[:-1], {})[path[-1]] = tensors[name].shape
    return found


def _stacked(modules: Modules, depths: Mapping[Path, int]) -> set[Path]:
    """The tensors that hold one layer after the other on an axis, as `nn.scan` writes them.

    What has one axis in a layer then has two: biases, and the weights of norms.
    """
    sizes: dict[tuple[str, int, bool], set[int]] = {}
    axes: dict[Path, tuple[str, Shape, bool]] = {}
    for path, depth in depths.items():
        known, leaf = modules[path[:-1]], path[-1]
        shape, kernel, bias = known[leaf], known.get("kernel", ()), known.get("bias", ())
        is_of_heads = kernel and bias == kernel[1:] and _HEADS_OUT.fullmatch("".join(path[-2:-1]))
        if len(bias) == 1 or is_of_heads:
            continue
        is_kernel = (leaf == "kernel" or _OF_ANY_ORDER.fullmatch(leaf) is not None) and len(
            shape
        ) > 2
        may_be = len(kernel) != 2 and (not kernel or any(map(eq, shape[:2], kernel)))
        is_vector = leaf in _OF_VECTORS and not _is_vector(shape) and may_be
        if is_kernel or is_vector:
            axes[path] = path[depth], shape, is_kernel
            for axis in (0, 1):
                sizes.setdefault((path[depth], axis, is_kernel), set()).add(shape[axis])
    return {
        path
        for path, (first, shape, is_kernel) in axes.items()
        if any(shape[axis] in sizes.get((first, axis, not is_kernel), ()) for axis in (0, 1))
    }


def _depth(path: Path) -> int:
    """How many keys lead to the parameters; 0 if no key is their collection."""
    depth = 0
    for number, key in enumerate(path[:-1], 1):
        if key == "target" and "params" in path[: number - 1]:
            break  # a module
        if key in _COLLECTIONS:
            depth = number
        elif key not in _AROUND:
            break
    return depth


def _canonical(path: Path, siblings: Collection[str], statistics: bool) -> str:
    *module, leaf = path
    names = _LEAVES | _STATISTICS if statistics else _LEAVES
    new = names.get(leaf, leaf)
    taken = new in siblings or (leaf == "scale" and "kernel" in siblings)
    return ".".join([*module, leaf if taken else new])


def _turned(
    name: str, canonical: str, path: Path, shape: Shape, siblings: Mapping[str, Shape]
) -> Form:
    canonical = name if leads_out(canonical) else canonical
    module, leaf = path[-2] if len(path) > 1 else "", path[-1]
    kernel, bias = siblings.get("kernel", ()), siblings.get("bias", ())
    if leaf == "bias" and len(shape) == 2 and _HEADS_OUT.fullmatch(module):
        return Form(canonical, (math.prod(shape),), partial(np.reshape, shape=(-1,)))
    if leaf == "bias" and len(kernel) > 2 and not _is_vector(shape):
        return Form(name, shape, None, _UNKNOWN_BIAS)
    if leaf != "kernel" and not leaf.endswith("_kernel"):
        return Form(canonical, shape)
    module = {"conv_kernel": "conv", "pointwise_kernel": "conv"}.get(leaf, module)
    is_known = leaf in _LEAVES and not (leaf == "recurrent_kernel" and len(shape) != 2)
    names = " ".join((*path[-3:-2], module, *siblings))
    is_window = bias == shape[-1:] or _OF_WINDOWS.search(names) is not None
    order = _order(module, shape, is_window) if is_known else None
    if order is None:
        return Form(canonical, shape) if _is_vector(shape) else Form(name, shape, None, _UNKNOWN)
    merged = tuple(math.prod(shape[axis] for axis in axes) for axes in order)
    return Form(canonical, merged, partial(_reordered, order, merged))


def _is_vector(shape: Shape) -> bool:
    return sum(size > 1 for size in shape) < 2


def _order(module: str, shape: Shape, is_window: bool) -> tuple[tuple[int, ...], ...] | None:
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
    if not (is_window and len(shape) in (4, 5) and max(shape[:-2]) <= _MAX_WINDOW):
        return None
    if _HEADS_OUT.fullmatch(module) or _HEADS_IN.fullmatch(module):
        return None
    *window, inputs, outputs = range(len(shape))
    return ((outputs,), (inputs,), *((axis,) for axis in window))


def _reordered(
    order: tuple[tuple[int, ...], ...], shape: tuple[int, ...], values: np.ndarray
) -> np.ndarray:
    return values.transpose([axis for axes in order for axis in axes]).reshape(shape)
