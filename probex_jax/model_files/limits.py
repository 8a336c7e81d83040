"""What one model's files may ask of memory and time before a byte of weights is read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How large the description of a model may be; more is a ProbexError.

    Each holds for one model, all its shards together. A model that you trust may need more:
    `open_model(path, limits=Limits(tensors=1_000_000))`.

    Args:
      header_bytes: of all headers; the format itself allows 100,000,000 a file.
      tensors: how many there may be.
      depth: how deep headers, indexes and configs may be nested.
      metadata_characters: of all keys and texts of the free metadata.

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
