"""Families of models with planted weights: nothing is trained, and all edges are known."""

import numpy as np

from probex_jax.lineage.trace import trace
from probex_jax.model_files import open_params
from tests.lineage.copying import saved

UNITS, STREAM, BLOCKS = 48, 24, 3


def fresh(seed):
    """A small model from its own seed: blocks of two matrices and a norm, under 8,192 entries."""
    rng = np.random.default_rng([7, seed])
    found = {}
    for block in range(BLOCKS):
        found[f"layers.{block}.up.weight"] = 0.1 * rng.normal(size=(UNITS, STREAM))
        found[f"layers.{block}.down.weight"] = 0.1 * rng.normal(size=(STREAM, UNITS))
        found[f"layers.{block}.norm.weight"] = 1 + 0.05 * rng.normal(size=STREAM)
    return found


def child(parent, share, seed):
    """A fine-tune: each layer changes by a share of its length, in random directions."""
    rng = np.random.default_rng([8, seed])
    found = {}
    for name, value in parent.items():
        noise = rng.normal(size=value.shape)
        length = np.linalg.norm(value if value.ndim > 1 else value - 1)
        found[name] = value + share * length / np.linalg.norm(noise) * noise
    return found


def increments(like, count, seed=0):
    """Changes of length one in each layer, at right angles to the model and to each other."""
    rng = np.random.default_rng([9, seed])
    found = [{} for _ in range(count)]
    for name, value in like.items():
        if value.ndim < 2:
            continue
        columns = np.column_stack([value.ravel(), rng.normal(size=(value.size, count))])
        directions = np.linalg.qr(columns)[0][:, 1:]
        for number in range(count):
            found[number][name] = directions[:, number].reshape(value.shape)
    return found


def plus(model, increment, share):
    """The model and an increment of a share of each layer's length."""
    return {
        name: value + share * np.linalg.norm(value) * increment[name]
        if name in increment
        else value
        for name, value in model.items()
    }


def mixed(models, shares):
    """The sum of models, each times its share."""
    return {
        name: sum(s * m[name] for s, m in zip(shares, models, strict=True)) for name in models[0]
    }


def permuted(model, seed=0):
    """The same function with the hidden units of each block in another order."""
    rng, found = np.random.default_rng([10, seed]), dict(model)
    for block in range(BLOCKS):
        order = rng.permutation(UNITS)
        found[f"layers.{block}.up.weight"] = model[f"layers.{block}.up.weight"][order]
        found[f"layers.{block}.down.weight"] = model[f"layers.{block}.down.weight"][:, order]
    return found


def in_memory(tensors, dtype="f4"):
    return open_params({name: np.asarray(value, dtype) for name, value in tensors.items()})


def kept(models, folder, dtype="f4"):
    """Files of models by id."""
    return {
        id: saved(
            {name: np.asarray(value, dtype) for name, value in tensors.items()},
            folder / f"{id}.safetensors",
        )
        for id, tensors in models.items()
    }


def traced(paths, **settings):
    return trace([*paths.values()], [*paths], **settings)


def edges(found):
    """Child to the set of its parents."""
    parents = {}
    for edge in found.edges:
        parents.setdefault(edge.child, set()).add(edge.parent)
    return parents


def origins(found):
    return {node.id: node.origin for node in found.nodes}
