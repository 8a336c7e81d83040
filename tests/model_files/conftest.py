"""Broken safetensors files byte by byte, hub caches with links, a hub on localhost."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.buckets import stores
from tests.hub import IMPATIENT, Hub

collect_ignore = ["fuzz_atheris.py"]  # needs the extra `fuzz`


@pytest.fixture
def write_raw(tmp_path: Path) -> Callable[..., Path]:
    """Writes header (text, bytes or object) and data as they are; the length may be a lie."""

    def write(header, data: bytes = b"", length: int | None = None) -> Path:
        if not isinstance(header, str | bytes):
            header = json.dumps(header)
        header = header.encode() if isinstance(header, str) else header
        prefix = (len(header) if length is None else length).to_bytes(8, "little")
        path = tmp_path / "model.safetensors"
        path.write_bytes(prefix + header + data)
        return path

    return write


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """A hub cache folder, as the hub's client leaves it: files are links into `blobs/`."""
    root = tmp_path / "models--ProbeX--Model-J__SupViT__model_idx_0212"
    snapshot = root / "snapshots" / "0123abcd"
    for folder in (root / "refs", root / "blobs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abcd")
    save_file({"w": np.arange(6, dtype="f4").reshape(2, 3)}, root / "blobs" / "ffee")
    (root / "blobs" / "aabb").write_text('{"model_type": "vit"}')
    (snapshot / "model.safetensors").symlink_to("../../blobs/ffee")
    (snapshot / "config.json").symlink_to("../../blobs/aabb")
    return root


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One server for a module; tests take `hub`."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    with hub.running():
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def hub(running_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub that hf:// means, well-behaved again, with nobody logged in; waits are short."""
    monkeypatch.setenv("HF_ENDPOINT", running_hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(stores, "PATIENCE", IMPATIENT)
    running_hub.behave()
    return running_hub
