"""Parses and checks the header of a safetensors file, given as bytes.

A file is 8 bytes (little-endian length of the header), the header (a JSON object, padded with
spaces), and the data. The header maps each tensor's name to its dtype, shape and byte range in the
data; together the tensors must cover the data exactly once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.untrusted_text import is_unicode, json_object, leads_out, quoted

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_AXES = 32
MAX_INT = 2**63 - 1

# JSON values per tensor: its object, two lists and their elements; few have more than five axes.
_VALUES_A_TENSOR = 12
_VALUES_OF_METADATA = 10_000

# Bits per element of every dtype of the format.
ITEM_BITS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("F4",), 4),
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        **dict.fromkeys(("BOOL", "U8", "I8"), 8),
        **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
        **dict.fromkeys(("U32", "I32", "F32"), 32),
        **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    }
)

_FIELDS = dict.fromkeys(("dtype", "shape", "data_offsets"))

# Other formats that people rename to .safetensors, by their first bytes.
_OTHER_FORMATS = (
    (b"version ", "it is a Git LFS pointer: fetch the weights with `git lfs pull`"),
    (b"GGUF", "it is a GGUF file"),
    (b"PK\x03\x04", "it is a zip archive, perhaps a PyTorch pickle"),
    (b"\x80", "it may be a pickle"),
    (b"<", "it looks like a web page"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: dtype name, shape, and its bytes `begin:end` counted from the data's start.

    Where there are none, as in a folder of chunks, `begin` and `end` are 0.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Header:
    """What a header says: free metadata, and the tensors by name."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


def header_size(prefix: bytes, file_size: int, where: str, limits: Limits) -> int:
    """The length of the header in bytes, from the file's first 8 bytes.

    Args:
      prefix: the first 8 bytes (fewer if the file has no more).
      file_size: bytes of the whole file.
      where: the file's name, for errors.
      limits: `header_bytes` counts.

    Raises:
      ProbexError: if the length is more than the limit, than the format allows or than the file
        has.
    """
    if len(prefix) < PREFIX_BYTES:
        raise ProbexError(f"{where}: {file_size} bytes are too few for a safetensors file")
    size = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    hint = next((f"; {hint}" for magic, hint in _OTHER_FORMATS if prefix.startswith(magic)), "")
    limit = min(limits.header_bytes, MAX_HEADER_BYTES)
    if size > MAX_HEADER_BYTES:
        raise ProbexError(
            f"{where}: not a safetensors file, or damaged: the header would be {size} bytes long, "
            f"the limit is {limit}{hint}"
        )
    if size > limit:
        raise ProbexError(f"{where}: the header is {size} bytes long, the limit is {limit}{hint}")
    missing = PREFIX_BYTES + size - file_size
    if missing > 0:
        raise ProbexError(
            f"{where}: truncated in the header: {missing} bytes are missing of {size}{hint}"
        )
    return size


def parse_header(header: bytes, data_size: int, where: str, limits: Limits) -> Header:
    """Parses and checks a header.

    Args:
      header: the bytes after the 8-byte length.
      data_size: bytes in the file after the header.
      where: the file's name, for errors.
      limits: all but `header_bytes` count.

    Raises:
      ProbexError: if anything in the header is not as the format demands.
    """
    if not header.startswith(b"{"):
        raise ProbexError(f"{where}: header does not begin with '{{'; not a safetensors file")
    values = _VALUES_A_TENSOR * limits.tensors + _VALUES_OF_METADATA
    entries = json_object(header, f"{where}: header", depth=limits.depth, values=values)
    metadata = _metadata(entries.pop("__metadata__", None), where)
    characters = sum(len(key) + len(text) for key, text in metadata.items())
    if characters > limits.metadata_characters:
        raise ProbexError(
            f"{where}: {characters} characters of metadata, the limit is "
            f"{limits.metadata_characters}"
        )
    if len(entries) > limits.tensors:
        raise ProbexError(f"{where}: {len(entries)} tensors, the limit is {limits.tensors}")
    if not entries:
        raise ProbexError(f"{where}: no tensors in the header")
    # Entries are freed one by one: each takes several times the memory of its TensorInfo.
    tensors = {name: _tensor(name, entries.pop(name), where) for name in [*entries]}
    _check_coverage(tensors, data_size, where)
    return Header(MappingProxyType(metadata), MappingProxyType(tensors))


