"""Keras's files: HDF5 of weights, old and new, and `.keras`, an archive with one in it.

By pyfive, which is all Python: in h5py's library, in C, one flipped bit can begin a loop that
nothing ends. What it reads until the weights are known is limited, and so are the groups.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.header import (
    NUMPY_DTYPES,
    Contained,
    Stream,
    dtype_name,
    foreign,
)
from probex_jax.model_files.containers.npz import begin_of, opened_zip
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import json_object

_WEIGHTS = "model.weights.h5"
_MAX_KEY, _MAX_DEPTH, _MAX_GROUPS = 1000, 64, 64
_MIN_BYTES = 16  # of what describes a group or an array
_CONTIGUOUS = 1

# Keys of lists of layers, whose names are those of classes; and of a layer's own variables.
_LISTS = ("layers", "_layer_checkpoint_dependencies")
_VARIABLES = "vars"
# The parts of attention, of which the keys are attributes.
_PARTS = {f"{part}_dense": part for part in ("query", "key", "value")}
_PARTS["output_dense"] = "attention_output"
# Names of variables by the class of their layer, or else by their axes.
_OF_CLASS = (
    (re.compile(r"embedding"), ("embeddings",)),
    (re.compile(r"(?:.*_)?cell"), ("kernel", "recurrent_kernel", "bias")),
    (re.compile(r"separable_conv.*"), ("depthwise_kernel", "pointwise_kernel", "bias")),
    (re.compile(r"depthwise_conv.*"), ("depthwise_kernel", "bias")),
    (re.compile(r"conv.*_transpose"), ("transposed_kernel", "bias")),
    (re.compile(r"conv.*"), ("conv_kernel", "bias")),
)
_OF_VECTORS = {
    1: ("gamma",),
    2: ("gamma", "beta"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
_NUMBERED = re.compile(r"_([0-9]{1,9})\Z")
_WORDS = re.compile(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")


def read_keras(file: Bytes, limits: Limits) -> Contained:
    """The weights in an archive of Keras."""
    archive = opened_zip(file, limits, "archive of Keras")
    if _WEIGHTS not in archive.namelist():
        raise ProbexError(f"{file.name}: no {_WEIGHTS} in it")
    entry = archive.getinfo(_WEIGHTS)
    if entry.compress_type or entry.file_size != entry.compress_size:
        raise ProbexError(f"{file.name}: {_WEIGHTS} in it is compressed, which is not read")
    begin = begin_of(file, entry)
    return _read(file, limits, begin, begin + entry.file_size)


def read_hdf5(file: Bytes, limits: Limits) -> Contained:
    """The weights in an HDF5 file of Keras."""
    return _read(file, limits, 0, file.size)


def _read(file: Bytes, limits: Limits, begin: int, end: int) -> Contained:
    try:
        import pyfive
    except ImportError as error:
        raise ProbexError(
            f"{file.name}: Keras's files need the extra 'keras': pip install probex_jax[keras]"
        ) from error
    stream = Stream(file, limits.header_bytes, begin, end)
    tensors: dict[str, TensorInfo] = {}
    with foreign(file.name, "HDF5 file"):
        root = pyfive.File(stream)
        found = dict(_datasets(root, stream, limits))
        names = _names(root, found, f"{file.name}: model_config", limits.depth)
        for path, dataset in found.items():
            if names[path] in tensors:
                raise ValueError(f"two weights are called {names[path]!r:.200}")
            tensors[names[path]] = _info(path, dataset, begin, end)
    return Contained(tensors, size=stream.read_bytes, nested=True)


def _datasets(root: Any, stream: Stream, limits: Limits) -> Iterator[tuple[str, Any]]:
    """All arrays, by path. Groups may contain themselves: so many are not in what was read."""
    groups, count = [("", root, 0)], 0
    while groups:
        path, group, depth = groups.pop()
        for key in group:
            count += 1
            at_most = min(_MAX_GROUPS + stream.read_bytes // _MIN_BYTES, 4 * limits.tensors)
            if count > at_most or depth > _MAX_DEPTH or len(key) > _MAX_KEY:
                raise ValueError("too many or too deep groups, or names too long")
            item, inner = group.get_lazy_view(key), f"{path}/{key}" if path else key
            if hasattr(item, "shape"):
                yield inner, item
            elif hasattr(item, "attrs"):
                groups.append((inner, item, depth + 1))


def _info(path: str, dataset: Any, begin: int, end: int) -> TensorInfo:
    """The dtype and shape of an array, and its bytes in the file, if they are so stored."""
    shape, dtype = tuple(dataset.shape), dataset.dtype
    is_known = isinstance(dtype, np.dtype) and dtype.isnative and dtype_name(dtype) in NUMPY_DTYPES
    if not is_known:
        return TensorInfo(f"{dtype!s:.40}", shape)
    if dataset.id.layout_class != _CONTIGUOUS:
        return TensorInfo("stored in chunks", shape)
    size, at = math.prod(shape) * dtype.itemsize, begin + dataset.id.data_offset
    if size and at + size > end:
        raise ValueError(f"{path!r:.200} is cut short")
    return TensorInfo(dtype_name(dtype), shape, at * bool(size), (at + size) * bool(size))


def _names(root: Any, datasets: Mapping[str, Any], config: str, depth: int) -> dict[str, str]:
    """The keys of each array, as Keras calls them in memory."""
    by_layer: dict[str, list[tuple[int, str]]] = {}
    for path in datasets:
        layer, _, last = path.rpartition("/")
        if f"/{layer}".endswith(f"/{_VARIABLES}") and last.isdecimal():
            by_layer.setdefault(layer, []).append((int(last[:9]), path))
    if not by_layer:
        return _old_names(root, datasets, config, depth)
    lists: dict[str, dict[str, str]] = {}
    found = {}
    for layer, paths in by_layer.items():
        named, keys = [], layer.split("/")[:-1]
        for number, key in enumerate(keys):
            above = "/".join(keys[:number])
            if number and keys[number - 1] in _LISTS:
                if above not in lists:
                    lists[above] = _members(root[above])
                key = lists[above][key]
            elif key in _LISTS:
                continue
            named.append(_PARTS.get(key, key))
        of_class = _NUMBERED.sub("", keys[-1]) if keys else ""
        shapes = [datasets[path].shape or () for _, path in sorted(paths)]
        variables = _variables(of_class, shapes) if keys[:1] != ["optimizer"] else ()
        for number, (_, path) in enumerate(sorted(paths)):
            last = variables[number] if number < len(variables) else str(number)
            found[path] = "/".join((*named, last))
    return {path: found.get(path, path) for path in datasets}


def _members(group: Any) -> dict[str, str]:
    """The layers of a list: their names, if people gave them, else their class and a number."""
    stated = {}
    for key in group:
        member = group.get_lazy_view(key)
        is_layer = not hasattr(member, "shape") and _VARIABLES in member
        name = _text(member[_VARIABLES].attrs.get("name")) if is_layer else ""
        stated[key] = name if 0 < len(name) <= _MAX_KEY else key
    names = _stable({name: _NUMBERED.sub("", key) for key, name in stated.items()})
    return {key: names[name] for key, name in stated.items()}


def _stable(classes: Mapping[str, str]) -> dict[str, str]:
    """Names of layers, of which those that Keras made of a class are numbered from 0 again.

    It counts the layers of all models of a process.

    Args:
      classes: name of each layer to its class as Keras spells it in names.
    """
    by_class: dict[str, list[tuple[int, str]]] = {}
    for name, of_class in classes.items():
        if _NUMBERED.sub("", name) == of_class:
            number = name.removeprefix(of_class).strip("_") or "0"
            by_class.setdefault(of_class, []).append((int(number), name))
    names = dict(zip(classes, classes, strict=True))
    for of_class, numbered in by_class.items():
        for place, (_, name) in enumerate(sorted(numbered)):
            names[name] = f"{of_class}_{place}" if place else of_class
    return names if len({*names.values()}) == len(names) else dict(zip(names, names, strict=True))


def _text(value: Any) -> str:
    """An attribute, if it is text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _old_names(root: Any, datasets: Mapping[str, Any], where: str, depth: int) -> dict[str, str]:
    """The names of a file of Keras 2, in whose groups the layer's name stands twice."""
    classes: dict[str, str] = {}
    names: dict[str, str] = {}
    if config := _text(root.attrs.get("model_config")):
        data = config.encode(errors="replace")
        _classes(json_object(data, where, depth=depth), classes, names)
    found = {}
    for path in datasets:
        keys = path.removeprefix("model_weights/").removesuffix(":0").split("/")
        last = keys.pop()
        if keys[:1] and keys[0] in keys[1:]:  # behind it may stand the model's name
            keys = keys[keys.index(keys[0], 1) :]
        if last == "kernel" and keys:
            last = _variables(classes.get(keys[-1], ""), [(1, 1)])[0]
        found[path] = "/".join([*(names.get(key, key) for key in keys), last])
    return found


