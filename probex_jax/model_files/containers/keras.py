"""Keras's files: HDF5 of weights, old and new, and `.keras`, an archive with one in it."""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.header import (
    NUMPY_DTYPES,
    Contained,
    Stream,
    as_native,
    check_unpacked,
    dtype_name,
    foreign,
)
from probex_jax.model_files.containers.npz import begin_of, opened_zip
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import MAX_INT, TensorInfo
from probex_jax.model_files.untrusted_text import json_object, quoted

_WEIGHTS = "model.weights.h5"
_MAX_KEY, _MAX_DEPTH = 1000, 64
_FILTERS = (1, 2, 3, 32000)  # gzip, shuffle, checksums, LZF: those that h5py always has

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
_NUMBERED = re.compile(r"(.*?)(?:_([0-9]{1,9}))?")
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
        import h5py
    except ImportError as error:
        raise ProbexError(
            f"{file.name}: Keras's files need the extra 'keras': pip install h5py"
        ) from error
    stream = Stream(file, limits.header_bytes, begin, end)
    tensors, readers = {}, {}
    with foreign(file.name, "HDF5 file"):
        found = dict(_datasets(h5py.File(stream, "r"), limits, h5py))
        names = _names(found, limits)
        for path, dataset in found.items():
            name = names[path]
            if name in tensors:
                raise ProbexError(f"{file.name}: two weights are called {quoted(name)}")
            tensors[name] = info = _info(path, dataset, begin, end)
            if not info.end:
                readers[name] = partial(_values, file.name, path, dataset)
    stream.opened = True
    return Contained(tensors, size=stream.read_bytes, readers=readers, nested=True)


def _datasets(root: Any, limits: Limits, h5py: Any) -> Iterator[tuple[str, Any]]:
    """All arrays, by path; nothing that lies in another file, and no group twice."""
    groups, known, count = [("", root, 0)], {h5py.h5o.get_info(root.id).addr}, 0
    while groups:
        path, group, depth = groups.pop()
        for key in group:
            count += 1
            inner = f"{path}/{key}" if path else key
            if count > 4 * limits.tensors or depth > _MAX_DEPTH or len(key) > _MAX_KEY:
                raise ValueError("too many or too deep groups, or names too long")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{inner!r:.200} is a link")
            item = group[key]
            if isinstance(item, h5py.Dataset):
                yield inner, item
            elif isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address in known:
                    raise ValueError(f"{inner!r:.200} is there twice")
                known.add(address)
                groups.append((inner, item, depth + 1))


def _info(path: str, dataset: Any, begin: int, end: int) -> TensorInfo:
    """The dtype and shape of an array, and its bytes in the file, if they are so stored."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{path!r:.200} lies in other files")
    shape, dtype = dataset.shape, dataset.dtype
    if shape is None or dtype.kind not in "biufcV" or dtype.names or dtype.hasobject:
        return TensorInfo("no numbers", shape or ())
    if math.prod(shape) > MAX_INT // 8:
        raise ValueError(f"{path!r:.200} is of shape {shape}")
    plist, size = dataset.id.get_create_plist(), math.prod(shape) * dtype.itemsize
    stored, at = dataset.id.get_storage_size(), dataset.id.get_offset()
    chunk = math.prod(dataset.chunks or (1,)) * dtype.itemsize
    check_unpacked(dataset.file.filename, path, max(size, chunk), stored)
    if any(plist.get_filter(i)[0] not in _FILTERS for i in range(plist.get_nfilters())):
        raise ValueError(f"{path!r:.200} is packed in another way than by gzip or LZF")
    name = "BF16" if dataset.attrs.get("dtype") == "bfloat16" else dtype_name(dtype)
    if at is None or not dtype.isnative or name not in NUMPY_DTYPES or not size:
        return TensorInfo(name, shape)
    if stored != size or begin + at + size > end:
        raise ValueError(f"{path!r:.200} is cut short")
    return TensorInfo(name, shape, begin + at, begin + at + size)


def _values(where: str, path: str, dataset: Any) -> np.ndarray:
    with foreign(f"{where}: {quoted(path)}", "array of HDF5"):
        values = np.asarray(dataset[()])
        if dataset.attrs.get("dtype") == "bfloat16":
            return values.astype(NUMPY_DTYPES["BF16"])
        return np.ascontiguousarray(as_native(values)).reshape(dataset.shape)


def _names(datasets: Mapping[str, Any], limits: Limits) -> dict[str, str]:
    """The keys of each array, as Keras calls them in memory."""
    by_layer: dict[str, list[tuple[int, str]]] = {}
    for path in datasets:
        layer, _, last = path.rpartition("/")
        if f"/{layer}".endswith(f"/{_VARIABLES}") and last.isdecimal():
            by_layer.setdefault(layer, []).append((int(last[:9]), path))
    if not by_layer:
        return _old_names(datasets, limits)
    root, lists, found = next(iter(datasets.values())).file, {}, {}
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
        of_class = _NUMBERED.fullmatch(keys[-1])[1] if keys else ""
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
        name = group[key][_VARIABLES].attrs.get("name") if _VARIABLES in group[key] else key
        stated[key] = name if isinstance(name, str) and 0 < len(name) <= _MAX_KEY else key
    names = _stable({name: _NUMBERED.fullmatch(key)[1] for key, name in stated.items()})
    return {key: names[name] for key, name in stated.items()}


def _stable(classes: Mapping[str, str]) -> dict[str, str]:
    """Names of layers, of which those that Keras made of a class are numbered from 0 again.

    It counts the layers of all models of a process.

    Args:
      classes: name of each layer to its class as Keras spells it in names.
    """
    by_class: dict[str, list[tuple[int, str]]] = {}
    for name, of_class in classes.items():
        begin, number = _NUMBERED.fullmatch(name).groups()
        if begin == of_class:
            by_class.setdefault(of_class, []).append((int(number or 0), name))
    names = dict(zip(classes, classes, strict=True))
    for of_class, numbered in by_class.items():
        for place, (_, name) in enumerate(sorted(numbered)):
            names[name] = f"{of_class}_{place}" if place else of_class
    return names if len({*names.values()}) == len(names) else dict(zip(names, names, strict=True))


def _old_names(datasets: Mapping[str, Any], limits: Limits) -> dict[str, str]:
    """The names of a file of Keras 2, in whose groups the layer's name stands twice."""
    root = next(iter(datasets.values())).file if datasets else None
    classes: dict[str, str] = {}
    names: dict[str, str] = {}
    config = root.attrs.get("model_config") if root else None
    if isinstance(config, str | bytes):
        data = config.encode() if isinstance(config, str) else config
        _classes(json_object(data, "model_config", depth=limits.depth), classes, names)
    found = {}
    for path in datasets:
        keys = path.removeprefix("model_weights/").removesuffix(":0").split("/")
        if len(keys) > 2 and keys[1].startswith("tf_"):  # transformers' class of the model
            keys = keys[2:]
        elif len(keys) > 2 and keys[0] == keys[1]:
            keys = keys[1:]
        last = keys.pop()
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
