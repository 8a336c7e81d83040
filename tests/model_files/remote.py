"""Models on a hub for tests, and what was asked of it."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import probex_jax as px
from tests.hub import write_repo

COMMON = {"format": "pt", "author": "me"}


def random(shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# 256 KB each: the header and `a` begin in the first request, `d` is far from `a`.
FAR = {name: random((256, 256), seed=seed) for seed, name in enumerate("abcd")}
SIZE = 256 * 256 * 4


def weights_file(path, tensors, metadata=None):
    """Writes a file with the tensors in the order of their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def model(hub, repo, tensors=FAR, files=None, name="model.safetensors", metadata=COMMON):
    """Writes a model's repository on the hub; gives the folder."""
    folder = write_repo(hub.repositories.root, "models", repo, files or {})
    weights_file(folder / name, tensors, metadata)
    return folder


def sharded(hub, repo):
    """A model of two shards with their index."""
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = dict(zip("abcd", [names[0]] * 2 + [names[1]] * 2, strict=True))
    files = {"model.safetensors.index.json": json.dumps({"weight_map": weight_map})}
    folder = model(hub, repo, {k: FAR[k] for k in "ab"}, files, names[0])
    weights_file(folder / names[1], {k: FAR[k] for k in "cd"}, COMMON)
    return folder


def lora(hub, repo, folder="."):
    """An adapter of PEFT; alpha is in its config, beside it."""
    path = "base_model.model.q_proj.lora_{}.weight"
    tensors = {path.format("A"): random((4, 64)), path.format("B"): random((32, 4), seed=1)}
    config = json.dumps({"lora_alpha": 12, "r": 4})
    files = {f"{folder}/adapter_config.json": config}
    return model(hub, repo, tensors, files, f"{folder}/adapter_model.safetensors")


def other_dtypes(hub, repo):
    """bfloat16 and half precision, a convolution, a bias, one that is empty."""
    tensors = {
        "bf": random((8, 4), ml_dtypes.bfloat16),
        "half": random((4, 8), "f2"),
        "conv": random((4, 2, 3, 3)),
        "bias": random(5),
        "none": np.zeros((0, 4), "f4"),
    }
    return model(hub, repo, tensors, {"config.json": '{"model_type": "vit"}'})


def asked(hub, file=""):
    """The ranges that were asked for of files that end so, "begin-end" inclusive, in order."""
    ranges = [r for r in hub.log if r.range and r.file.endswith(file)]
    return [tuple(map(int, r.range.removeprefix("bytes=").split("-"))) for r in ranges]


def served(hub, file=".safetensors"):
    """How many answers brought bytes of files that end so."""
    return sum(bool(r.begin is not None and r.bytes_sent) for r in hub.log if r.file.endswith(file))


def same(array, expected):
    """The same bits, in an array of one's own."""
    if isinstance(expected, px.LowRank):
        same(array.up, expected.up)
        same(array.down, expected.down)
        return
    np.testing.assert_array_equal(array, expected)
    assert (array.dtype, array.flags.c_contiguous) == (expected.dtype, True)
    assert array.flags.writeable == expected.flags.writeable
