"""A checkpoint by its hub id, from a small hub on localhost."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from safetensors.numpy import save_file

from probex_jax.language import ClipTextEncoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"

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


def hub(root):
    """A server of the folders in `root/owner/`, as far as the hub's client asks for them."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.partition("?")[0].removeprefix("/api/models").removeprefix("/")
            owner, name, kind, revision, *file = path.split("/")
            folder = root / owner / name
            if not folder.exists():
                self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
            elif revision not in (COMMIT, "main", "v1"):
                self.answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
            elif kind == "revision":
                self.answer(json.dumps({"id": f"{owner}/{name}", "sha": COMMIT}).encode())
            elif kind == "tree":
                self.answer(json.dumps([entry(file) for file in folder.iterdir()]).encode())
            else:
                found = entry(folder / file[0])
                headers = {"ETag": f'"{found["oid"]}"', "X-Repo-Commit": COMMIT}
                self.answer((folder / file[0]).read_bytes(), 200, headers)

        do_HEAD = do_GET

        def answer(self, body, status=200, headers=()):
            self.send_response(status)
            for key, value in {"Content-Length": len(body), **dict(headers)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("localhost", 0), Hub)


def entry(file):
    """A file as the hub lists it."""
    data = file.read_bytes()
    return {
        "type": "file",
        "path": file.name,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }


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
    folders = {name: tmp_path / "hub" / "toy" / name for name in ("clip", "shards", "pickled")}
    for folder in folders.values():
        name = ClipTextEncoder.load(toy_clip.write(folder)).name
    split_into_shards(folders["shards"], toy_clip.random_weights())
    (folders["pickled"] / "model.safetensors").rename(folders["pickled"] / "pytorch_model.bin")
    server = hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {
        "HF_ENDPOINT": f"http://localhost:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "JAX_PLATFORMS": "cpu",
    }
    with process(environment, tmp_path) as ask:
        try:
            online = {hub_id: ask(f"clip:toy/{hub_id}") for hub_id in ("clip@v1", "clip", "shards")}
            assert online == dict.fromkeys(online, name)
            no_weights = "toy/pickled: no model.safetensors on the hub; load it with transformers"
            assert ask("clip:toy/pickled").startswith(no_weights)
            assert "Repository Not Found" in ask("clip:no/such")
            assert "Revision Not Found" in ask("clip:toy/clip@v2")
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        # Without the hub, what was downloaded is enough.
        assert ask("clip:toy/clip") == name
        assert ask("clip:no/such").startswith("no/such: no such folder, and the hub's client says")
    assert not [*(tmp_path / "hf").rglob("pytorch_model.bin")]
