"""The matrices and vectors of many models, layer by layer, with a table of the models.

A store is a folder:

    store.json              format and version, tree, classes, layers with shapes and ranks
    tables.json             optional: label columns and splits, from tables beside the models
    models.jsonl            one model per line: packed (with its row) or skipped (with the reason)
    layers/<name>/matrices  zarr3 array [rows, H, W] float32, one chunk per model, checksummed
    layers/<name>/up, down  for a LoRA, its factors [rows, H, R] and [rows, R, W], padded with
                            zeros where a model's rank is lower
    vectors/<number>        the vectors, several in one array [rows, 1, entries]

Packing writes the rows of a block of models to every layer and then their lines in models.jsonl,
so that the next run overwrites whatever a killed one left behind. A block is one shard: adding
models later rewrites no file, but may leave unused rows at the ends of blocks.
"""

from probex_jax.layer_store.from_hub import pack_from_hub
from probex_jax.layer_store.packing import PackSummary, pack
from probex_jax.layer_store.store import LayerStore
from probex_jax.layer_store.stored_model import StoredModel
from probex_jax.layer_store.verify import verify_store

__all__ = ["LayerStore", "PackSummary", "StoredModel", "pack", "pack_from_hub", "verify_store"]
