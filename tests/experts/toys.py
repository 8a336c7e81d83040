"""Experts that nobody trained, of one layer each."""

import jax
import jax.numpy as jnp
import numpy as np

import probex_jax as px
from probex_jax.fitting import build_network

TEXT_DIM = 64
CLASSES = ["ant", "bee", "cat"]
PROBEX = {"name": "probex", "n_probes": 3, "proj_dim": 4, "rep_dim": 8}
DENSE = {"name": "dense", "rep_dim": 8}
TEXT = {
    "encoder": f"hashing:{TEXT_DIM}",
    "name": f"hashing-v1-{TEXT_DIM}",
    "dim": TEXT_DIM,
    "template": "a {class}",
    "logit_scale": 7.0,
    "texts": {},
}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_variables(network, shape, *, head="class", seed=0, text_dim=TEXT_DIM):
    """Variables of a network that reads matrices [H, W]."""
    texts = [jnp.ones([1, text_dim])] if head == "text" else []
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.ones([1, *shape]), *texts)
    seeds = iter(range(1000 * seed, 10**6))
    return jax.tree.map(lambda leaf: draw(next(seeds), *leaf.shape), shapes)


def card(layer="a", shape=(6, 5), *, head="class", encoder=PROBEX, **about):
    """The JSON of a card."""
    return {
        "encoder": dict(encoder),
        "head": head,
        "layer": layer,
        "shape": list(shape),
        "tree": "Mini",
        "classes": CLASSES,
        "store_hash": "0123",
        **({"text": TEXT} if head == "text" else {}),
        **about,
    }


def make_expert(layer="a", shape=(6, 5), *, seed=0, normalise="none", centre_rank=0, **about):
    """An expert with random weights; `about` as `card` takes it."""
    found = card(layer, shape, normalise=normalise, centre_rank=centre_rank, **about)
    network = build_network(
        found["encoder"],
        found["head"],
        len(found["classes"]),
        logit_scale=7.0,
        normalise=normalise,
        centre_rank=centre_rank,
    )
    read = shape[::-1] if found.get("layout") == "reference" else shape
    variables = random_variables(network, read, head=found["head"], seed=seed + ord(layer[0]))
    if normalise != "none":
        variables["tree"]["scale"] = np.float32(0.37)
    return px.Expert(variables, found)


def same_variables(one, other):
    """Asserts that two experts have the same variables, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, dict(one.variables), dict(other.variables))


def one_line(told):
    """Asserts that what `pytest.raises` caught is one line."""
    assert "\n" not in str(told.value)
