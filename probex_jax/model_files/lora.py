"""LoRA updates: which tensors are the two factors of one layer.

The dialect read here is that of diffusers: `<layer>.lora.down.weight` [R, in] and
`<layer>.lora.up.weight` [out, R]; the update is up @ down.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from probex_jax.errors import ProbexError
from probex_jax.model_files.layers import MATRIX_DTYPES, LayerInfo
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

_UP, _DOWN = ".lora.up.weight", ".lora.down.weight"


@dataclass(frozen=True)
class Factors:
    """The names of the two tensors of one LoRA layer."""

    up: str
    down: str


def pair_factors(tensors: Mapping[str, TensorInfo], where: str) -> dict[str, Factors]:
    """Finds the LoRA layers of a file.

    Args:
      tensors: all tensors, by name.
      where: the file's name, for errors.

    Returns:
      The layer's name (what stands before `.lora.`) to the names of its factors.

    Raises:
      ProbexError: if a factor is without the other.
    """
    pairs = {}
    for name in tensors:
        for suffix, other in ((_UP, _DOWN), (_DOWN, _UP)):
            if name.endswith(suffix):
                layer = name.removesuffix(suffix)
                if layer + other not in tensors:
                    raise ProbexError(
                        f"{where}: LoRA {quoted(layer)} has {suffix[6:]} without {other[6:]}; "
                        "expected both factors"
                    )
                pairs[layer] = Factors(up=layer + _UP, down=layer + _DOWN)
    return pairs


def as_lora(layer: str, up: TensorInfo, down: TensorInfo, where: str) -> LayerInfo | str:
    """The layer that two factors make, or the reason why they are not read.

    Raises:
      ProbexError: if the ranks of the factors disagree.
    """
    for tensor in (up, down):
        if tensor.dtype not in MATRIX_DTYPES:
            return f"a LoRA of {tensor.dtype}, which is not read yet"
        if len(tensor.shape) != 2:
            return f"a {len(tensor.shape)}-dimensional LoRA, which is not read yet"
        if 0 in tensor.shape:
            return "empty"
    (rows, rank), (rank_down, columns) = up.shape, down.shape
    if rank != rank_down:
        raise ProbexError(
            f"{where}: LoRA {quoted(layer)}: its factors disagree in rank: up is {rows}x{rank}, "
            f"down is {rank_down}x{columns}"
        )
    return LayerInfo((rows, columns), up.dtype, "lora", rank)
