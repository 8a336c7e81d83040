"""Models with the same weights in every disguise are found, and none that is only near."""

import json

import jax
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp

from probex_jax.lineage.copies import copies_among
from tests.lineage import copying
from tests.lineage.copying import BF16, F8, F16, Q8_0, cast, renamed, saved, weights
from tests.model_files.containers.flax_model import drawn, twin

DISGUISES = {
    "metadata": lambda w, d: saved(w, d / "a.safetensors", author="me", license="mit"),
    "folder": lambda w, d: saved(w, d / "model" / "model.safetensors").parent,
    "bfloat16": lambda w, d: saved(cast(w, BF16), d / "a.safetensors"),
    "float16": lambda w, d: saved(cast(w, "f2"), d / "a.safetensors"),
    "float64": lambda w, d: saved(cast(w, "f8"), d / "a.safetensors"),
    "bfloat16 and back": lambda w, d: saved(cast(cast(w, BF16), "f4"), d / "a.safetensors"),
    "norms in float32": lambda w, d: saved(
        {n: v if v.ndim == 1 else v.astype(BF16) for n, v in w.items()}, d / "a.safetensors"
    ),
    "float16, then bfloat16": lambda w, d: saved(cast(cast(w, "f2"), BF16), d / "a.safetensors"),
    "module.": lambda w, d: saved(renamed(w, "module.{}".format), d / "a.safetensors"),
    "_orig_mod.": lambda w, d: saved(renamed(w, "_orig_mod.{}".format), d / "a.safetensors"),
    "other names": lambda w, d: saved(
        renamed(w, lambda name: name.replace("layers.", "blocks.").replace("_proj", "")),
        d / "a.safetensors",
    ),
    "head renamed": lambda w, d: saved(
        renamed(w, lambda name: name.replace("lm_head", "score")), d / "a.safetensors"
    ),
    "shuffled": lambda w, d: saved(copying.shuffled(w), d / "a.safetensors"),
    "shuffled, bfloat16": lambda w, d: saved(copying.shuffled(cast(w, BF16)), d / "a.safetensors"),
    "names swapped": lambda w, d: saved(copying.swapped(w), d / "a.safetensors"),
    "names swapped, bfloat16": lambda w, d: saved(
        copying.swapped(cast(w, BF16)), d / "a.safetensors"
    ),
    "shards": lambda w, d: copying.sharded(w, d / "model"),
    "shards, float16": lambda w, d: copying.sharded(cast(w, "f2"), d / "model"),
    "cache of the hub": lambda w, d: copying.in_cache(w, d / "models--a--b"),
    "GGUF": lambda w, d: copying.as_gguf(w, d / "a.gguf"),
    "GGUF, float16": lambda w, d: copying.as_gguf(w, d / "a.gguf", F16),
    "NumPy": lambda w, d: np.savez(d / "a.npz", **w) or d / "a.npz",
}

