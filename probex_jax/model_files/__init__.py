"""Opens a model file from anyone safely: the matrices it holds, each as an array.

`open_model` finds the files (`locate`; on servers `remote_folders`, `hub`, `remote`), reads their
headers (`safetensors_header`, `shards`), sorts their tensors into layers (`contents`, which
asks `layers`, `lora`, `adapters`, `quantised`, `orientation`), and reads single matrices
(`model_file`, `stored_tensors`; `lora_scales` for the scales of LoRAs). `architecture` tells which
models may be of one tree. All text of strangers passes through `untrusted_text`; `limits` bounds
its size.
"""

from probex_jax.model_files.architecture import fingerprint, stated_base
from probex_jax.model_files.layers import LayerInfo, reference_matrix, select_layers
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.model_file import ModelFile, open_model
from probex_jax.model_files.remote import Remote
from probex_jax.model_files.untrusted_text import literal_strings

__all__ = [
    "LayerInfo",
    "Limits",
    "ModelFile",
    "Remote",
    "fingerprint",
    "literal_strings",
    "open_model",
    "reference_matrix",
    "select_layers",
    "stated_base",
]
