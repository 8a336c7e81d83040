"""Built zoos read back, and the layers of a transformer in NumPy, from their definitions."""

import numpy as np
from safetensors import safe_open


def metadata_of(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def contents(folder):
    """Every file below a folder, by its path there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Layers:
    """What blocks are made of, with the parameters of a model, in float64; x is [tokens, width]."""

    def __init__(self, params, heads):
        self.params = {name: np.asarray(value, np.float64) for name, value in params.items()}
        self.heads = heads

    def dense(self, x, name):
        return x @ self.params[f"{name}.weight"].T + self.params[f"{name}.bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * self.params[f"{name}.weight"] + self.params[f"{name}.bias"]

    def attention(self, x, query, key, value, output):
        def split(name):
            return self.dense(x, name).reshape(len(x), self.heads, -1).transpose(1, 0, 2)

        q, k, v = split(query), split(key), split(value)
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return self.dense(mixed.transpose(1, 0, 2).reshape(len(x), -1), output)
