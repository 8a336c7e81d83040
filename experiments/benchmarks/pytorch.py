"""The same work in plain PyTorch, as the equations read: what we are compared with.

For benchmarks and parity tests alone; nothing else may need PyTorch. LoRAs are multiplied out, as
the reference implementation does. Imports nothing of this repository, so that as a program of its
own it starts as fast as PyTorch does:

  python -m experiments.benchmarks.pytorch ZOO EPOCHS
"""

import ast
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

Parameters = dict[str, Any]


def parameters(params: Any, dtype: Any = torch.float32, path: str = "") -> Parameters:
    """The parameters of a `Network`, of the same names, as PyTorch's; a dtype may be a name."""
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(params, Mapping):
        return {path: torch.nn.Parameter(_tensor(params, dtype))}
    found: Parameters = {}
    for name, part in params.items():
        found |= parameters(part, dtype, f"{path}/{name}" if path else name)
    return found


def representation(p: Parameters, x: Any) -> Any:
    """[N, H, W] matrices -> [N, T] representations."""
    features = probex(p, x) if "encoder/probes" in p else mvprobe(p, x)
    return features @ p["encoder/encoder/dense/kernel"] + p["encoder/encoder/dense/bias"]


def logits(p: Parameters, x: Any, texts: Any = None) -> Any:
    """[N, H, W] matrices, of a text head [Y, D] embeddings -> [N, Y] logits."""
    e, kernel, bias = representation(p, x), *(p[f"head/linear/dense/{n}"] for n in _LINEAR)
    if texts is None:
        return e @ kernel + bias
    unit = torch.nn.functional.normalize
    return unit(e) @ unit(texts @ kernel + bias).T


def probex(p: Parameters, x: Any) -> Any:
    """relu(Vᵀ X u) of every probe, [N, U · V]."""
    response = torch.einsum("nhw,wu->nuh", x, p["encoder/probes"]) @ p["encoder/projection"]
    return torch.relu(response).flatten(1)


def mvprobe(p: Parameters, x: Any) -> Any:
    """relu(Ŝᵀ P) of every branch and probe, [N, 4 · U · V]."""
    responses = {
        "xu": x @ p["encoder/probes_xu"],
        "xxtu": x @ (x.mT @ p["encoder/probes_xxtu"]),
        "xtu": x.mT @ p["encoder/probes_xtu"],
        "xtxu": x.mT @ (x @ p["encoder/probes_xtxu"]),
    }
    features = []
    for name, s in responses.items():
        s = (s - s.mean((1, 2), keepdim=True)) / (s.std((1, 2), keepdim=True) + 1e-8)
        features.append(torch.relu(s.mT @ p[f"encoder/projection_{name}"]).flatten(1))
    return torch.cat(features, 1)


def steps(
    p: Parameters,
    x: Any,
    y: Any,
    batches: list,
    learning_rate: float,
    l2: float,
    texts: Any = None,
) -> Callable[[], Any]:
    """What trains a step of Adam on each batch, given as indices, whenever it is called.

    As `Split` has them: y of two axes are classes, of one the indices of texts; x may be factors.
    """
    dtype = next(iter(p.values())).dtype
    matrices = _matrices(x, dtype)
    texts = None if texts is None else _tensor(texts, dtype)
    y = _tensor(y, dtype if texts is None else torch.long)
    batches = [_tensor(batch, torch.long) for batch in batches]
    adam = torch.optim.Adam(p.values(), lr=learning_rate, weight_decay=l2)

    def run() -> Any:
        for batch in batches:
            adam.zero_grad()
            found = logits(p, matrices(batch), texts)
            loss = _BY_CLASS(found, y[batch]) if texts is None else _BY_TEXT(found, y[batch])
            loss.backward()
            adam.step()
        return _finished()

    return run


def encoding(p: Parameters, x: Any) -> Callable[[], Any]:
    """What computes the representations of [N, H, W] matrices, or factors, when it is called."""
    matrices = _matrices(x, next(iter(p.values())).dtype)
    everything = torch.arange(x.shape[0], device=DEVICE)

    def run() -> Any:
        with torch.no_grad():
            representation(p, matrices(everything))
        return _finished()

    return run


def scan(vectors: np.ndarray, k: int) -> Callable[[np.ndarray], Any]:
    """What finds the k stored vectors of the largest inner products with a query."""
    stored = _tensor(vectors, torch.float32)
    return lambda query: torch.topk(stored @ _tensor(query, torch.float32), k).indices.cpu()