def _classes(config: Any, classes: dict[str, str], names: dict[str, str]) -> None:
    """The classes of all layers of a model and those inside it, and their stable names."""
    inside = config.get("config") if isinstance(config, dict) else None
    layers = inside.get("layers") if isinstance(inside, dict) else None
    here = {}
    for layer in layers if isinstance(layers, list) else ():
        settings = layer.get("config") if isinstance(layer, dict) else None
        name = settings.get("name") if isinstance(settings, dict) else None
        of_class = layer.get("class_name") if isinstance(layer, dict) else None
        if isinstance(name, str) and isinstance(of_class, str) and len(of_class) < _MAX_KEY:
            here[name] = _WORDS.sub("_", of_class).lower()
            _classes(layer, classes, names)
    classes |= here
    names |= _stable(here)


def _variables(layer: str, shapes: list[tuple[int, ...]]) -> tuple[str, ...]:
    """The names of a layer's variables; none where that is not known."""
    for pattern, names in _OF_CLASS:
        if pattern.fullmatch(layer):
            return names
    if all(len(shape) == 1 for shape in shapes):
        return _OF_VECTORS.get(len(shapes), ())
    is_affine = len(shapes) < 3 and len(shapes[0]) > 1
    return ("kernel", "bias") if is_affine else ()
