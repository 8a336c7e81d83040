"""Containers on a server: as on the disk, and of large files only what is needed."""

import numpy as np
import pytest

from probex_jax.model_files import Remote, fingerprint, open_model
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
