"""Small GGUF files, written by the `gguf` package."""

import gguf
import numpy as np

ARCHITECTURES = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
HIDDEN, HEADS, KEYS, BLOCKS, INNER, VOCABULARY = 32, 4, 2, 2, 48, 64


def drawn(*shape, seed=0, dtype="f4"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def write(path, architecture, tensors, types=None, **settings):
    """A file of tensors by their GGUF names; `types` says which are quantised, to what."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(BLOCKS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_key_length(HIDDEN // HEADS)
    writer.add_value_length(HIDDEN // HEADS)
    writer.add_context_length(64)
    writer.add_vocab_size(VOCABULARY)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-5)
    for key, value in settings.items():
        if "." not in key:
            getattr(writer, f"add_{key}")(value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_float32(key, value)
    for name, value in tensors.items():
        kind = (types or {}).get(name)
        packed = value if kind is None else gguf.quants.quantize(value, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_names(architecture, names):
    """transformers' names to GGUF's."""
    found = gguf.get_tensor_name_map(ARCHITECTURES[architecture], BLOCKS)
    return {name: found.get_name(name, (".weight", ".bias")) for name in names}
