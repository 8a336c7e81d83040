"""Safetensors files."""

from probex_jax.model_files.containers.header import Contained
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import PREFIX_BYTES, header_size, parse_header


def read_safetensors(file: Bytes, limits: Limits) -> Contained:
    """The tensors of a safetensors file."""
    prefix = file.read(0, min(PREFIX_BYTES, file.size)).tobytes()
    begin = PREFIX_BYTES + header_size(prefix, file.size, file.name, limits)
    text = file.read(PREFIX_BYTES, begin).tobytes()
    header = parse_header(text, file.size - begin, file.name, limits)
    return Contained(header.tensors, header.metadata, begin, begin)
