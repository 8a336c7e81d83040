"""A checkpoint by its hub id, from a small hub on localhost."""

import json

import huggingface_hub
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.language import ClipTextEncoder, text_encoder
from tests.hub import Hub


def split_into_shards(folder, weights):
    """Replaces a checkpoint's file by two and their index."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, tensors in enumerate([sorted(weights)[::2], sorted(weights)[1::2]], start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({tensor: weights[tensor] for tensor in tensors}, folder / shard)
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_by_hub_id(tmp_path, toy_clip, monkeypatch):
    root = tmp_path / "hub"
    folders = {name: root / "models" / "toy" / name for name in ("clip", "shards", "pickled")}
    for folder in folders.values():
        toy_clip.write(folder)
    name = ClipTextEncoder.load(str(folders["clip"])).name
    split_into_shards(folders["shards"], toy_clip.random_weights())
    (folders["pickled"] / "model.safetensors").rename(folders["pickled"] / "pytorch_model.bin")
    hub = Hub(root)
    hub.tag("toy/clip", "v1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    with hub.running() as url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        for spec in ("clip@v1", "clip", "shards"):
            assert text_encoder(f"clip:toy/{spec}").name == name
        for spec, message in {
            "toy/pickled": "toy/pickled: no model.safetensors on the hub",
            "no/such": "no/such: .*Repository Not Found",
            "toy/clip@v2": "Revision Not Found",
        }.items():
            with pytest.raises(ProbexError, match=message):
                text_encoder(f"clip:{spec}")
    # Without the hub, what was downloaded is enough.
    huggingface_hub.close_session()
    assert text_encoder("clip:toy/clip").name == name
    with pytest.raises(ProbexError, match="no/such: no such folder, and the hub's client says"):
        text_encoder("clip:no/such")
    assert not hub.bytes_sent("pytorch_model.bin")
    assert not [*(tmp_path / "hf").rglob("pytorch_model.bin")]
