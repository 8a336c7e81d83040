"""The matrices of many models, layer by layer, and the table of models.

A store is a folder:

    store.json              format and version, tree, classes, layers and their shapes and ranks
    models.jsonl            one model a line: packed (with its row) or skipped (with the reason)
    layers/<name>/matrices  zarr3 array [rows, H, W] float32, one model a chunk, checksummed
    layers/<name>/up, down  of a LoRA: its factors [rows, H, R] and [rows, R, W], filled up with
                            zeros where a model's rank is lower

Packing writes the rows of a block of models to every layer and only then their lines in
models.jsonl, so that whatever a killed run left behind is overwritten by the next one. A block is
one shard: adding models later rewrites no earlier file, and may leave rows unused at block ends.
"""

from probex_jax.layer_store.from_hub import pack_from_hub
from probex_jax.layer_store.packing import PackSummary, pack
from probex_jax.layer_store.store import LayerStore, StoredModel

__all__ = ["LayerStore", "PackSummary", "StoredModel", "pack", "pack_from_hub"]
