"""Model-J in small, on a hub for tests: its table, classifiers in repositories, LoRAs in one."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from tests.conftest import CLASSES, CONCEPTS, HELD_OUT, write_toy_lora, write_toy_model
from tests.hub import Hub, tables, write_repo

SPLITS = ("train", "val", "test")
LORA_REPO = "ProbeX/Model-J__SD_200"
SOME = CONCEPTS[:8]
# What no reader opens, and nobody should fetch.
NOT_WANTED = {
    "pytorch_model.bin": b"\x80\x04.",
    "training_args.bin": b"\x80\x04.",
    "sample.png": b"\x89PNG",
    "run.py": "import os",
    "runs/model.safetensors": b"no",
}


@contextmanager
def served(root, **options):
    """The hub of a folder, for the library in this process."""
    hub = Hub(root, **options)
    with hub.running() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", url)
        yield hub
    huggingface_hub.close_session()


def classifier_id(number):
    return f"ProbeX/Model-J__SupViT__model_idx_{number:04d}"


def folder_of(repo):
    return f"models--{repo.replace('/', '--')}"


def labels_of(number):
    """Of two models one after the other all classes."""
    return [*CLASSES[:3]] if number % 2 else [*CLASSES[3:]]


def write_classifier(root, number):
    """A model of SupViT, as its repository has it."""
    files = {
        "config.json": json.dumps({"model_type": "vit", "number": number}),
        "README.md": "---\nbase_model: google/vit-base-patch16-224\n---\n",
    }
    folder = write_repo(root, "models", classifier_id(number), files | NOT_WANTED)
    write_toy_model(folder, labels_of(number), np.random.default_rng(number))
    return folder


def classifier_rows(n_models):
    """Split to rows of the table: half for training; in no order, as the table is in none."""
    rows = {split: [] for split in SPLITS}
    for number in reversed(range(n_models)):
        split = SPLITS[0 if number < n_models / 2 else 1 + number % 2]
        rows[split].append({"model_idx": number, "hf_model_id": classifier_id(number), "lr": 1e-4})
    return rows


def lora_rows(n_of_each=3):
    """Split to rows: of each concept that is held out as many models as of each that is not."""
    rows = {}
    for number in range(n_of_each * len(SOME)):
        concept = SOME[number % len(SOME)]
        splits = ("val_holdout", "test_holdout") if concept in HELD_OUT else SPLITS
        split = splits[number // len(SOME) % len(splits)]
        row = {"model_idx": number, "hf_model_id": LORA_REPO, "concept": concept}
        row["hf_model_path"] = f"{split}/model_idx_{number:04d}/pytorch_lora_weights.safetensors"
        rows.setdefault(split, []).append(row)
    return rows


def write_hub(root, n_models=8, n_of_each=3, format="parquet"):
    """The folder of a hub that has Model-J's table, some classifiers and some LoRAs."""
    for number in range(n_models):
        write_classifier(root, number)
    rng, loras = np.random.default_rng(0), write_repo(root, "models", LORA_REPO, NOT_WANTED)
    rows = {"SupViT": classifier_rows(n_models), "SD_200": lora_rows(n_of_each)}
    for row in (row for split in rows["SD_200"].values() for row in split):
        folder = (loras / row["hf_model_path"]).parent
        write_toy_lora(folder, row["concept"], rng, rank=2 + row["model_idx"] % 3)
    tables(root, "ProbeX/Model-J", rows, format=format)
    return root


# Imports once and forks a child for each line of standard input: how many pieces it may have, and
# how many seconds after them it is killed.
_KILLED = """
import os, signal, sys, time
from huggingface_hub import HfApi, close_session, errors, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session
get_session()
close_session()
OUT = sys.argv[1]
{work}
for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        def on_bytes(count):
            os.write(writing, b".")
            time.sleep({pause_s})
        work(on_bytes)
        os._exit(0)
    os.close(writing)
    pieces, wait_s = line.split()
    for _ in range(int(pieces)):
        os.read(reading, 1)
    time.sleep(float(wait_s))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os.close(reading)
"""


def killed(hub, work, out, *, pieces, pause_s=0.005, seed=0, kills=10):
    """Kills a download again and again, each time somewhere else.

    Args:
      hub: what it downloads from.
      work: Python that defines `work(on_bytes)`, which downloads to OUT.
      out: OUT.
      pieces: at most, that come before a kill.
      pause_s: that each piece of a file takes.
      seed: of the moments.

    Returns:
      How many requests the hub had seen at each kill.
    """
    rng, seen = random.Random(seed), []
    code = _KILLED.format(work=work, pause_s=pause_s)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"HF_ENDPOINT": hub.url, "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(kills):
            moment = f"{rng.randint(1, pieces)} {rng.uniform(0, 4 * pause_s)}"
            print(moment, file=process.stdin, flush=True)
            assert process.stdout.readline() == "-9\n", "it was done before it was killed"
            time.sleep(0.02)  # the hub may have requests that it has not written down
            seen.append(len(hub.log))
        process.stdin.close()
    return seen


@contextmanager
def hearing_interrupts():
    """Ctrl-C raises here; of a job in the background it is ignored otherwise.

    JAX is called back by the garbage collector, and what is raised in there is lost.
    """
    gc.collect()
    gc.disable()
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        gc.enable()


@contextmanager
def interrupted_once(condition):
    """Ctrl-C as soon as the condition holds; what is within ends soon, and so do its threads."""
    before, over, began = {*threading.enumerate()}, threading.Event(), []

    def interrupt():
        while not over.wait(0.01):
            if condition():
                began.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
                return

    with hearing_interrupts():
        threading.Thread(target=interrupt).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
        finally:
            over.set()
    for thread in {*threading.enumerate()} - before:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)
            assert not thread.is_alive()
    assert time.monotonic() - began[0] < 10


def check_read_once(hub, kills, jobs):
    """Of what came before a kill no more requests are repeated than were in flight at it."""
    ranges = [
        (request.file, request.begin, request.begin + request.bytes_sent)
        if request.begin is not None and request.bytes_sent and "datasets/" not in request.file
        else None
        for request in hub.log
    ]
    again = []
    for first, last in zip([0, *kills], [*kills, len(ranges)], strict=True):
        later = [r for r in ranges[last:] if r]
        repeated = [r for r in ranges[first:last] if r and any(_overlap(r, each) for each in later)]
        again.append(len(repeated))
        assert len(set(ranges[first:last]) - {None}) == len([r for r in ranges[first:last] if r])
    assert max(again) <= jobs, again
    assert again[-1] == 0
    return again


def _overlap(one, other):
    return one[0] == other[0] and max(one[1], other[1]) < min(one[2], other[2])
