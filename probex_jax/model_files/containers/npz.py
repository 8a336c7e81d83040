"""NumPy's `.npz`: a zip archive of arrays."""

import math
import zipfile
from functools import partial

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.header import (
    Contained,
    Stream,
    as_native,
    check_unpacked,
    dtype_name,
    foreign,
)
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

_END = ".npy"
_LOCAL_HEADER = 30
_MAX_HEADER = 10_000
_PICKLE = ("data.pkl", ".data/", "archive/")


def opened_zip(file: Bytes, limits: Limits, what: str) -> zipfile.ZipFile:
    """The archive; a ProbexError if it holds a pickle of PyTorch, or too many files."""
    stream = Stream(file, limits.header_bytes)
    with foreign(file.name, what):
        archive = zipfile.ZipFile(stream)
    names = archive.namelist()
    if len(names) > limits.tensors:
        raise ProbexError(f"{file.name}: {len(names)} files in it, the limit is {limits.tensors}")
    if len({*names}) < len(names):
        raise ProbexError(f"{file.name}: two files of one name in it")
    if any(name.endswith("data.pkl") for name in names):
        raise ProbexError(
            f"{file.name}: an archive of PyTorch, whose pickle can run code when it is loaded, so "
            "it is not read; convert it where you trust it"
        )
    stream.opened = True
    return archive


def begin_of(file: Bytes, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a file in an archive begin."""
    at = entry.header_offset + _LOCAL_HEADER
    if at > file.size:
        raise ProbexError(f"{file.name}: truncated in {quoted(entry.filename)}")
    lengths = file.read(at - 4, at).view("<u2")
    begin = at + int(lengths.sum())
    if begin + entry.compress_size > file.size:
        raise ProbexError(f"{file.name}: truncated in {quoted(entry.filename)}")
    return begin


def read_npz(file: Bytes, limits: Limits) -> Contained:
    """The arrays of an archive; those of Python's objects are not read."""
    archive = opened_zip(file, limits, "archive of NumPy")
    tensors, readers = {}, {}
    for entry in archive.infolist():
        if not entry.filename.endswith(_END):
            continue
        name, where = entry.filename.removesuffix(_END), f"{file.name}: {quoted(entry.filename)}"
        with foreign(where, "array of NumPy"), archive.open(entry) as member:
            version = np.lib.format.read_magic(member)
            parse = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                parse = np.lib.format.read_array_header_2_0
            shape, in_columns, dtype = parse(member, max_header_size=_MAX_HEADER)
            begin = member.tell()
        if dtype.hasobject:
            tensors[name] = TensorInfo("objects of Python", shape)
            continue
        size = math.prod(shape) * dtype.itemsize
        if begin + size != entry.file_size:
            raise ProbexError(
                f"{where}: {dtype} of shape {quoted(shape)} in {entry.file_size - begin} bytes"
            )
        check_unpacked(file.name, name, entry.file_size, entry.compress_size)
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size:
            at = begin_of(file, entry) + begin
            tensors[name] = TensorInfo(dtype_name(dtype), shape, at, at + size)
            if not in_columns and dtype.isnative and dtype.kind != "V":
                continue
        else:
            tensors[name] = TensorInfo(dtype_name(dtype), shape)
        readers[name] = partial(_read, archive, entry, where)
    return Contained(tensors, readers=readers, nested=True)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> np.ndarray:
    with foreign(where, "array of NumPy"), archive.open(entry) as member:
        values = np.lib.format.read_array(member, allow_pickle=False, max_header_size=_MAX_HEADER)
    return np.ascontiguousarray(as_native(values))
