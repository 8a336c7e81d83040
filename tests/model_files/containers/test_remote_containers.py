"""Containers on a server: as on the disk, and of large files only what is needed."""

import numpy as np
import pytest

from probex_jax.buckets import write as write_object
from probex_jax.errors import ProbexError
from probex_jax.model_files import Remote, fingerprint, open_model
from tests import s3
from tests.hub import write_repo
from tests.model_files.containers.gguf_files import drawn, write
from tests.model_files.containers.test_damaged import FILES
from tests.model_files.fuzz_seeds import CONTAINERS


@pytest.mark.parametrize("kind", FILES)
def test_as_on_the_disk(hub, kind):
    repo = f"containers/{kind.replace(' ', '-')}"
    folder = write_repo(hub.repositories.root, "models", repo, {})
    (folder / FILES[kind]).write_bytes(CONTAINERS[kind]())
    for address in (f"hf://{repo}", f"hf://{repo}/{FILES[kind]}"):
        with open_model(folder) as local, open_model(address) as remote:
            assert remote.layers == local.layers
            assert fingerprint(remote) == fingerprint(local)
            for name, value in remote.matrices(local.all_layers).items():
                np.testing.assert_array_equal(value, local.matrix(name))


@pytest.mark.parametrize("kind", ["gguf", "hdf5"])
def test_of_a_file_without_a_suffix_the_bytes_tell(hub, kind):
    repo = f"numbers/{kind}"
    folder = write_repo(hub.repositories.root, "models", repo, {})
    for name in ("123", FILES[kind]):
        (folder / name).write_bytes(CONTAINERS[kind]())
    url = f"{hub.url.replace('127.0.0.1', 'localhost')}/{repo}/resolve/main/123"
    with open_model(folder / FILES[kind]) as local, open_model(url) as remote:
        assert remote.layers == local.layers


def test_with_one_shard_of_gguf_come_the_others(hub):
    folder = write_repo(hub.repositories.root, "models", "split/gguf", {})
    names = [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    write(folder / names[0], "llama", {"token_embd.weight": drawn(4, 8)})
    write(folder / names[1], "llama", {"output.weight": drawn(4, 8)})
    url = f"{hub.url.replace('127.0.0.1', 'localhost')}/split/gguf/resolve/main"
    with s3.serving():
        for name in names:
            write_object(f"s3://{s3.BUCKET}/g/{name}", (folder / name).read_bytes())
        for at in ("hf://split/gguf", url, f"s3://{s3.BUCKET}/g"):
            for name in names:
                with open_model(f"{at}/{name}") as m:
                    assert [*m.layers] == ["lm_head.weight", "model.embed_tokens.weight"]


@pytest.mark.parametrize("step", ["", "1/", "1/params/"])
def test_checkpoints_are_read_from_a_disk_only(hub, step):
    files = {f"{step}_METADATA": b"{}", f"{step}a.kernel/0.0": b"x"}
    write_repo(hub.repositories.root, "models", f"orbax/steps{len(step)}", {"a/b.txt": "b"} | files)
    with s3.serving():
        for name, data in files.items():
            write_object(f"s3://{s3.BUCKET}/steps/{name}", data)
        for url in (f"hf://orbax/steps{len(step)}", f"s3://{s3.BUCKET}/steps"):
            with pytest.raises(ProbexError, match=f"^{url}.*Orbax .* disk"):
                open_model(url)
            if step.endswith("s/"):
                with pytest.raises(ProbexError, match=f"^{url}.*/1: .*Orbax .* disk"):
                    open_model(f"{url}/1")


def test_of_a_large_file_one_layer_is_fetched(hub):
    folder = write_repo(hub.repositories.root, "models", "large/gguf", {})
    names = [f"blk.{number}.attn_output.weight" for number in range(2)]
    tensors = {name: drawn(1024, 1024, seed=i) for i, name in enumerate(names)}
    write(folder / "a.gguf", "llama", tensors)
    counted = []
    with open_model("hf://large/gguf", remote=Remote(on_bytes=counted.append)) as m:
        before = sum(counted)
        m.matrix("model.layers.1.self_attn.o_proj.weight")
        assert sum(counted) - before <= 1.02 * 4 * 1024 * 1024