def describing(paths: Sequence[Path], layers: Mapping[str, tuple]) -> Callable[[], Any]:
    """What reads models one after the other, and asks linear experts of their layers.

    Args:
      layers: to the centre [H, W] of each, and the weights [H, W, Y] of its expert.
    """
    known = {name: [_tensor(array, torch.float32) for array in v] for name, v in layers.items()}

    def one(path: Path) -> Any:
        found, tensors = [], safetensors.torch.load_file(path)
        for name, (centre, weights) in known.items():
            x = tensors[name].to(DEVICE) - centre
            x = (x - x.mean()) / (x.std() + 1e-8)
            found.append(x.flatten() @ weights.flatten(0, 1))
        return torch.stack(found).mean(0).sigmoid().cpu()

    return lambda: [one(path) for path in paths]


def sweep(zoo: Path, epochs: int, *, n_probes: int, proj_dim: int, rep_dim: int) -> dict:
    """Trains ProbeX on every layer, one after the other, in batches of all training models.

    Returns:
      The validation accuracy of each layer, at the best of evaluations every 25 epochs.
    """
    data = {split: _read(zoo / split) for split in ("train", "val")}
    layers, y = data["train"]
    best = {}
    for name, x in layers.items():
        torch.manual_seed(0)
        rows, columns = x.shape[1:]
        features, n_classes = n_probes * proj_dim, y.shape[1]
        # Shapes, and the fan-in that the size of the first values comes from.
        sizes: dict[str, tuple[tuple[int, ...], int]] = {
            "encoder/probes": ((columns, n_probes), n_probes),
            "encoder/projection": ((rows, proj_dim), rows),
            "encoder/encoder/dense/kernel": ((features, rep_dim), features),
            "encoder/encoder/dense/bias": ((rep_dim,), features),
            "head/linear/dense/kernel": ((rep_dim, n_classes), rep_dim),
            "head/linear/dense/bias": ((n_classes,), rep_dim),
        }
        p = {
            key: torch.nn.Parameter((2 * torch.rand(shape, device=DEVICE) - 1) / fan_in**0.5)
            for key, (shape, fan_in) in sizes.items()
        }
        everything = [np.arange(len(x))]
        run = steps(p, x, y, everything, learning_rate=1e-3, l2=1e-5)
        best[name] = 0.0
        for epoch in range(epochs):
            run()
            if (epoch + 1) % 25 == 0:
                with torch.no_grad():
                    right = (logits(p, data["val"][0][name]) > 0) == (data["val"][1] > 0.5)
                best[name] = max(best[name], right.float().mean().item())
    return best


def multiply_in(precision: str) -> None:
    """The precision of float32 products on a GPU: "float32", or any other for TF32."""
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")


def _read(folder: Path) -> tuple[dict, Any]:
    """Every layer of the models of a split [N, H, W], and which classes they are of [N, Y]."""
    models, labels = [], []
    for path in sorted(folder.glob("*/*.safetensors")) + sorted(folder.glob("*.safetensors")):
        models.append(safetensors.torch.load_file(path))
        with safetensors.safe_open(path, "pt") as opened:
            labels.append(ast.literal_eval(opened.metadata()["dataset_chosen_targets"]))
    classes = sorted({label for of_model in labels for label in of_model})
    y = torch.tensor([[float(c in of_model) for c in classes] for of_model in labels])
    layers = {name: torch.stack([model[name] for model in models]).to(DEVICE) for name in models[0]}
    return layers, y.to(DEVICE)


def _matrices(x: Any, dtype: Any) -> Callable[[Any], Any]:
    """What gives the matrices of some models: of factors they are multiplied out."""
    if hasattr(x, "up"):
        up, down = _tensor(x.up, dtype), _tensor(x.down, dtype)
        return lambda index: up[index] @ down[index]
    x = _tensor(x, dtype)
    return lambda index: x[index]


def _tensor(array: Any, dtype: Any) -> Any:
    if isinstance(array, torch.Tensor):
        return array.to(DEVICE, dtype)
    array = np.array(array)
    if array.dtype.name == "bfloat16":  # of no dtype that PyTorch takes from NumPy
        array = array.astype(np.float32)
    return torch.tensor(array).to(DEVICE, dtype)


def _finished() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_LINEAR = ("kernel", "bias")
_BY_CLASS = torch.nn.functional.binary_cross_entropy_with_logits
_BY_TEXT = torch.nn.functional.cross_entropy
torch.set_num_threads(os.cpu_count() or 1)

if __name__ == "__main__":
    print(sweep(Path(sys.argv[1]), int(sys.argv[2]), n_probes=32, proj_dim=32, rep_dim=128))