NEAR = {
    "fine-tune": lambda w, d: saved(copying.tuned(w, 1e-3), d / "a.safetensors"),
    "fine-tune in bfloat16": lambda w, d: saved(
        cast(copying.tuned(w, 1e-2), BF16), d / "a.safetensors"
    ),
    "tuned norms": lambda w, d: saved(
        copying.with_tuned_norms(cast(cast(w, BF16), "f4")), d / "a.safetensors"
    ),
    "pruned, bfloat16": lambda w, d: saved(
        {n: np.where(np.abs(v) < 1e-3, 0, v).astype(BF16) for n, v in w.items()},
        d / "a.safetensors",
    ),
    "one entry": lambda w, d: saved(copying.with_one_entry(w), d / "a.safetensors"),
    "one entry, bfloat16": lambda w, d: saved(
        cast(copying.with_one_entry(w, by=0.1), BF16), d / "a.safetensors"
    ),
    "one entry of a vector": lambda w, d: saved(
        copying.with_one_entry(w | {"model.layers.1.x": np.ones(1000, "f4")}, "x", 1e-6),
        d / "a.safetensors",
    ),
    "only the backbone": lambda w, d: saved(
        w | {"lm_head.weight": weights(1)["lm_head.weight"]}, d / "a.safetensors"
    ),
    "one layer of another": lambda w, d: saved(
        w | {"model.layers.1.mlp.up_proj.weight": weights(1)["model.layers.1.mlp.up_proj.weight"]},
        d / "a.safetensors",
    ),
    "a layer of zeros": lambda w, d: saved(
        w | {"model.layers.0.self_attn.q_proj.weight": np.zeros((32, 32), "f4")},
        d / "a.safetensors",
    ),
    "permuted units": lambda w, d: saved(copying.with_permuted_units(w), d / "a.safetensors"),
    "scaled": lambda w, d: saved(
        {name: np.float32(1.001) * value for name, value in w.items()}, d / "a.safetensors"
    ),
    "scaled, bfloat16": lambda w, d: saved(
        {n: (np.float32(1.001) * v).astype(BF16) for n, v in w.items()}, d / "a.safetensors"
    ),
    "negated": lambda w, d: saved({n: -v for n, v in w.items()}, d / "a.safetensors"),
    "another layer": lambda w, d: saved(w | {"extra": np.ones(3, "f4")}, d / "a.safetensors"),
    "eight bits": lambda w, d: saved(copying.in_int8(w), d / "a.safetensors"),
    "float8": lambda w, d: saved(cast(w, F8), d / "a.safetensors"),
    "GGUF, Q8_0": lambda w, d: copying.as_gguf(w, d / "a.gguf", Q8_0),
    "another seed": lambda w, d: saved(weights(1), d / "a.safetensors"),
}


def groups(**paths):
    return {frozenset(found.models) for found in copies_among([*paths.items()])}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_copy_is_found(disguise, tmp_path):
    tensors = weights()
    (tmp_path / "copy").mkdir()
    models = [
        ("child", saved(copying.tuned(tensors, 0.01), tmp_path / "child.safetensors")),
        ("model", saved(tensors, tmp_path / "model.safetensors")),
        ("stranger", saved(weights(1), tmp_path / "stranger.safetensors")),
        ("copy", DISGUISES[disguise](tensors, tmp_path / "copy")),
    ]
    (one,) = copies_among(models)
    assert one.models == ("model", "copy")
    changes = any(word in disguise for word in ("bfloat16", "float16", "norms"))
    assert (one.largest_difference > 0) == changes
    assert one.largest_difference < 0.01


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_flax_names_axes_and_containers(tmp_path):
    variables = drawn()
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(variables))
    np.savez(tmp_path / "b.npz", **flatten_dict(jax.device_get(variables), sep="/"))
    ocp.save_pytree(tmp_path / "c" / "10" / "default", variables)
    tensors = twin(variables)
    saved(tensors, tmp_path / "d.safetensors")
    del tensors["norm.num_batches_tracked"]
    saved(cast(tensors, BF16), tmp_path / "e.safetensors")
    paths = {path.name[0]: path for path in tmp_path.iterdir()}
    assert groups(**dict(sorted(paths.items()))) == {frozenset("abcde")}


@pytest.mark.parametrize("near", NEAR)
def test_a_near_miss_is_no_copy(near, tmp_path):
    tensors = weights()
    if near == "one entry of a vector":
        tensors |= {"model.layers.1.x": np.ones(1000, "f4")}
    (tmp_path / "near").mkdir()
    model = saved(tensors, tmp_path / "model.safetensors")
    half = saved(cast(tensors, BF16), tmp_path / "half.safetensors")
    found = groups(model=model, near=NEAR[near](tensors, tmp_path / "near"), half=half)
    assert found == {frozenset({"model", "half"})}


def test_constant_models_are_no_copies(tmp_path):
    shapes = {name: value.shape for name, value in weights().items()}
    values = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}
    paths = {
        name: saved(
            {key: np.full(shape, value, "f4") for key, shape in shapes.items()},
            tmp_path / f"{name}.safetensors",
        )
        for name, value in values.items()
    }
    assert not groups(**paths)


