"""The files of one model with their headers, which must be consistent."""

from collections.abc import Sequence
from contextlib import ExitStack

from probex_jax.errors import ProbexError
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import INDEX, Bytes, Location
from probex_jax.model_files.safetensors_header import (
    PREFIX_BYTES,
    Header,
    header_size,
    parse_header,
)
from probex_jax.model_files.untrusted_text import quoted


class Shard:
    """One open safetensors file with its header."""

    def __init__(self, name: str, file: Bytes, limits: Limits):
        self.name, self.bytes = name, file
        try:
            where, size = self.where, self.bytes.size
            prefix = self.bytes.read(0, min(PREFIX_BYTES, size)).tobytes()
            self.data_begin = PREFIX_BYTES + header_size(prefix, size, where, limits)
            header = self.bytes.read(PREFIX_BYTES, self.data_begin).tobytes()
            self.header: Header = parse_header(header, size - self.data_begin, where, limits)
        except BaseException:
            self.bytes.close()
            raise

    @property
    def where(self) -> str:
        """The file, for messages."""
        return self.bytes.name


def open_shards(location: Location, limits: Limits) -> tuple[Shard, ...]:
    """Opens all files of a model or none."""
    shards: list[Shard] = []
    with ExitStack() as on_error:
        for name in location.names:
            shards.append(Shard(name, location.folder.open(name), limits))
            on_error.callback(shards[-1].bytes.close)
            _check_sums(shards, limits)
        on_error.pop_all()
    return tuple(shards)


def shard_of_tensors(location: Location, shards: Sequence[Shard]) -> dict[str, Shard]:
    """The file of each tensor; the index of shards, if any, must agree."""
    found: dict[str, Shard] = {}
    for shard in shards:
        for name in shard.header.tensors:
            if name in found:
                raise ProbexError(
                    f"{shard.where}: tensor {quoted(name)} is also in {found[name].name}"
                )
            found[name] = shard
    if location.weight_map is None:
        return found
    index = location.folder.path_of(INDEX)
    for name in sorted(location.weight_map.keys() | found.keys()):
        indexed = location.weight_map.get(name)
        actual = found[name].name if name in found else None
        if indexed != actual:
            raise ProbexError(
                f"{index}: tensor {quoted(name)} should be in {indexed or 'no shard'}, it is in "
                f"{actual or 'none of them'}"
            )
    return found


def merged_metadata(shards: Sequence[Shard]) -> dict[str, str]:
    """The free metadata of all files; a ProbexError if they disagree."""
    merged: dict[str, str] = {}
    for shard in shards:
        for key, value in shard.header.metadata.items():
            if merged.setdefault(key, value) != value:
                raise ProbexError(
                    f"{shard.where}: metadata {quoted(key)} is {quoted(value)}, another shard has "
                    f"{quoted(merged[key])}"
                )
    return merged


def _check_sums(shards: Sequence[Shard], limits: Limits) -> None:
    """Checks the limits for all shards together."""
    headers = [shard.header for shard in shards]
    sums = {
        "bytes of headers": (sum(shard.data_begin for shard in shards), limits.header_bytes),
        "tensors": (sum(len(header.tensors) for header in headers), limits.tensors),
    }
    for what, (count, limit) in sums.items():
        if len(shards) > 1 and count > limit:
            raise ProbexError(
                f"{shards[-1].where}: with the shards before it {count} {what}, the limit is "
                f"{limit}"
            )
