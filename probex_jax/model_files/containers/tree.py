"""Trees of parameters in memory."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.containers.header import Contained, NoBytes, dtype_name
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

_NUMBERS = (bool, int, float, complex)


class InMemory(NoBytes):
    """No file and no folder: a `Folder` of nothing, too."""

    def __init__(self) -> None:
        super().__init__("parameters in memory")

    def __str__(self) -> str:
        return self.name

    def path_of(self, name: str) -> str:
        """Where a file would be, for messages."""
        return f"{self.name}: {name}"

    def names(self) -> list[str]:
        """None."""
        return []

    def open(self, name: str) -> "InMemory":
        """Nothing."""
        return self

    def read_beside(self, name: str, limit: int) -> None:
        """Nothing."""


def read_tree(tree: Any, metadata: Mapping[str, str]) -> Contained:
    """The arrays of a tree, by the keys that lead to them."""
    tensors, readers = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(_key(key) for key in path) or "parameters"
        values = np.asarray(leaf) if isinstance(leaf, _NUMBERS) else leaf
        is_array = isinstance(values, (np.ndarray, np.generic, jax.Array))
        if not is_array or (isinstance(values.dtype, np.dtype) and values.dtype.kind in "OSUM"):
            raise ProbexError(
                f"parameters: {quoted(name)} is {quoted(leaf, 80)}, of {type(leaf).__name__}; "
                "expected an array of NumPy or JAX"
            )
        if name in tensors:
            raise ProbexError(f"parameters: two arrays are called {quoted(name)}")
        tensors[name] = TensorInfo(dtype_name(values.dtype), tuple(values.shape))
        readers[name] = partial(np.array, values)  # a copy
    return Contained(tensors, dict(metadata), readers=readers, nested=True)


def _key(key: Any) -> str:
    """One step of a path: a key of a dict, a place in a list or a name of an attribute."""
    found = (getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind))
    return str(next(found, key))
