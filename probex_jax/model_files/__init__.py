"""Opens a model file from anyone safely: the matrices it holds, each as an array.

`open_model` finds the files (`locate`; on servers `remote_folders`, `remote`, `hub`), reads what
stands before their weights (`containers`, one module a format), gives JAX's parameters PyTorch's
names and axes (`stored_tensors`, `flax_names`), sorts them into layers (`contents`, which asks
`layers`, `adapters`, `quantised`, `orientation`), and reads single matrices (`model_file`).
`open_params` does so for a tree in memory. `parts` tells the models of one file apart,
`architecture` which models may be of one tree, `stated` what files say of themselves. All text of
strangers passes through `untrusted_text`; `limits` bounds its size.
"""

from probex_jax.model_files.architecture import fingerprint
from probex_jax.model_files.in_memory import open_params
from probex_jax.model_files.layers import LayerInfo, reference_matrix, select_layers
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.model_file import ModelFile, open_model
from probex_jax.model_files.remote import Remote
from probex_jax.model_files.stated import Stated, read_stated, stated_base
from probex_jax.model_files.untrusted_text import literal_strings

__all__ = [
    "LayerInfo",
    "Limits",
    "ModelFile",
    "Remote",
    "Stated",
    "fingerprint",
    "literal_strings",
    "open_model",
    "open_params",
    "read_stated",
    "reference_matrix",
    "select_layers",
    "stated_base",
]
