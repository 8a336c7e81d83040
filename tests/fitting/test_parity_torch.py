"""Our training against PyTorch's Adam, from the same start, on the same batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.experts import Recipe, Split, advancing, build_network, training

pytestmark = pytest.mark.parity


def error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["probex", "mvprobe"])
def test_logits_and_ten_steps_agree_with_torch(name):
    import torch

    from experiments.benchmarks import pytorch

    encoder = {"name": name, "n_probes": 5, "proj_dim": 6, "rep_dim": 7}
    network = build_network(encoder, "class", 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(38, 9, 11)).astype(np.float32)
    y = (rng.random([38, 4]) < 0.5).astype(np.float32)
    # Two epochs of five steps: batches of 8, 8, 8, 8 and 6.
    recipe = Recipe(batch_size=8, epochs=2, eval_every=2, l2=1e-2)
    data = Split(jnp.asarray(x), jnp.asarray(y))
    start = training.initial_state(network, recipe, data)
    theirs = pytorch.parameters(start.params, torch.float64)
    logits = pytorch.logits(theirs, torch.tensor(x, dtype=torch.float64)).detach().numpy()
    assert error(network.apply({"params": start.params}, data.x), logits) <= 1e-5

    ours = pytorch.parameters(training.fit(network, recipe, data, data).params, torch.float64)
    orders = np.asarray(advancing.epoch_orders(recipe.seed, 38, 0, recipe.epochs))
    batches = [batch for order in orders for batch in np.split(order, [8, 16, 24, 32])]
    pytorch.steps(theirs, x, y, batches, recipe.learning_rate, recipe.l2)()
    assert ours.keys() == theirs.keys()
    for parameter, expected in theirs.items():
        actual, expected = (p.detach().numpy() for p in (ours[parameter], expected))
        assert error(actual, expected) <= 1e-5, parameter
        before = pytorch.parameters(start.params, torch.float64)[parameter].detach().numpy()
        assert np.linalg.norm(actual - before) > 1e-3, f"{parameter} was not trained"


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

    from probex_jax.experts import Alignment, from_torch, to_torch
    from probex_jax.language import HashingEncoder

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

    import probex_jax as px

    expert, module, _ = conversion(tmp_path, name, "class", 12, 6)
    kernel = torch.randn(6, 3, 2, 2)
    save_file({"a": kernel}, tmp_path / "model.safetensors")
    with px.open_model(tmp_path / "model.safetensors") as model:
        x = expert.read(model)["a"][None]
    with torch.no_grad():
        e, logits = module(kernel.reshape(-1, kernel.shape[0])[None])
    assert error(expert.encode(x), e.numpy()) <= 1e-5
    assert error(expert.logits(x), logits.numpy()) <= 1e-5


@pytest.mark.parametrize("centre_rank", [0, 2])
def test_the_documented_snippet_applies_centre_and_scale(tmp_path, centre_rank):
    """docs/formats.md shows how; without it torch refuses the file."""
    import re
    from pathlib import Path

    import torch

    import probex_jax as px
    from probex_jax.experts import to_torch

    encoder = {"name": "mvprobe", "n_probes": 5, "proj_dim": 6, "rep_dim": 8}
    tree = {"normalise": "centre", "centre_rank": centre_rank}
    network = build_network(encoder, "class", 4, **tree)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, 9)).astype(np.float32)
    variables = {**network.init(training.jax.random.key(0), jnp.asarray(x))}
    values = {key: rng.normal(size=v.shape) for key, v in variables["tree"].items()}
    variables["tree"] = {key: np.float32(value) for key, value in values.items()}
    variables["tree"]["scale"] = np.float32(0.5)
    card = {"encoder": encoder, "head": "class", "layer": "a", "shape": [7, 9], "tree": "Mini"}
    expert = px.Expert(variables, {**card, "classes": ["a", "b", "c", "d"], **tree})
    to_torch(expert, tmp_path / "expert.safetensors")

    module = torch_module("mvprobe", "class", 7, 9, 5, 6, 8, 4)
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    snippet = re.search(r"```python\n(.*?load_state_dict.*?)```", text, re.DOTALL)[1]
    names = {"path": tmp_path / "expert.safetensors", "module": module, "x": torch.tensor(x)}
    with torch.no_grad():
        exec(snippet, names)
        e, logits = names["answer"]
    assert error(expert.encode(x), e.numpy()) <= 1e-5
    assert error(expert.logits(x), logits.numpy()) <= 1e-5
    from safetensors.torch import load_file

    with pytest.raises(RuntimeError, match=r"Unexpected key.*probex_jax\.tree\.scale"):
        module.load_state_dict(load_file(names["path"]), strict=True)
