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


def piped_config(folder):
    weights(GOOD)(folder)
    os.mkfifo(folder / "config.json")


def lora(**changed):
    names = {"up": "w.lora.up.weight", "down": "w.lora.down.weight"}
    tensors = LORA | {names.get(name, name): value for name, value in changed.items()}
    return weights(save({name: value for name, value in tensors.items() if value is not None}))


def peft(config, **others):
    return files(model_safetensors=save(PEFT | others), adapter_config_json=config)


NAN = np.array([[np.nan, 1], [1, 1]], "f4")
KEY = "dataset_chosen_targets"
CODE = "[__import__('os').system('touch owned')]"

HOSTILE = {
    # What lies there instead of a file.
    "device": (link("model.safetensors", "/dev/zero"), "leads out of the model's folder, to /dev"),
    "config a pipe": (piped_config, "config.json: not a regular file"),
    # Headers.
    "many values": (weights(raw('{"w": [' + "0," * 4_000_000)), "values, the limit is 3010000"),
    # Tensors.
    "shape beyond memory": (
        weights(raw({"w": of(shape=(2**31, 2**31), offsets=(0, 2**64))})), "data_offsets are [0, "),
    # Metadata.
    "metadata of 9 MB": (
        weights(raw({"__metadata__": {"a": "x" * 9_000_000}, "w": of()})),
        "9000001 characters of metadata, the limit is 8000000"),
    "metadata is code": (
        weights(save({"w": np.ones((2, 2), "f4")}, {KEY: CODE})), "expected a list of strings"),
    # Indexes and hub caches.
    "index no JSON": (index("{"), "index.json is not valid JSON"),
    "index without a map": (index("{}"), "weight_map is missing"),
    "shard a pickle": (index({"w": "a.bin"}, a_bin=b"\x80"), "a pickle can run code"),
    "many shards": (index({f"{i}": f"{i}.safetensors" for i in range(501)}), "501 shards, the"),
    # LoRAs.
    "ranks disagree": (lora(up=np.ones((3, 4), "f4")), "disagree in rank: up is 3x4, down is"),
    "LoRA and tensor": (lora(w=np.ones((2, 2), "f4")), "is a tensor and an update as well"),
    "alpha no number": (lora(**{"w.alpha": np.ones(2, "f4")}), "is not a single number"),
    "LoRA above": (
        lora(**{f"a/...lora.{half}.weight": np.ones((2, 2), "f4") for half in ("up", "down")}),
        "layer 'a/..': the name leads out of a folder"),
    # Configs.
    "alpha text": (peft('{"lora_alpha": "4"}'), "alpha is '4', expected a number"),
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


def test_what_is_not_damaged_is_read(tmp_path):
    """So that the cases are refused for what they say, not for how they are written."""
    for number, write in enumerate((weights(GOOD), lora(), peft('{"lora_alpha": 2}'))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder)
        read_all(folder)
