"""GGUF files, with the types, block sizes and names of the `gguf` package.

Its own reader maps the file into memory, which a file that is cut short meanwhile would end the
process by, and reads every token of the vocabulary; neither does it read from servers. So the
header is read here.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial, reduce
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.header import Contained, Cursor
from probex_jax.model_files.flax_names import Form
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Bytes
from probex_jax.model_files.safetensors_header import MAX_INT, TensorInfo
from probex_jax.model_files.untrusted_text import quoted

Turn = Callable[[np.ndarray], np.ndarray]
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_WINDOW = 2**20
_MAX_AXES, _MAX_NAME, _MAX_LISTED, _MAX_KEYS = 4, 1000, 64, 100_000
_MAX_EXPERTS = 10_000
_STRING, _ARRAY = 8, 9
# The formats of the other types of values, by their numbers.
_SCALARS = {kind: f"<{code}" for kind, code in enumerate("BbHhIif?")} | {
    10: "<Q",
    11: "<q",
    12: "<d",
}

# How transformers begins the names of an architecture's tensors. Only architectures whose values
# are known to be those of transformers, but for what `_forms` undoes.
_LLAMA = ("model.", "lm_head")
_BEGINNINGS = {
    **dict.fromkeys(
        (
            "llama",
            "qwen2",
            "qwen3",
            "qwen2moe",
            "qwen3moe",
            "gemma",
            "gemma2",
            "gemma3",
            "phi3",
            "granite",
            "olmo2",
            "stablelm",
            "starcoder2",
            "cohere2",
            "nemotron",
            "smollm3",
            "arcee",
            "command-r",
            "olmo",
            "olmoe",
            "phi2",
            "seed_oss",
        ),
        _LLAMA,
    ),
    "gpt2": ("transformer.", "lm_head"),
    "bert": ("embeddings.", "encoder.layer."),
}
_NORMED = ("qwen3", "qwen3moe", "gemma3", "olmo2", "olmoe", "command-r")
# Where several of transformers' names of a tensor begin so, the one of an architecture.
_NAMED = {
    "attn_qkv": {"phi3": "self_attn.qkv_proj"},
    "attn_output": {"phi2": "self_attn.dense"},
    "output_norm": {"phi2": "final_layernorm"},
    "ffn_up": {"phi2": "mlp.fc1", "phi3": "mlp.gate_up_proj", "starcoder2": "mlp.c_fc"}
    | dict.fromkeys(("gemma2", "gemma3", "olmo2"), "mlp.up_proj"),
    "ffn_down": {"phi2": "mlp.fc2", "starcoder2": "mlp.c_proj"},
    "ffn_gate_inp": dict.fromkeys(("qwen2moe", "qwen3moe", "olmoe"), "mlp.gate"),
    "attn_q_norm": dict.fromkeys(_NORMED, "self_attn.q_norm"),
    "attn_k_norm": dict.fromkeys(_NORMED, "self_attn.k_norm"),
}
# llama.cpp interleaves the rows of query and key, adds 1 to the weights of norms, and turns GPT-2's
# Conv1D.
_INTERLEAVED = ("llama", "granite", "smollm3", "arcee", "olmo")
_ADDED = ("gemma", "gemma2", "gemma3", "nemotron")
_HEADS = {"attn_q": ["head_count"], "attn_k": ["head_count_kv", "head_count"]}
_CONV1D = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
# The factors of an adapter, which are those of `x.weight.lora_a`.
_FACTORS, _ALPHA = (".lora_a", ".lora_b"), "adapter.lora.alpha"
# Which llama.cpp computes from the config.
_POSITIONS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_BLOCK = re.compile(r"blk\.(\d{1,4})\.")
# Of Mixtral, experts have other names than those that are stacked.
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def read_gguf(file: Bytes, limits: Limits) -> Contained:
    """The tensors of a GGUF file, named as transformers does where the architecture is known."""
    return _Header(file, limits).contained()


def dequantised(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values of blocks, [..., bytes] of uint8."""
    package = _package("dequantised values")
    with np.errstate(all="ignore"):
        return package.quants.dequantize(raw, package.GGMLQuantizationType[dtype])


