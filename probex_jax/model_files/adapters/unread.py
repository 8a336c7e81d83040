"""Tensors of adapters that are not read, recognised by their names.

An adapter's tensors are not layers of a model: a layer's update is computed from them. `lora` pairs
the factors it can read; all other adapter tensors are recognised here, so that they are reported
and never taken for layers.
"""

import re
from collections.abc import Iterable

from probex_jax.model_files.untrusted_text import quoted

_DORA = "DoRA"
# How a method's parameters begin in PEFT and LyCORIS, in any part of a name.
_PREFIXES = {
    "dora_scale": _DORA,
    "lora_magnitude_vector": _DORA,
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "ia3_": "(IA)³",
    "vera_": "VeRA",
    "randlora_": "RandLoRA",
    "vblora_": "VB-LoRA",
    "lora_E": "AdaLoRA",
    "fourierft_": "FourierFT",
    "waveft_": "WaveFT",
    "c3a_kernel": "C3A",
    "hra_u": "HRA",
    "hra_theta": "HRA",
    "shira_weight": "SHiRA",
    "bone_block": "MiSS",
    "miss_block": "MiSS",
    "road_theta": "RoAd",
    "road_alpha": "RoAd",
    "gralora_": "GraLoRA",
    "delora_": "DeLoRA",
    "xlora_": "X-LoRA",
    "trainable_tokens_": "trainable tokens",
    "adaption_prompt": "adaption prompt",
    "adaption_gate": "adaption prompt",
    "prompt_embeddings": "prompt tuning",
    "bundle_emb": "an embedding beside a LoRA",
}
# The last part of a name.
_LAST = {
    "magnitude": _DORA,
    "on_input": "(IA)³",
    "ranknum": "AdaLoRA",
    "set_weight": "weights that take the place of a layer's",
}
# A word at the beginning or after an underscore: `qkv_lora1`, `lora_a`, `loraA`, `lycoris_…`.
_LORA = re.compile(r"(?:\A|_)(?:[lL][oO][rR][aA]s?|lycoris)(?![a-z])")
# Layers of RWKV-7 itself.
_RWKV = re.compile(r"_lora\.lora\.[0-9]\.(?:weight|bias)\Z")
# LyCORIS's GLoRA. Layers have such names, too, but not all four side by side.
_GLORA = tuple(f".{side}{number}.weight" for side in "ab" for number in (1, 2))
_IA3 = ".on_input"
_ALPHA = "alpha"


def unread_parts(names: Iterable[str]) -> dict[str, str]:
    """Finds the tensors that are parts of adapters, by their names alone.

    Args:
      names: of the file's tensors, without those of LoRAs that are read.

    Returns:
      Name to the reason why it is in no layer: how it is spelt, and the method if known.

    Example:
      >>> unread_parts(["a.oft_blocks", "a.weight"])
      {'a.oft_blocks': "part of an adapter ('….oft_blocks', OFT), which is not read"}
    """
    names = list(names)
    methods: dict[str, str | None] = {}  # by part of a name: a file has few distinct ones
    found: dict[str, str] = {}
    alphas = []
    # Told by the ends of names alone, whatever script prefixed them.
    of_glora: dict[str, list[str]] = {}
    scaled = {name.removesuffix(_IA3) for name in names if name.endswith(_IA3)}
    for name in names:
        path, _, last = name.rpartition(".")
        if last in _LAST:
            found[name] = _reason(last, _LAST[last])
        elif last == "weight" and path in scaled:
            found[name] = _reason(last, _LAST["on_input"])
        elif name.endswith(_GLORA):
            of_glora.setdefault(path.rpartition(".")[0], []).append(name)
    for of_layer in of_glora.values():
        if len(of_layer) == len(_GLORA):
            found |= {name: _reason(".".join(name.split(".")[-2:]), "GLoRA") for name in of_layer}
    for name in names:
        if name in found or ("_lora.lora." in name and _RWKV.search(name)):
            continue
        parts = re.split("[.:/]", name) if ":" in name or "/" in name else name.split(".")
        for place, part in enumerate(parts):
            if part not in methods:
                methods[part] = _method(part)
            if (method := methods[part]) is not None:
                # A method's own spelling counts before that of a script that prefixes all names.
                known = next((m for p in parts if (m := methods.get(p) or _method(p))), method)
                spelling = ".".join(parts[place or min(1, len(parts) - 1) :])
                found[name] = _reason(spelling, known)
                break
        else:
            if parts[-1] == _ALPHA:
                alphas.append(name)
    # An alpha beside tensors that are not read scales these.
    paths = {name.rpartition(".")[0] for name in found} if alphas else set()
    paths |= {path.rpartition(".")[0] for path in paths}
    return found | {name: _reason(_ALPHA) for name in alphas if name.rpartition(".")[0] in paths}


def _method(part: str) -> str | None:
    """The method that a part of a name belongs to; "" for an unknown one, None for none."""
    for prefix, method in _PREFIXES.items():
        if part.startswith(prefix):
            return method
    return "" if _LORA.search(part) else None


def _reason(spelling: str, method: str = "") -> str:
    spelt = quoted(f"….{spelling}")
    if method == _DORA:  # whose two factors are read
        return f"the magnitude of a DoRA ({spelt}), which is not applied"
    return f"part of an adapter ({spelt}{method and ', '}{method}), which is not read"
