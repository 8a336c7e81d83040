"""Damaged files of every kind: they are read or refused in one line, quickly, in little memory.

`FUZZ_EXAMPLES=20000 pytest tests/model_files/test_fuzz.py` tries more than the default suite, and
other ones at every run.
"""

import json
import os
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.model_files.fuzz_target import PEAK_BYTES, PEFT, SECONDS, ones, read_all

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
profile = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
most = {"seconds": 0.0, "bytes": 0, "opened": 0, "refused": 0}


def kohya(path, up, down):
    return {
        f"lora_unet_{path}.lora_up.weight": up,
        f"lora_unet_{path}.lora_down.weight": down,
        f"lora_unet_{path}.alpha": np.array(2.0, "f4"),
    }


PARTS = {"a": "m-1.safetensors", "b": "m-2.safetensors"}

# A folder of files, by their names.
MODELS = (
    {
        "model.safetensors": save(
            {
                "layer.0.weight": ones(3, 4),
                "layer.1.weight": ones(2, 5, 1, 2, dtype="f2"),
                "layer.2.weight": ones(2, 3, dtype=ml_dtypes.float8_e4m3fn),
                "layer.3.weight": ones(2, 3, dtype=ml_dtypes.float8_e5m2),
                "ids": ones(3, dtype="i4"),
                "none": ones(0, 2),
            },
            {
                "format": "pt",
                "dataset_chosen_targets": "['ant', 'bee']",
                "base_model": "me/base",
                "ss_tag_frequency": '{"10_cat": {"cat": 12, "sofa": 3}}',
                "modelspec.tags": "a, b",
            },
        ),
        "config.json": b'{"_name_or_path": "me/base", "model_type": "vit"}',
        "README.md": b"---\nbase_model: me/base\ntags:\n- a\n---\n# A model\n",
        "model.json": b'{"activation text": "sks, cat", "sd version": "SD1"}',
    },
    {"model.safetensors": save(kohya("mid_block_attentions_0_proj_in", ones(4, 2), ones(2, 3)))},
    {
        "adapter_model.safetensors": save(PEFT),
        "adapter_config.json": b'{"r": 2, "lora_alpha": 4, "alpha_pattern": {"conv_in": 1}}',
    },
    {
        "model.safetensors.index.json": json.dumps({"weight_map": PARTS}).encode(),
        **{file: save({name: ones(2, 2)}) for name, file in PARTS.items()},
    },
)

# What breaks parsers, and what a header may hold.
FRAGMENTS = (
    *(b"-1", b"0", b"true", b"1e999", b"-0.0", b"NaN", b"[]", b"{}", b"null", b'"', b"\\", b"\0"),
    *(b"18446744073709551616", b"9223372036854775807", b"9" * 5000, b"4611686018427387904"),
    *(rb'"\ud800"', rb"\ud800", b"\xff", b"\xef\xbb\xbf", "\u202e".encode(), b"\x1b[31m", b"\n"),
    *(b'"F64"', b'"BF16"', b'"F4"', b'"F8_E8M0"', b'"C64"', b'"dtype": "F32", ', b'"shape": [], '),
    *(b'"__metadata__": {"a": 1}, ', b'"data_offsets": [0, 0]', b"../../etc/passwd", b"/dev/zero"),
    *(b".lora_up.weight", b".lora_A.weight", b".lora.up.weight", b".alpha", b"lora_unet_"),
    *(b"lora_magnitude_vector", b".processor.to_q_lora.up.weight", b".dora_scale", b"(a+)+$"),
)
# Repeated until they make nearly a megabyte.
REPEATED = (
    *(b"[", b"{", b"[],", b"{},", b'{"":0},', b"0,", b"1e9,", b'"a":0,', b"[[[[]]]],", b'{"a":'),
    *(b" ", b"\\", b'\\"', b'"', b'",', b"0_", b"to_k_", b".a", b".lora_A", b"a", b"\n", b"- a\n"),
    *("é".encode(), "\U0001f600".encode(), rb"\ud800", b"'a',", b"---\n", b"base_model:\n"),
)
SOMEWHERE = st.floats(0, 1, exclude_max=True)