class _Header:
    def __init__(self, file: Bytes, limits: Limits):
        self._file, self._limits = file, limits
        self._cursor = Cursor(file, limits.header_bytes, _WINDOW)
        self._package = _package(file.name)

    def contained(self) -> Contained:
        if self._cursor.take(4) != _MAGIC:
            raise ProbexError(f"{self._file.name}: no GGUF file, which begins with 'GGUF'")
        version, count, keys = self._number("<I"), self._number("<Q"), self._number("<Q")
        if version not in _VERSIONS:
            raise ProbexError(f"{self._file.name}: version {version} of GGUF, expected 2 or 3")
        for what, number, limit in (
            ("tensors", count, self._limits.tensors),
            ("keys", keys, _MAX_KEYS),
        ):
            if number > limit:
                raise ProbexError(f"{self._file.name}: {number} {what}, the limit is {limit}")
        values = {}
        for _ in range(keys):
            key = self._text(_MAX_NAME)
            values[key] = self._value(self._number("<I"), self._limits.depth)
        stored = [self._tensor() for _ in range(count)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _WINDOW:
            raise ProbexError(f"{self._file.name}: general.alignment is {quoted(alignment)}")
        begin = -(-self._cursor.at // alignment) * alignment
        tensors = dict(stored)
        if len(tensors) < count:
            raise ProbexError(f"{self._file.name}: two tensors of one name")
        for name, info in stored:
            if missing := max(0, begin + info.end - self._file.size):
                raise self._refusal(name, f"truncated: {missing} bytes are missing")
        tensors = dict(_apart(tensors, str(values.get("general.architecture"))))
        return Contained(
            tensors,
            dict(_metadata(values)),
            begin,
            self._cursor.taken,
            forms=dict(_forms(tensors, values)),
        )

    def _tensor(self) -> tuple[str, TensorInfo]:
        name, axes = self._text(_MAX_NAME), self._number("<I")
        if axes > _MAX_AXES:
            raise self._refusal(name, f"{axes} axes, expected at most {_MAX_AXES}")
        shape = tuple(self._number("<Q") for _ in range(axes))[::-1]
        number, begin = self._number("<I"), self._number("<Q")
        try:
            kind = self._package.GGMLQuantizationType(number)
        except ValueError:
            return name, TensorInfo(f"type {number} of GGML", shape)
        block, size = self._package.GGML_QUANT_SIZES[kind]
        if (shape or (1,))[-1] % block or math.prod(shape) > MAX_INT // 8:
            raise self._refusal(name, f"{kind.name} of shape {quoted(shape)}")
        return name, TensorInfo(kind.name, shape, begin, begin + math.prod(shape) // block * size)

    def _value(self, kind: int, depth: int) -> Any:
        """A value; None of a long list."""
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text(self._limits.header_bytes)
        if kind != _ARRAY or depth == 0:
            raise ProbexError(f"{self._file.name}: a value of type {kind}, or nested too deeply")
        inner, count = self._number("<I"), self._number("<Q")
        if count <= _MAX_LISTED:
            return [self._value(inner, depth - 1) for _ in range(count)]
        if inner in _SCALARS:
            self._cursor.skip(count * struct.calcsize(_SCALARS[inner]))
            return None
        for _ in range(count):  # which the bytes of the file end
            if inner == _STRING:
                self._cursor.take(self._number("<Q"))
            else:
                self._value(inner, depth - 1)
        return None

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._cursor.take(struct.calcsize(form)))[0]

    def _text(self, limit: int) -> str:
        size = self._number("<Q")
        if size > limit:
            raise ProbexError(f"{self._file.name}: a text of {size} bytes, the limit is {limit}")
        return self._cursor.take(size).decode("utf-8", "replace")

    def _refusal(self, name: str, problem: str) -> ProbexError:
        return ProbexError(f"{self._file.name}: tensor {quoted(name)}: {problem}")


def _package(where: str) -> Any:
    try:
        import gguf
    except ImportError as error:
        needed = "GGUF needs the extra 'gguf': pip install probex_jax[gguf]"
        raise ProbexError(f"{where}: {needed}") from error
    return gguf


def _metadata(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Metadata as text; without the vocabulary."""
    for key, value in values.items():
        if value is not None and not key.startswith("tokenizer."):
            yield key, value if isinstance(value, str) else json.dumps(value)


def _apart(
    tensors: Mapping[str, TensorInfo], architecture: str
) -> Iterator[tuple[str, TensorInfo]]:
    """The tensors, with one for each expert of those that are stacked, as on the hub."""
    for name, info in tensors.items():
        block, _, module = name.removesuffix(".weight").rpartition(".")
        is_stacked = module in _EXPERTS and len(info.shape) == 3
        if not (is_stacked and 0 < info.shape[0] <= _MAX_EXPERTS):
            yield name, info
            continue
        router, projection = _transformers(architecture, f"{block}.ffn_gate_inp"), _EXPERTS[module]
        last = f"{_MIXTRAL[projection] if architecture == 'llama' else projection}.weight"
        path = f"{router.removesuffix('.gate')}.experts" if router else f"{block}.{module}"
        size = (info.end - info.begin) // info.shape[0]
        for number in range(info.shape[0]):
            begin = info.begin + number * size
            apart = TensorInfo(info.dtype, info.shape[1:], begin, begin + size)
            yield f"{path}.{number}.{last}", apart


def _forms(
    tensors: Mapping[str, TensorInfo], values: Mapping[str, Any]
) -> Iterator[tuple[str, Form]]:
    """What the tensors are in transformers."""
    architecture = str(values.get("general.architecture"))
    for name, info in tensors.items():
        if name in _POSITIONS:
            yield name, Form(name, info.shape, None, "a table of positions, no weight")
            continue
        whole, _, factor = name.rpartition(".lora_") if name[-7:] in _FACTORS else (name, "", "")
        path, _, last = whole.rpartition(".")
        module, path = path.rpartition(".")[2], _transformers(architecture, path) or path
        shape = info.shape
        turns: list[Turn] = []
        if architecture in _INTERLEAVED and module in _HEADS and factor != "a" and shape:
            heads = [values.get(f"{architecture}.attention.{key}") for key in _HEADS[module]]
            count = next((head for head in heads if head), 0)
            if type(count) is int and count > 0 and shape[0] % (2 * count) == 0:
                turns.append(partial(_halved, count))
        elif architecture in _ADDED and module.endswith("norm") and last == "weight":
            turns.append(_less_one)
        elif architecture == "gpt2" and module in _CONV1D and last == "weight" and not factor:
            turns.append(np.transpose)
            shape = shape[::-1]
        # ComfyUI's files have convolutions as matrices.
        original = values.get(f"comfy.gguf.orig_shape.{name}")
        sizes = original if isinstance(original, list) else []
        if (
            sizes
            and all(type(size) is int for size in sizes)
            and math.prod(sizes) == math.prod(shape)
        ):
            shape = tuple(sizes)
            turns.append(partial(np.reshape, shape=shape))
        if factor == "b" and len(shape) == 2 and isinstance(alpha := values.get(_ALPHA), float):
            turns.append(partial(np.multiply, np.float32(alpha / max(1, shape[1]))))
        ending = {"a": ".lora.down.weight", "b": ".lora.up.weight"}.get(factor, f".{last}")
        yield name, Form(f"{path}{ending}" if path else whole, shape, _one_by_one(turns))


def _one_by_one(turns: Sequence[Turn]) -> Turn | None:
    return partial(reduce, lambda values, turn: turn(values), turns) if turns else None


def _halved(heads: int, values: np.ndarray) -> np.ndarray:
    """Rows of each head whose two halves were interleaved, in their own order."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _less_one(values: np.ndarray) -> np.ndarray:
    return values - values.dtype.type(1)


def _transformers(architecture: str, path: str) -> str:
    """The name of a module in transformers; "" if unknown."""
    if architecture not in _BEGINNINGS:
        return ""
    block = _BLOCK.match(path)
    found = _paths(architecture).get(_BLOCK.sub("blk.0.", path), "")
    return found.replace(".0.", f".{int(block[1])}.", 1) if block else found


@cache
def _paths(architecture: str) -> dict[str, str]:
    """Names of the modules of an architecture, with one block: GGUF's to transformers'."""
    package = _package(architecture)
    kind = {name: kind for kind, name in package.MODEL_ARCH_NAMES.items()}.get(architecture)
    if kind is None:
        return {}
    found: dict[str, str] = {}
    for theirs, (_, path) in package.get_tensor_name_map(kind, 1).mapping.items():
        named = _NAMED.get(path.rpartition(".")[2], {}).get(architecture, "")
        if theirs.startswith(_BEGINNINGS[architecture]) and theirs.endswith(named):
            found.setdefault(path, theirs)
    return found
