"""A program for tests: experts on batches sharded over 8 devices, which are made of one CPU."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from probex_jax import Expert
from probex_jax.fitting import build_network
from probex_jax.matrices import LowRank
from tests.encoders.on_meshes import (
    SMALL,
    H,
    W,
    collectives,
    made,
    matrices,
    prepare,
    shardings,
    tried,
)

# Encoder, matrices, normalisation, type of the axes, mesh.
SLOW = tuple(
    (encoder, kind, normalise, axes, mesh)
    for encoder in ("probex", "mvprobe", "dense")
    for kind in ("dense", "factors")
    for normalise in ("none", "centre", "centre of rank 2")
    for axes, mesh in (("Auto", "one axis"), ("Explicit", "two axes"))
)
QUICK = (
    ("probex", "dense", "centre", "Explicit", "two axes"),
    ("mvprobe", "factors", "centre of rank 2", "Auto", "one axis"),
    ("dense", "factors", "centre", "Explicit", "one axis"),
)
CASES = {"quick": QUICK, "slow": SLOW}


def expert_of(encoder, normalise):
    """An expert with drawn variables, those of its tree too."""
    settings = {"name": encoder} | (SMALL if encoder != "dense" else {})
    head, tree = ("none" if encoder == "dense" else "class"), {"normalise": normalise.split()[0]}
    if normalise.endswith("2"):
        tree["centre_rank"] = 2
    network = build_network(settings, head, 4, **tree)
    variables = dict(jax.jit(network.init)(jax.random.key(0), jnp.ones([1, H, W])))
    if tree["normalise"] != "none":
        rng, drawn = np.random.default_rng(1), variables["tree"]
        variables["tree"] = jax.tree.map(
            lambda leaf: np.float32(rng.uniform(0.5, 1.5, leaf.shape)), drawn
        )
    card = {"encoder": settings, "head": head, "layer": "a", "shape": [H, W], "tree": "Mini"}
    card |= {"classes": list("abcd"), "calibration": {"temperature": 2.0}, **tree}
    return Expert(jax.tree.map(np.asarray, variables), card)


def answers(expert, x):
    """All that an expert says of models."""
    return expert.logits(x), expert.probabilities(x), expert.encode(x)


def by_variables(expert, variables, x):
    """A user's own loss of variables, with its gradient."""
    return jax.value_and_grad(lambda v: jnp.mean(expert.apply(v, x) ** 2))(variables)


def by_expert(expert, x):
    """The same of a whole expert."""
    return jax.value_and_grad(lambda e: jnp.mean(e.probabilities(x) ** 2))(expert)


def largest_error(actual, expected):
    """The largest difference of two leaves, in units of the leaf, or of a hundredth of all.

    MVProbe does not depend on the scale of a tree: the gradient there is rounding.
    """
    expected = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(expected)]
    least = max(map(np.linalg.norm, expected)) / 100
    pairs = zip(jax.tree.leaves(actual), expected, strict=True)
    return max(float(np.linalg.norm(a - e) / max(np.linalg.norm(e), least)) for a, e in pairs)


def measured(encoder, kind, normalise, axes, mesh):
    """One case, against one device."""
    mesh, spec = made(mesh, axes)
    expert, x = expert_of(encoder, normalise), matrices(kind)
    assert isinstance(x, LowRank) == (kind == "factors")
    loss = jax.jit(lambda variables, x: by_variables(expert, variables, x))
    programs = [(jax.jit(answers), expert), (loss, expert.variables), (jax.jit(by_expert), expert)]
    expected = [program(given, x) for program, given in programs]
    of_x = jax.device_put(x, shardings(x, mesh, spec))
    found, kinds = [], []
    for program, given in programs:
        given = jax.device_put(given, NamedSharding(mesh, P()))
        compiled = program.lower(given, of_x).compile()
        kinds.append(collectives(compiled))
        found.append(compiled(given, of_x))
    eager = expert.logits(of_x)
    return {
        "forward": kinds[0],
        "backward": sorted({*kinds[1], *kinds[2]}),
        "sharded": all(
            each.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
            for each in (*found[0], eager)
        ),
        "error": max(map(largest_error, [*found, eager], [*expected, expected[0][0]])),
    }


def main(which):
    prepare()
    print(json.dumps({"; ".join(case): tried(measured, *case) for case in CASES[which]}))


if __name__ == "__main__":
    main(sys.argv[1])
