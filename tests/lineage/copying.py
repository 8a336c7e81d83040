"""A small model, the forms in which its weights may come, and what is near it but no copy."""

import json

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.model_files.containers import gguf_files

HIDDEN, KEYS, INNER, VOCABULARY, BLOCKS = 32, 16, 96, 64, 2


def weights(seed=0):
    """A tiny decoder's weights under transformers' names, spread as trained ones are."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return (0.05 * rng.standard_t(5, shape)).astype("f4")

    found = {
        "model.embed_tokens.weight": drawn(VOCABULARY, HIDDEN),
        "model.norm.weight": 1 + drawn(HIDDEN),
        "lm_head.weight": drawn(VOCABULARY, HIDDEN),
    }
    for block in range(BLOCKS):
        layers = {
            "input_layernorm.weight": 1 + drawn(HIDDEN),
            "self_attn.q_proj.weight": drawn(HIDDEN, HIDDEN),
            "self_attn.q_proj.bias": drawn(HIDDEN),
            "self_attn.k_proj.weight": drawn(KEYS, HIDDEN),
            "self_attn.k_proj.bias": drawn(KEYS),
            "self_attn.v_proj.weight": drawn(KEYS, HIDDEN),
            "self_attn.v_proj.bias": drawn(KEYS),
            "self_attn.o_proj.weight": drawn(HIDDEN, HIDDEN),
            "post_attention_layernorm.weight": 1 + drawn(HIDDEN),
            "mlp.gate_proj.weight": drawn(INNER, HIDDEN),
            "mlp.up_proj.weight": drawn(INNER, HIDDEN),
            "mlp.down_proj.weight": drawn(HIDDEN, INNER),
        }
        found |= {f"model.layers.{block}.{name}": value for name, value in layers.items()}
    return found


def saved(tensors, path, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(v) for n, v in tensors.items()}, path, metadata or None)
    return path


def cast(tensors, dtype):
    return {name: value.astype(dtype) for name, value in tensors.items()}


def renamed(tensors, rename):
    return {rename(name): value for name, value in tensors.items()}


def shuffled(tensors, seed=0):
    """Names that say nothing, and sort in another order than those of the layers."""
    order = np.random.default_rng(seed).permutation(len(tensors))
    return {f"t{place}": value for place, value in zip(order, tensors.values(), strict=True)}


def swapped(tensors):
    """The same names, of which those of the two blocks have changed places."""
    turned = {0: 1, 1: 0}
    return renamed(tensors, lambda name: _with_block(name, turned))


def _with_block(name, blocks):
    for old, new in blocks.items():
        if f"layers.{old}." in name:
            return name.replace(f"layers.{old}.", f"layers.{new}.")
    return name


def sharded(tensors, folder):
    names = list(tensors)
    parts = {f"model-0000{k + 1}-of-00003.safetensors": names[k::3] for k in range(3)}
    for file, part in parts.items():
        saved({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def in_cache(tensors, folder):
    """As the hub's cache keeps a model: a link to a file that is named by its hash."""
    blob = saved(tensors, folder / "blobs" / "0123abcd")
    snapshot = folder / "snapshots" / ("f" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("f" * 40)
    return folder


def as_gguf(tensors, path, kind=None):
    """llama.cpp's file: its names, vectors in F32, matrices in `kind`."""
    names = gguf_files.gguf_names("qwen2", tensors)
    types = {names[n]: kind for n, value in tensors.items() if kind and value.ndim > 1}
    renamed_tensors = {names[name]: value for name, value in tensors.items()}
    return gguf_files.write(path, "qwen2", renamed_tensors, types)


F16, Q8_0 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0
BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


def tuned(tensors, share, seed=1):
    """As a fine-tune: each layer changes by a share of its length."""
    rng = np.random.default_rng(seed)
    return {
        name: (value + share * value.std(dtype=np.float64) * rng.normal(size=value.shape)).astype(
            "f4"
        )
        for name, value in tensors.items()
    }


def in_int8(tensors):
    """Rounded to 255 values a row, and dequantised."""
    found = {}
    for name, value in tensors.items():
        scale = np.abs(value).max(-1, keepdims=True) / 127
        found[name] = (np.round(value / scale) * scale).astype("f4")
    return found


def with_permuted_units(tensors):
    """The same function: hidden units of the MLPs in another order."""
    found = dict(tensors)
    for block in range(BLOCKS):
        order = np.random.default_rng(block).permutation(INNER)
        for name in ("gate_proj", "up_proj"):
            key = f"model.layers.{block}.mlp.{name}.weight"
            found[key] = tensors[key][order]
        key = f"model.layers.{block}.mlp.down_proj.weight"
        found[key] = tensors[key][:, order]
    return found


def with_one_entry(tensors, name="mlp.up_proj.weight", by=1e-3):
    """One entry changed, of thousands."""
    found = {key: value.copy() for key, value in tensors.items()}
    found[f"model.layers.1.{name}"].flat[777] += np.float32(by)
    return found


def with_tuned_norms(tensors):
    """Norms alone changed, by a tenth of what rounding them to bfloat16 may do."""
    found, rng = dict(tensors), np.random.default_rng(1)
    for name in (name for name in tensors if "norm" in name):
        found[name] = tensors[name] * (1 + 2e-4 * rng.normal(size=tensors[name].shape))
    return cast(found, "f4")
