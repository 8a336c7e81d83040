"""Hostile models, each refused with a clear error of its own, in one line.

A case is a function that writes a folder, and what the error must say. Everything that the library
reads of a model is asked for: some damage is found when the header is read, some with the values.
"""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import save

from probex_jax.errors import ProbexError
from probex_jax.model_files import literal_strings, open_model

GOOD = save({"w": np.ones((2, 2), "f4")})
LORA = {"w.lora.up.weight": np.ones((3, 2), "f4"), "w.lora.down.weight": np.ones((2, 3), "f4")}
PEFT = {
    "base_model.model.conv_in.lora_B.weight": np.ones((3, 2), "f4"),
    "base_model.model.conv_in.lora_A.weight": np.ones((2, 3), "f4"),
}


def files(**contents):
    """Writes files; `_` in their names is a dot, but that of `adapter_config`."""

    def write(folder):
        for name, content in contents.items():
            name = name.replace("_", ".").replace("adapter.config", "adapter_config")
            content = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(content)

    return write


def raw(header, data=b"", length=None):
    """Bytes of a file whose header is this; its length may be a lie."""
    header = (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def weights(content):
    return files(model_safetensors=content)


def of(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def index(content, **others):
    text = content if isinstance(content, str) else json.dumps({"weight_map": content})
    return files(model_safetensors_index_json=text, **others)


def link(name, target):
    def write(folder):
        (folder / name).symlink_to(target)

    return write


def outside(folder):
    (folder.parent / "secret.safetensors").write_bytes(GOOD)
    (folder / "model.safetensors").symlink_to("../secret.safetensors")


def linked_shard(folder):
    (folder.parent / "secret.safetensors").write_bytes(GOOD)
    index({"w": "a.safetensors"})(folder)
    (folder / "a.safetensors").symlink_to("../secret.safetensors")


def linked_config(folder):
    weights(GOOD)(folder)
    (folder.parent / "secret.json").write_text("{}")
    (folder / "config.json").symlink_to("../secret.json")


def piped_config(folder):
    weights(GOOD)(folder)
    os.mkfifo(folder / "config.json")


def cache(revision):
    def write(folder):
        (folder / "snapshots").mkdir()
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(revision)

    return write


def lora(**changed):
    names = {"up": "w.lora.up.weight", "down": "w.lora.down.weight"}
    tensors = LORA | {names.get(name, name): value for name, value in changed.items()}
    return weights(save({name: value for name, value in tensors.items() if value is not None}))


def peft(config, **others):
    return files(model_safetensors=save(PEFT | others), adapter_config_json=config)


def values(dtype, *numbers):
    return weights(raw({"w": of(dtype, (2, 2), (0, len(numbers)))}, bytes(numbers)))


NAN = np.array([[np.nan, 1], [1, 1]], "f4")
KEY = "dataset_chosen_targets"
CODE = "[__import__('os').system('touch owned')]"

HOSTILE = {
    # Other formats under a name of this one, and by their own.
    "empty file": (weights(b""), "0 bytes are too few for a safetensors file"),
    "pickle renamed": (weights(b"\x80\x04\x95" + b"\xff" * 9), "it may be a pickle"),
    "GGUF renamed": (weights(b"GGUF\x03\0\0\0" + b"\xff" * 9), "it is a GGUF file"),
    "zip renamed": (weights(b"PK\x03\x04" + b"\xff" * 9), "it is a zip archive"),
    "web page": (weights(b"<!DOCTYPE html><html>"), "it looks like a web page"),
    "LFS pointer": (weights(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "pickle": (files(pytorch__bin=b"\x80\x02."), "a pickle can run code when it is loaded"),
    "GGUF": (files(model_gguf=b"GGUF"), "GGUF is not read; convert it"),
    # What lies there instead of a file.
    "pipe": (lambda folder: os.mkfifo(folder / "model.safetensors"), "not a regular file"),
    "folder": (lambda folder: (folder / "model.safetensors").mkdir(), "is a folder, expected a"),
    "device": (link("model.safetensors", "/dev/zero"), "leads out of the model's folder, to /dev"),
    "link to itself": (link("model.safetensors", "model.safetensors"), "no such file or folder (a"),
    "link to nothing": (link("model.safetensors", "gone"), "(a link to gone, which is missing)"),
    "link out": (outside, "model.safetensors: a link that leads out of the model's folder"),
    "shard a link out": (linked_shard, "a.safetensors: a link that leads out of the model's"),
    "config a link out": (linked_config, "config.json: a link that leads out of the model's"),
    "config a pipe": (piped_config, "config.json: not a regular file"),
    # Headers.
    "header of exabytes": (weights(raw("{}", length=2**63)), "would be 9223372036854775808 bytes"),
    "header of 100 MB": (weights(raw("{}", length=10**8)), "the header is 100000000 bytes long"),
    "header cut": (weights(raw("{}", length=100)), "truncated in the header: 98 bytes"),
    "deep": (weights(raw('{"w": ' + "[" * 100_000)), "nested too deeply, the limit is 64"),
    "many values": (weights(raw('{"w": [' + "0," * 4_000_000)), "values, the limit is 3010000"),
    "huge number": (weights(raw('{"w": ' + "9" * 5000 + "}")), "is not valid JSON: Exceeds the"),
    "tensor twice": (weights(raw('{"w": {}, "w": {}}')), "has the key 'w' twice"),
    "surrogate in a name": (weights(raw(r'{"\ud800": {}}')), "the name is not valid Unicode"),
    "name above": (weights(save({"../w": NAN})), "tensor '../w': the name leads out of a folder"),
    # Tensors.
    "unknown dtype": (weights(raw({"w": of("F99")})), "unknown dtype 'F99'"),
    "negative shape": (weights(raw({"w": of(shape=(-2, -2))})), "shape is [-2, -2], expected"),
    "shape beyond memory": (
        weights(raw({"w": of(shape=(2**31, 2**31), offsets=(0, 2**64))})), "data_offsets are [0, "),
    "terabytes": (
        weights(raw({"w": of(shape=(2**20, 2**20), offsets=(0, 2**42))})), "bytes are missing of"),
    "offsets swapped": (weights(raw({"w": of(offsets=(16, 0))})), "with 0 <= begin <= end"),
    "wrong size": (weights(raw({"w": of(offsets=(0, 12))}, b"\0" * 12)), "takes 128 bits"),
    "overlap": (
        weights(raw({"v": of(), "w": of(offsets=(8, 24))}, b"\0" * 24)), "overlaps the one before"),
    "hole": (weights(raw({"v": of(), "w": of(offsets=(20, 36))}, b"\0" * 36)), "leaves a hole"),
    "data cut": (weights(GOOD[:-1]), "truncated: 1 bytes are missing of 16"),
    "data appended": (weights(GOOD + b"#!/bin/sh"), "9 bytes at the end belong to no tensor"),
    "NaN": (weights(save({"w": NAN})), "1 of 4 values are NaN or infinite in float32"),
    "NaN of 8 bits": (values("F8_E4M3", 0, 0x7F, 0xFF, 0), "'w': 2 of 4 values are NaN"),
    "infinity of 8 bits": (values("F8_E5M2", 0x7C, 0, 0, 0), "'w': 1 of 4 values are NaN"),
    # Metadata.
    "metadata a list": (weights(raw({"__metadata__": []})), "__metadata__ is [], expected an"),
    "metadata a number": (weights(raw({"__metadata__": {"a": 1}})), "'a' is 1, expected Unicode"),
    "metadata of 9 MB": (
        weights(raw({"__metadata__": {"a": "x" * 9_000_000}, "w": of()})),
        "9000001 characters of metadata, the limit is 8000000"),
    "metadata is code": (
        weights(save({"w": np.ones((2, 2), "f4")}, {KEY: CODE})), "expected a list of strings"),
    # Indexes and hub caches.
    "index no JSON": (index("{"), "index.json is not valid JSON"),
    "index without a map": (index("{}"), "weight_map is missing"),
    "shard above": (index({"w": "../secret.safetensors"}), "'../secret.safetensors' is no plain"),
    "shard at the root": (index({"w": "/etc/passwd"}), "'/etc/passwd' is no plain name"),
    "shard a pickle": (index({"w": "a.bin"}, a_bin=b"\x80"), "a pickle can run code"),
    "shard that lies": (
        index({"x": "a.safetensors"}, a_safetensors=GOOD), "tensor 'w' should be in no shard"),
    "many shards": (index({f"{i}": f"{i}.safetensors" for i in range(501)}), "501 shards, the"),
    "revision above": (cache("../../etc"), "revision: '../../etc' is no plain name"),
    # LoRAs.
    "one factor": (lora(up=None), "the down factor, without the up one"),
    "ranks disagree": (lora(up=np.ones((3, 4), "f4")), "disagree in rank: up is 3x4, down is"),
    "LoRA and tensor": (lora(w=np.ones((2, 2), "f4")), "is a tensor and a LoRA as well"),
    "alpha no number": (lora(**{"w.alpha": np.ones(2, "f4")}), "is no single number"),
    "LoRA above": (
        lora(**{f"a/...lora.{half}.weight": np.ones((2, 2), "f4") for half in ("up", "down")}),
        "layer 'a/..': the name leads out of a folder"),
    # Configs.
    "alpha text": (peft('{"lora_alpha": "4"}'), "lora_alpha of the adapter's config is '4'"),
    "alpha infinite": (peft('{"lora_alpha": 1e999}'), "alpha is inf, expected a number"),
    "pattern that hangs": (
        peft('{"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1}}'), "is a regular expression"),
    "config no object": (
        files(model_safetensors=GOOD, config_json="[]"), "config.json is a JSON list, expected"),
    "config deep": (
        files(model_safetensors=GOOD, config_json='{"a":' + "[" * 10**5), "nested too deeply"),
    "config no text": (
        files(model_safetensors=GOOD, config_json=b"\xff\xfe{}"), "config.json is not UTF-8 text"),
}  # fmt: skip


def read_all(folder):
    with open_model(folder) as model:
        _ = model.config
        for name in model.layers:
            model.matrix(name)
        if KEY in model.metadata:
            literal_strings(model.metadata[KEY], f"{model.path}: {KEY}")


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_models_are_refused_in_one_clear_line(tmp_path, monkeypatch, case):
    write, fragment = HOSTILE[case]
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProbexError, match=re.escape(fragment)) as caught:
        read_all(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)), "the error names the file"
    assert message.isprintable()
    assert len(message) < 700
    assert not (tmp_path / "owned").exists()


def test_they_are_many_and_their_errors_are_told_apart():
    assert len({fragment for _, fragment in HOSTILE.values()}) >= 30


def test_what_is_not_damaged_is_read(tmp_path):
    """So that the cases are refused for what they say, not for how they are written."""
    for number, write in enumerate((weights(GOOD), lora(), peft('{"lora_alpha": 2}'))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder)
        read_all(folder)