def _metadata(value: Any, where: str) -> dict[str, str]:
    if value is None:  # the reference reader accepts null, too
        return {}
    if not isinstance(value, dict):
        raise ProbexError(f"{where}: __metadata__ is {quoted(value)}, expected an object")
    for key, text in value.items():
        if not (isinstance(text, str) and is_unicode(key) and is_unicode(text)):
            raise ProbexError(
                f"{where}: __metadata__ {quoted(key)} is {quoted(text)}, expected Unicode text"
            )
    return value


def _tensor(name: str, entry: Any, where: str) -> TensorInfo:
    if not is_unicode(name):
        raise _refusal(where, name, ": the name is not valid Unicode")
    if leads_out(name):
        raise _refusal(where, name, ": the name leads out of a folder")
    if not isinstance(entry, dict):
        raise _refusal(where, name, f" is {quoted(entry)}, expected an object")
    if entry.keys() != _FIELDS.keys():
        for field in (*_FIELDS, *entry):
            if field not in entry:
                raise _refusal(where, name, f": {field} is missing")
            if field not in _FIELDS:
                expected = tuple(_FIELDS)
                raise _refusal(where, name, f": unknown field {quoted(field)}, expected {expected}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise _refusal(where, name, f": unknown dtype {quoted(dtype)}, expected {[*ITEM_BITS]}")
    if not _are_sizes(shape, MAX_AXES):
        raise _refusal(
            where,
            name,
            f": shape is {quoted(shape)}, expected at most {MAX_AXES} integers >= 0",
        )
    if not (_are_sizes(offsets, 2) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise _refusal(
            where,
            name,
            f": data_offsets are {quoted(offsets)}, expected [begin, end] with 0 <= begin <= end",
        )
    begin, end = offsets
    bits = math.prod(shape) * ITEM_BITS[dtype]
    if bits != 8 * (end - begin):
        raise _refusal(
            where,
            name,
            f": {dtype} of shape {quoted(shape)} takes {bits} bits, "
            f"data_offsets give {8 * (end - begin)}",
        )
    if math.prod([size or 1 for size in shape]) > MAX_INT // 8:
        # It has no elements, but NumPy cannot make such an array.
        raise _refusal(where, name, f": shape is {quoted(shape)}, which is too large")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _refusal(where: str, name: str, reason: str) -> ProbexError:
    return ProbexError(f"{where}: tensor {quoted(name)}{reason}")


def _are_sizes(value: Any, limit: int) -> bool:
    """Whether this is a short list of non-negative integers; booleans do not count."""
    return (
        isinstance(value, list)
        and len(value) <= limit
        and all(type(size) is int and 0 <= size <= MAX_INT for size in value)
    )


def _check_coverage(tensors: Mapping[str, TensorInfo], data_size: int, where: str) -> None:
    """Checks that every byte of the data belongs to exactly one tensor."""
    covered = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != covered:
            problem = "overlaps the one before" if info.begin < covered else "leaves a hole"
            raise ProbexError(
                f"{where}: tensor {quoted(name)} {problem}: it begins at byte {info.begin}, "
                f"expected {covered}"
            )
        covered = info.end
    if covered > data_size:
        raise ProbexError(
            f"{where}: truncated: {covered - data_size} bytes are missing of {covered} of data"
        )
    if covered < data_size:
        raise ProbexError(f"{where}: {data_size - covered} bytes at the end belong to no tensor")