@st.composite
def edits(draw):
    """A function of bytes that damages them."""
    kind = draw(st.sampled_from(["flip", "cut", "double", "insert", "end", "replace", "swell"]))
    where, length = draw(SOMEWHERE), draw(st.integers(1, 40))
    fragment = draw(st.sampled_from(FRAGMENTS))
    repeated = draw(st.sampled_from(REPEATED))
    size = draw(st.sampled_from([100, 3000, 100_000, 900_000]))
    bit = draw(st.integers(0, 7))

    def edit(data: bytes) -> bytes:
        at = int(where * len(data))
        head, tail = data[:at], data[at:]
        match kind:
            case "flip":
                return head + bytes(byte ^ 1 << bit for byte in tail[:1]) + tail[1:]
            case "cut":
                return head + tail[length:]
            case "double":
                return head + tail[:length] + tail
            case "insert":
                return head + fragment + tail
            case "end":
                return head
            case "replace":
                return head + fragment + tail[length:]
        return head + repeated * (size // len(repeated)) + tail

    return edit


def values():
    plain = st.sampled_from([None, True, -1, 0, 1, 2, 16, 2**62, 2**63, 2**70, 1.5, "F32", "a", ""])
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@st.composite
def header_edits(draw):
    """A function of bytes that changes a header as JSON and keeps it well-formed."""
    number, field = draw(st.integers(0, 9)), draw(st.sampled_from(["dtype", "shape", "x", "name"]))
    if draw(st.booleans()):
        field = "data_offsets"
    value = draw(values())
    copies = draw(st.sampled_from([0, 0, 1, 5, 2000]))
    name = draw(st.text(max_size=8)) + draw(st.sampled_from(FRAGMENTS)).decode(errors="ignore")

    def edit(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + size])
            chosen = sorted(header)[number % len(header)]
            entry = header[chosen]
        except (ValueError, ZeroDivisionError, TypeError):
            return data
        if field == "name":
            header[name] = header.pop(chosen)
        elif isinstance(entry, dict):
            entry[field] = value
        for copy in range(copies):
            # Tensors without data, which may be many.
            empty = {"dtype": "F32", "shape": [0, copy], "data_offsets": [0, 0]}
            header[f"{chosen}.{copy}" if copy % 2 else f"{copy}.{chosen}"] = empty
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return edit


def with_true_length(data: bytes) -> bytes:
    """The header's length made true, so that what is damaged is looked at."""
    body = data[8:]
    return max(0, body.rfind(b"}") + 1).to_bytes(8, "little") + body


@st.composite
def folders(draw):
    """The files of a damaged model, under 1 MB together."""
    files = dict(draw(st.sampled_from(MODELS)))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        is_weights = name.endswith(".safetensors")
        damaged = draw(st.one_of(edits(), header_edits()) if is_weights else edits())(files[name])
        if is_weights and draw(st.booleans()):
            damaged = with_true_length(damaged)
        if sum(map(len, files.values())) - len(files[name]) + len(damaged) < 1_000_000:
            files[name] = damaged
    if draw(st.integers(0, 9)) == 0:  # a splice of two models
        one, other = (draw(st.sampled_from(MODELS)) for _ in range(2))
        first, second = (next(v for k, v in m.items() if k[-1] == "s") for m in (one, other))
        at = int(draw(SOMEWHERE) * len(first))
        files["model.safetensors"] = first[:at] + second[at:]
    return files


@profile
@given(folders())
def check(files):
    folder = Path(tempfile.mkdtemp())
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        began = time.process_time()
        outcome = read_all(folder)
        seconds = time.process_time() - began
        tracemalloc.start()  # which takes time
        read_all(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        shutil.rmtree(folder)
    most[outcome] += 1
    most["seconds"], most["bytes"] = max(most["seconds"], seconds), max(most["bytes"], peak)
    assert seconds < SECONDS
    assert peak < PEAK_BYTES


def test_damaged_files_are_read_or_refused_in_one_line():
    check()
    if EXAMPLES:
        print(most)
    assert min(most["opened"], most["refused"]) > 5
