"""Small experts, and folders of models for them to embed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.experts import Expert
from probex_jax.fitting import build_network

LAYER, SHAPE, REP_DIM, TEXT_DIM = "fc.weight", (6, 5), 8, 64


def make_expert(seed=0, *, head="class", tree="Mini"):
    """An expert with random weights; of texts, one that the hashing encoder belongs to."""
    encoder = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": REP_DIM}
    network = build_network(encoder, head, 2)
    texts = [jnp.ones([1, TEXT_DIM])] if head == "text" else []
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.ones([1, *SHAPE]), *texts)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    card = {
        "encoder": encoder,
        "head": head,
        "layer": LAYER,
        "shape": list(SHAPE),
        "tree": tree,
        "classes": ["ant", "bee"],
    }
    if head == "text":
        card["text"] = {
            "encoder": f"hashing:{TEXT_DIM}",
            "name": f"hashing-v1-{TEXT_DIM}",
            "dim": TEXT_DIM,
            "template": "a photo of a {class}",
            "logit_scale": 1.0,
            "texts": {},
        }
    return Expert(variables, card)


def write_model(path, seed, labels=None, *, layer=LAYER, shape=SHAPE):
    """A model file with random weights; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weight = np.random.default_rng(seed).normal(size=shape).astype("f4")
    metadata = None if labels is None else {"dataset_chosen_targets": str(labels)}
    save_file({layer: weight}, path, metadata)
    return path


@pytest.fixture(scope="session")
def expert():
    """An expert of two classes."""
    return make_expert()


@pytest.fixture
def models(tmp_path):
    """A plain folder of five models."""
    for seed in range(5):
        labels = [["ant"], ["bee"], ["ant", "bee"], None, ["ant"]][seed]
        write_model(tmp_path / "models" / f"m{seed}.safetensors", seed, labels)
    return tmp_path / "models"
