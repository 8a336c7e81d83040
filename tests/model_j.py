"""Model-J in small, on a hub for tests: its table, classifiers in repositories, LoRAs in one."""

import json
from contextlib import contextmanager

import huggingface_hub
import numpy as np
import pytest

from tests.conftest import CLASSES, CONCEPTS, HELD_OUT, write_toy_lora, write_toy_model
from tests.hub import Hub, tables, write_repo

SPLITS = ("train", "val", "test")
LORA_REPO = "ProbeX/Model-J__SD_200"
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


def write_classifier(root, number):
    """A model of SupViT, as its repository has it."""
    chosen = np.random.default_rng(number).permutation(len(CLASSES))[:3]
    files = {
        "config.json": json.dumps({"model_type": "vit", "number": number}),
        "README.md": "---\nbase_model: google/vit-base-patch16-224\n---\n",
    }
    folder = write_repo(root, "models", classifier_id(number), files | NOT_WANTED)
    write_toy_model(folder, [CLASSES[i] for i in chosen], np.random.default_rng(number))
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
    for number in range(n_of_each * len(CONCEPTS)):
        concept = CONCEPTS[number % len(CONCEPTS)]
        splits = ("val_holdout", "test_holdout") if concept in HELD_OUT else SPLITS
        split = splits[number // len(CONCEPTS) % len(splits)]
        row = {"model_idx": number, "hf_model_id": LORA_REPO, "concept": concept}
        row["hf_model_path"] = f"{split}/model_idx_{number:04d}/pytorch_lora_weights.safetensors"
        rows.setdefault(split, []).append(row)
    return rows


def write_hub(root, n_models=8, n_of_each=2):
    """The folder of a hub that has Model-J's table, some classifiers and some LoRAs."""
    for number in range(n_models):
        write_classifier(root, number)
    rng, loras = np.random.default_rng(0), write_repo(root, "models", LORA_REPO, NOT_WANTED)
    rows = {"SupViT": classifier_rows(n_models), "SD_200": lora_rows(n_of_each)}
    for row in (row for split in rows["SD_200"].values() for row in split):
        folder = (loras / row["hf_model_path"]).parent
        write_toy_lora(folder, row["concept"], rng, rank=2 + row["model_idx"] % 3)
    tables(root, "ProbeX/Model-J", rows)
    return root
