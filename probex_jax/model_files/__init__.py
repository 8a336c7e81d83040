"""Opens one model file of anyone's, safely: which matrices it holds, and each as an array.

`open_model` finds the files (`locate`), reads their headers (`safetensors_header`), decides what
is a layer and in which canonical form (`layers`; `lora` for updates kept as factors, `lora_names`
for their names, `lora_scales` for their scales), and reads single matrices (`model_file`).
`architecture` tells which models may be of one tree.
`select_layers` picks layers by name, number or pattern; `reference_matrix` re-reads convolutions as
the reference implementation does; `literal_strings` reads a list of class names out of metadata.
All text of strangers passes through `untrusted_text`; `limits` says how much of it there may be.
"""

from probex_jax.model_files.architecture import fingerprint, stated_base
from probex_jax.model_files.http_ranges import Remote
from probex_jax.model_files.layers import LayerInfo, reference_matrix, select_layers
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.model_file import ModelFile, open_model
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
