"""Limits on the memory and time that reading one model's headers may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How large the headers of a model may be; more is a ProbexError.

    Each limit is for all shards of a model together. A model that you trust may need more:
    `open_model(path, limits=Limits(tensors=1_000_000))`.

    Args:
      header_bytes: size of all headers; the format itself allows 100,000,000 per file.
      tensors: number of tensors.
      depth: nesting of headers, indexes and configs.
      metadata_characters: characters in all keys and texts of the free metadata.

    Example:
      >>> Limits().header_bytes
      25000000

    References:
      docs/formats.md, "Limits".
    """

    header_bytes: int = 25_000_000
    tensors: int = 250_000
    depth: int = 64
    metadata_characters: int = 8_000_000
