"""A checkpoint by its hub id, from a small hub on localhost."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager

from safetensors.numpy import save_file

from probex_jax.language import ClipTextEncoder
from tests.hub import Hub

# A process of its own: the hub's client reads its environment when it is imported.
SCRIPT = """
import sys
import probex_jax as px
from probex_jax.language import text_encoder
for line in sys.stdin:
    try:
        print(text_encoder(line.strip()).name, flush=True)
    except px.ProbexError as error:
        print(error, flush=True)
"""


@contextmanager
def process(environment, folder):
    """A function that asks for a text encoder, in another process, for its name or the error."""
    asked = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        cwd=folder,
    )

    def ask(spec):
        asked.stdin.write(f"{spec}\n")
        return asked.stdout.readline().strip()

    with asked:
        yield ask
        asked.stdin.close()


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


def test_by_hub_id(tmp_path, toy_clip):
    root = tmp_path / "hub"
    folders = {name: root / "models" / "toy" / name for name in ("clip", "shards", "pickled")}
    for folder in folders.values():
        name = ClipTextEncoder.load(toy_clip.write(folder)).name
    split_into_shards(folders["shards"], toy_clip.random_weights())
    (folders["pickled"] / "model.safetensors").rename(folders["pickled"] / "pytorch_model.bin")
    hub = Hub(root)
    hub.tag("toy/clip", "v1")
    with ExitStack() as stack:
        with hub.running() as url:
            environment = {
                "HF_ENDPOINT": url,
                "HF_HOME": str(tmp_path / "hf"),
                "JAX_PLATFORMS": "cpu",
            }
            ask = stack.enter_context(process(environment, tmp_path))
            specs = ("clip@v1", "clip", "shards")
            online = {hub_id: ask(f"clip:toy/{hub_id}") for hub_id in specs}
            assert online == dict.fromkeys(online, name)
            no_weights = "toy/pickled: no model.safetensors on the hub; load it with transformers"
            assert ask("clip:toy/pickled").startswith(no_weights)
            assert "Repository Not Found" in ask("clip:no/such")
            assert "Revision Not Found" in ask("clip:toy/clip@v2")
        # Without the hub, what was downloaded is enough.
        assert ask("clip:toy/clip") == name
        assert ask("clip:no/such").startswith("no/such: no such folder, and the hub's client says")
    assert not hub.bytes_sent("pytorch_model.bin")
    assert not [*(tmp_path / "hf").rglob("pytorch_model.bin")]
