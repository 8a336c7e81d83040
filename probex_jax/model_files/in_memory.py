"""Models in memory."""

from collections.abc import Mapping
from typing import Any

from probex_jax.model_files.containers import tree_container
from probex_jax.model_files.containers.tree import InMemory
from probex_jax.model_files.files_beside import FilesBeside
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Location
from probex_jax.model_files.model_file import ModelFile
from probex_jax.model_files.stored_tensors import StoredTensors

_LIMITS = Limits()


def open_params(tree: Any, metadata: Mapping[str, str] | None = None) -> ModelFile:
    """Takes a tree of parameters in memory for a model: Flax's variables, or any other tree.

    Names and axes become PyTorch's, as those of files do: `{"params": {"fc": {"kernel": …}}}` has
    the layer `fc.weight`, [out, in].

    Args:
      tree: nested dicts, lists or other pytrees of one model's arrays, NumPy's or JAX's. An array
        alone is called "parameters".
      metadata: free text, as files have it.

    Returns:
      The model. It reads the arrays as they are at the time.

    Raises:
      ProbexError: if there are no arrays, or something else among them.

    Example:
      >>> import numpy as np
      >>> variables = {"params": {"fc": {"kernel": np.ones((3, 2), "f4"), "bias": np.zeros(2)}}}
      >>> model = open_params(variables)
      >>> print(*model.layers, *model.vectors, model.matrix("fc.weight").shape)
      fc.weight fc.bias (2, 3)

    References:
      docs/formats.md, "Model files that are read".
    """
    container = tree_container(tree, metadata or {}, _LIMITS)
    stored = StoredTensors(Location(InMemory(), ()), [container])
    return ModelFile(container.name, stored, FilesBeside(InMemory(), _LIMITS.depth))
