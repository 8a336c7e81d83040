"""State dicts of the PyTorch implementations: their modules and our experts say the same."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import Alignment, from_torch, to_torch
from probex_jax.fitting import build_network
from probex_jax.language import HashingEncoder
from tests.numeric import error

pytestmark = pytest.mark.parity


def torch_module(name, head, rows, columns, n_probes, proj_dim, rep_dim, outputs):
    """A module with the layout of the reference's, its forward as the papers' equations read."""
    import torch
    from torch import nn

    branches = {"xu": (columns, rows), "xxtu": (rows, rows), "xtu": (rows, columns)}
    branches |= {"xtxu": (columns, columns)}
    sides = {"xu": "row", "xxtu": "row2", "xtu": "col", "xtxu": "col2"}

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            if name == "probex":
                self.probes = nn.Linear(n_probes, columns, bias=False)
                self.shared_probe_proj = nn.Linear(rows, proj_dim, bias=False)
                self.per_probe_encoders = nn.Linear(n_probes * proj_dim, rep_dim)
            else:
                for branch, (probed, left) in branches.items():
                    probes = nn.Linear(n_probes, probed, bias=False)
                    setattr(self, f"probes_{branch}", probes)
                    projection = nn.Linear(left, proj_dim, bias=False)
                    setattr(self, f"shared_probe_proj_{sides[branch]}", projection)
                self.concat_all4_encoder = nn.Linear(4 * n_probes * proj_dim, rep_dim)
            if head == "class":
                self.classification_head = nn.Linear(rep_dim, outputs)
            else:
                self.regression_head = nn.Linear(outputs, rep_dim)

        def encode(self, x):
            if name == "probex":
                features = [torch.relu(self.shared_probe_proj((x @ self.probes.weight).mT))]
                return self.per_probe_encoders(features[0].flatten(1))
            probed = {
                "xu": x @ self.probes_xu.weight,
                "xxtu": x @ (x.mT @ self.probes_xxtu.weight),
                "xtu": x.mT @ self.probes_xtu.weight,
                "xtxu": x.mT @ (x @ self.probes_xtxu.weight),
            }
            features = []
            for branch, s in probed.items():
                s = (s - s.mean((1, 2), keepdim=True)) / (s.std((1, 2), keepdim=True) + 1e-8)
                project = getattr(self, f"shared_probe_proj_{sides[branch]}")
                features.append(torch.relu(project(s.mT)).flatten(1))
            return self.concat_all4_encoder(torch.cat(features, 1))

        def forward(self, x, texts=None):
            e = self.encode(x)
            if head == "class":
                return e, self.classification_head(e)
            placed = self.regression_head(texts)
            e, placed = (v / v.norm(dim=-1, keepdim=True) for v in (e, placed))
            return e, e @ placed.T

    return Module()


def conversion(tmp_path, name, head, rows=7, columns=9):
    """A trained-looking state dict of torch's, as an expert of ours and again as a file."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    sizes = (rows, columns, 5, 6, 8, 4 if head == "class" else 32)
    module = torch_module(name, head, *sizes)
    save_file(module.state_dict(), tmp_path / "theirs.safetensors")
    about = {"layer": "a", "tree": "Mini", "classes": ["ant", "bee", "cat", "dog"]}
    if head == "text":
        about["text"] = Alignment(HashingEncoder(32))
    if (rows, columns) == (12, 6):
        about["layout"] = "reference"
    expert = from_torch(tmp_path / "theirs.safetensors", **about)
    to_torch(expert, tmp_path / "ours.safetensors")
    return expert, module, torch_module(name, head, *sizes)


@pytest.mark.parametrize("head", ["class", "text"])
@pytest.mark.parametrize("name", ["probex", "mvprobe"])
def test_state_dicts_go_both_ways(tmp_path, name, head):
    import torch
    from safetensors.torch import load_file

    expert, module, again = conversion(tmp_path, name, head)
    state = load_file(tmp_path / "ours.safetensors")
    again.load_state_dict(state, strict=True)
    for key, value in module.state_dict().items():
        assert torch.equal(state[key], value), key
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, 9)).astype(np.float32)
    texts = rng.normal(size=(3, 32)).astype(np.float32) if head == "text" else None
    inputs = [torch.tensor(array) for array in (x, texts) if array is not None]
    with torch.no_grad():
        e, logits = again(*inputs)
    assert error(expert.encode(x), e.numpy()) <= 1e-5
    assert error(expert.logits(x, texts), logits.numpy()) <= 1e-5


@pytest.mark.parametrize("name", ["probex", "mvprobe"])
def test_a_convolution_in_the_reference_s_layout(tmp_path, name):
    import torch
    from safetensors.torch import save_file

    expert, module, _ = conversion(tmp_path, name, "class", 12, 6)
    kernel = torch.randn(6, 3, 2, 2)
    save_file({"a": kernel}, tmp_path / "model.safetensors")
    with px.open_model(tmp_path / "model.safetensors") as model:
        x = expert.read(model)["a"][None]
    with torch.no_grad():
        e, logits = module(kernel.reshape(-1, kernel.shape[0])[None])
    assert error(expert.encode(x), e.numpy()) <= 1e-5
    assert error(expert.logits(x), logits.numpy()) <= 1e-5


CLOSED_FORM = {"name": "probex", "relu": False, "standardise": True}
CASES = [({"name": "mvprobe"}, "class"), ({"name": "probex", "relu": False}, "class")]
CASES += [(CLOSED_FORM, "class"), (CLOSED_FORM, "none")]


@pytest.mark.parametrize("centre_rank", [0, 2])
@pytest.mark.parametrize(("encoder", "head"), CASES)
def test_the_documented_snippet_does_what_the_module_does_not(tmp_path, encoder, head, centre_rank):
    """docs/formats.md shows how; without it torch refuses the file."""
    import torch
    from safetensors.torch import load_file

    import probex_jax as px

    n_probes, proj_dim, rep_dim = 5, 6, 4 if head == "none" else 8
    encoder = encoder | {"n_probes": n_probes, "proj_dim": proj_dim, "rep_dim": rep_dim}
    tree = {"normalise": "centre", "centre_rank": centre_rank}
    network = build_network(encoder, head, 4, **tree)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, 9)).astype(np.float32)
    variables = {**network.init(jax.random.key(0), jnp.asarray(x))}
    values = {key: rng.normal(size=v.shape) for key, v in variables["tree"].items()}
    variables["tree"] = {key: np.float32(value) for key, value in values.items()}
    variables["tree"]["scale"] = np.float32(0.5)
    card = {"encoder": encoder, "head": head, "layer": "a", "shape": [7, 9], "tree": "Mini"}
    expert = px.Expert(variables, {**card, "classes": ["a", "b", "c", "d"], **tree})
    to_torch(expert, tmp_path / "expert.safetensors")

    name, twice = encoder["name"], 1 if encoder.get("relu", True) else 2
    module = torch_module(name, "class", 7, 9, n_probes, twice * proj_dim, rep_dim, 4)
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    snippet = re.search(r"```python\n(.*?load_state_dict.*?)```", text, re.DOTALL)[1]
    names = {"path": tmp_path / "expert.safetensors", "module": module, "x": torch.tensor(x)}
    with torch.no_grad():
        exec(snippet, names)
        e, logits = names["answer"]
    assert error(expert.encode(x), e.numpy()) <= 1e-5
    assert error(expert.logits(x), logits.numpy()) <= 1e-5

    module = torch_module(name, "class", 7, 9, n_probes, proj_dim, rep_dim, 4)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*probex_jax\.tree\.scale"):
        module.load_state_dict(load_file(names["path"]), strict=True)
