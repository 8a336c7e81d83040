"""A program for tests: what training gives on 1, 2 and 8 devices, which are made of one CPU.

With a learning rate of zero the parameters stay what they are, and Adam's first moment is a sum of
the gradients of all batches, each with a weight of its own: what Adam makes of rounding in a
gradient near zero is no part of it.
"""

import json
import sys

import jax
import numpy as np

from probex_jax.fitting import Adam, Devices, SeveralClasses, Split, Texts, build_network
from probex_jax.fitting.group import Group
from probex_jax.fitting.recipe import variants
from probex_jax.matrices import Centred, LowRank

N, N_VAL, LAYERS = 19, 6, 2
# Encoder, matrices, head, and numbers of devices.
QUICK = (("probex", "dense", "class", (8,)),)
CASES = (
    ("probex", "dense", "class", (2, 3)),
    ("mvprobe", "dense", "class", (8,)),
    ("probex", "factors", "class", (8,)),
    ("probex", "centred", "text", (8,)),
)
SMALL = {"n_probes": 4, "proj_dim": 3, "rep_dim": 5}


def data(kind, head, n_models, seed):
    """Models of two layers, in host memory."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    x = draw(LAYERS, n_models, 9, 8)
    if kind != "dense":
        x = LowRank(draw(LAYERS, n_models, 9, 2), draw(LAYERS, n_models, 2, 8))
    if kind == "centred":
        x = Centred(x, draw(LAYERS, 9, 8))
    if head == "text":
        return Split(x, rng.integers(3, size=n_models).astype(np.int32), draw(3, 5))
    return Split(x, (rng.random([n_models, 3]) < 0.5).astype(np.float32))


def trained(network, task, recipes, splits, count):
    """The final state on so many devices."""
    devices = Devices.of(jax.devices()[:count])
    counts = {name: len(split.y) for name, split in splits.items()}
    group = Group(network, task, recipes, LAYERS, counts, devices)
    put = {name: devices.put_all(split) for name, split in splits.items()}
    put["train"] = group.prepared(put["train"])
    return jax.device_get(group.train(group.initial(put["train"]), put))


def difference(a, b):
    """The largest relative difference of two leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.linalg.norm(np.float64(x) - y) / max(np.linalg.norm(x), 1e-30)) for x, y in pairs
    )


def main(cases):
    jax.config.update("jax_num_cpu_devices", 8)
    found = {}
    # Batches of 7, 7 and 5 of 19 models: nothing divides by anything.
    recipe = Adam(batch_size=7, epochs=3, eval_every=2, learning_rate=0.0, l2=0.0)
    recipes = variants(recipe, {"seed": [0, 1]})
    for encoder, kind, head, counts in cases:
        network = build_network({"name": encoder, **SMALL}, head, 3, logit_scale=5.0)
        task = Texts(logit_scale=5.0) if head == "text" else SeveralClasses()
        splits = {"train": data(kind, head, N, 0), "val": data(kind, head, N_VAL, 1)}
        one = trained(network, task, recipes, splits, 1)
        for count in counts:
            state = trained(network, task, recipes, splits, count)
            found[f"{encoder}, {kind}, {head}, {count}"] = {
                "gradients": difference(moments(one), moments(state)),
                "losses": difference(one.loss_E, state.loss_E),
                "accuracies": difference(one.best["val"].accuracy_E, state.best["val"].accuracy_E),
                "size": float(np.linalg.norm(one.loss_E)),
            }
    print(json.dumps(found))


def moments(state):
    """Adam's first moments."""
    return state.opt_state[1][0].mu


if __name__ == "__main__":
    main({"quick": QUICK, "slow": CASES}[sys.argv[1]])
