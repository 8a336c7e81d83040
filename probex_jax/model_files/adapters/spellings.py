"""How the tensors of adapters are called: a row of the table for each spelling.

A tensor's name is a module's path and an ending that tells the method and the tensor's role in it.
"""

import re
from collections.abc import Collection
from typing import NamedTuple


class Spelling(NamedTuple):
    """How one tool calls the tensors of one method.

    Args:
      ending: the pattern of names, with the groups `path` and `role`.
      method: "LoRA", "LoHa", "LoKr" or "delta".
      dialect: where scales stand: "diffusers", "peft", "kohya", "lycoris" or "mlx" (`scales`).
      is_turned: whether factors are stored [in, R] and [R, out].
      roles: the names of roles, where they are not those of `updates`.
    """

    ending: re.Pattern[str]
    method: str
    dialect: str
    is_turned: bool = False
    roles: tuple[tuple[str, str], ...] = ()


class Factor(NamedTuple):
    """One tensor of an adapter: its module's path, its role, and how it is spelt."""

    path: str
    role: str
    spelling: Spelling


_ADAPTER = r"(?:\.(?!weight\b|bias\b)[^.]+)?"  # PEFT writes the adapter's name there
_AB = (("A", "down"), ("B", "up"), ("a", "down"), ("b", "up"))
_DELTAS = (
    *(("diff", "weight"), ("w_norm", "weight"), ("diff_b", "bias"), ("b_norm", "bias")),
    ("diff_m", "modulation"),
)
_SWAPPED = (("A", "up"), ("B", "down"), ("a", "up"), ("b", "down"))


def _row(ending: str, *row: object) -> Spelling:
    path = "" if "(?P<path>" in ending else "(?P<path>.+)"
    return Spelling(re.compile(path + ending, re.DOTALL), *row)  # type: ignore[arg-type]


_SPELLINGS = (
    _row(r"\.(?:lora|lora_linear_layer)\.(?P<role>up|down)\.weight", "LoRA", "diffusers"),
    # Attention processors of early diffusers, and of XLabs.
    _row(r"(?<=_lora)\.(?P<role>up|down)\.weight", "LoRA", "diffusers"),
    _row(r"(?<=_lora[12])\.(?P<role>up|down)\.weight", "LoRA", "diffusers"),
    _row(rf"\.lora_(?P<role>[AB]){_ADAPTER}(?:\.weight)?", "LoRA", "peft", False, _AB),
    _row(rf"\.lora_embedding_(?P<role>[AB]){_ADAPTER}", "LoRA", "peft", True, _SWAPPED),
    _row(r"\.lora(?P<role>[AB])\.weight", "LoRA", "kohya", False, _AB),
    _row(r"\.lora_(?P<role>up|down|mid)\.weight", "LoRA", "kohya"),
    # MLX: [in, R] and [R, out]; of embeddings [entries, R] and [R, out], as they are read.
    _row(r"(?P<path>.*(?:embed_tokens|wte))\.lora_(?P<role>[ab])", "LoRA", "mlx", False, _SWAPPED),
    _row(r"\.lora_(?P<role>[ab])", "LoRA", "mlx", True, _AB),
    # cloneofsimo/lora numbers the layers.
    _row(r"(?P<path>\w+:[0-9]+):(?P<role>up|down)", "LoRA", "kohya"),
    _row(rf"\.hada_(?P<role>w[12]_[ab]|t[12]){_ADAPTER}", "LoHa", "lycoris"),
    _row(rf"\.lokr_(?P<role>w[12](?:_[ab])?|t2){_ADAPTER}", "LoKr", "lycoris"),
    # `w_norm` and `b_norm` are LyCORIS's deltas of norms, `diff_m` is that of Wan's modulation.
    _row(r"\.(?P<role>diff|diff_[bm]|w_norm|b_norm)", "delta", "lycoris", False, _DELTAS),
)
# What one of the endings has in it: most names of a model are no adapter's.
_MAYBE = re.compile(r"lora|hada_|lokr_|\.diff(?:_[bm])?\Z|\.[wb]_norm\Z|:(?:up|down)\Z")
# A tensor that only Stability's LoRAs for control have, which call factors so.
_CONTROL = "lora_controlnet"
_OF_CONTROL = _row(r"\.(?P<role>up|down)", "LoRA", "diffusers")


def factors(names: Collection[str]) -> dict[str, Factor]:
    """The tensors of a file that are parts of adapters, by their names."""
    found = {name: part for name in names if (part := factor(name))}
    if _CONTROL in names:
        for name in names:
            if name not in found and (match := _OF_CONTROL.ending.fullmatch(name)):
                found[name] = Factor(match["path"], match["role"], _OF_CONTROL)
    return found


def factor(name: str) -> Factor | None:
    """The adapter's part that a tensor is, by its name alone; None for another tensor.

    Example:
      >>> factor("lora_unet_conv_in.lora_up.weight")[:2], factor("a.weight")
      (('lora_unet_conv_in', 'up'), None)
    """
    if not _MAYBE.search(name):
        return None
    for spelling in _SPELLINGS:
        if found := spelling.ending.fullmatch(name):
            role = dict(spelling.roles).get(found["role"], found["role"])
            return Factor(found["path"], role, spelling)
    return None