def test_layers_of_zeros_hide_no_copy(tmp_path):
    tensors = weights() | {"model.layers.0.mlp.up_proj.weight": np.zeros((96, 32), "f4")}
    one = saved(tensors, tmp_path / "a.safetensors")
    other = saved(copying.shuffled(cast(tensors, "f2")), tmp_path / "b.safetensors")
    assert groups(a=one, b=other) == {frozenset("ab")}


def test_children_of_one_model_in_two_dtypes(tmp_path):
    """A rounded file is a copy of the one that it was rounded from, not of its many near kin."""
    tensors = {name: value for name, value in weights().items() if "layers.0" in name}
    paths = {}
    for number in range(40):
        child = copying.tuned(tensors, 1e-3, seed=number)
        half = cast(child, (BF16, "f2")[number % 2])
        paths[f"child{number}"] = saved(child, tmp_path / f"{number}.safetensors")
        paths[f"half{number}"] = saved(half, tmp_path / f"half{number}.safetensors")
    assert groups(**paths) == {frozenset({f"child{n}", f"half{n}"}) for n in range(40)}


def test_two_dtypes_of_a_model_that_is_not_there(tmp_path):
    tensors = weights()
    one = saved(cast(tensors, BF16), tmp_path / "a.safetensors")
    other = saved(cast(tensors, "f2"), tmp_path / "b.safetensors")
    (found,) = copies_among([("a", one), ("b", other)])
    assert found.models == ("b", "a")  # F16 keeps more


@pytest.mark.parametrize("scale", [1e-30, 1e7, 1e30])
def test_weights_of_any_size(scale, tmp_path):
    tensors = {name: value * np.float32(scale) for name, value in weights().items()}
    one = saved(tensors, tmp_path / "a.safetensors")
    other = saved(cast(tensors, BF16), tmp_path / "b.safetensors")
    child = saved(copying.tuned(tensors, 1e-3), tmp_path / "c.safetensors")
    assert groups(child=child, one=one, other=other) == {frozenset({"one", "other"})}


def test_many_copies_are_one_group(tmp_path):
    tensors, paths = weights(), {}
    for number in range(40):
        dtype = ("f4", "f2", BF16, "f8")[number % 4]
        paths[f"m{number:02d}"] = saved(cast(tensors, dtype), tmp_path / f"{number}.safetensors")
    (found,) = copies_among([*paths.items()])
    assert found.models[0] == "m00"
    assert sorted(found.models) == sorted(paths)


def test_unreadable_models_do_not_stop_the_search(tmp_path):
    one = saved(weights(), tmp_path / "a.safetensors")
    other = saved(weights(), tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    paths = {"broken": tmp_path / "c.safetensors", "a": one, "none": tmp_path / "no", "b": other}
    assert groups(**paths) == {frozenset("ab")}


def lora(path, factor=1.0, alpha=None, dtype="f4", seed=0):
    """An adapter; `factor` goes from one of its factors to the other."""
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(3):
        name = f"base_model.model.layers.{layer}.q_proj"
        down_RW, up_HR = rng.normal(size=(4, 32)) * factor, rng.normal(size=(24, 4)) / factor
        tensors[f"{name}.lora_A.weight"] = down_RW.astype("f4").astype(dtype)
        tensors[f"{name}.lora_B.weight"] = up_HR.astype("f4").astype(dtype)
    saved(tensors, path / "adapter_model.safetensors")
    if alpha is not None:
        settings = {"r": 4, "lora_alpha": alpha, "peft_type": "LORA"}
        (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def test_loras_are_compared_by_their_updates(tmp_path):
    found = groups(
        a=lora(tmp_path / "a", alpha=4),
        same=lora(tmp_path / "same", alpha=4),
        twice=lora(tmp_path / "twice", factor=2.0, alpha=4),
        thrice=lora(tmp_path / "thrice", factor=3.0, alpha=4),
        half=lora(tmp_path / "half", alpha=4, dtype="f2"),
        stronger=lora(tmp_path / "stronger", alpha=8),
        stranger=lora(tmp_path / "stranger", alpha=4, seed=1),
    )
    assert found == {frozenset({"a", "same", "twice", "thrice", "half"})}
