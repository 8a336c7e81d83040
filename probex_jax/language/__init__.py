"""Text encoders: class names and queries to vectors.

`interface` defines `TextEncoder`. `hashing` is built in; `clip` is CLIP's text
tower (`clip_tower`), read from a checkpoint (`clip_checkpoint`) with its tokenizer
(`clip_tokens`); `precomputed` looks texts up in a file. `embedding` makes an encoder from a
specification and caches the embeddings of a list of texts.
"""

from probex_jax.language.clip import ClipTextEncoder
from probex_jax.language.embedding import CachedEncoder, default_cache, embed, text_encoder
from probex_jax.language.hashing import HashingEncoder
from probex_jax.language.interface import TextEncoder
from probex_jax.language.precomputed import PrecomputedEncoder, save_embeddings

__all__ = [
    "CachedEncoder",
    "ClipTextEncoder",
    "HashingEncoder",
    "PrecomputedEncoder",
    "TextEncoder",
    "default_cache",
    "embed",
    "save_embeddings",
    "text_encoder",
]
