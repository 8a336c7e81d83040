"""A forest whose experts predict attributes, and an index that holds them."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax import Expert, Forest, pack, scan
from probex_jax.experts.card_parts import task_json
from probex_jax.fitting import build_network
from probex_jax.fitting.number import Number
from probex_jax.forest import grow
from probex_jax.search import Index, find_models
from tests.forest.conftest import CONV, LAYER, SHAPES, class_expert, root, write_tree

SCORE = {"value": 0.9, "low": 0.8, "high": 0.95, "n_models": 20}
NUMBER, SEVERAL = "learning rate", "what.it's"


def number_expert():
    """An expert that reads a number off one direction of CONV."""
    weight = np.random.default_rng(3).normal(size=[6, 18, 1]).astype("f4")
    bias = -np.einsum("hw,hwy->y", root(1)[CONV].reshape(6, 18), weight).astype("f4")
    card = {
        "encoder": {"name": "dense"},
        "head": "none",
        "layer": CONV,
        "shape": [6, 18],
        "tree": "Ant",
        "classes": [NUMBER],
        "task": task_json(Number(mean=5.0, std=1.0)),
        "calibration": {"temperature": 1.0},
        "conformal": {"coverage": 0.9, "score": 2.0, "n_models": 40, "by_class": {}},
        "metrics": {"test_accuracy": SCORE | {"chance": 0.0}, "test_coverage": SCORE},
    }
    return Expert({"params": {"encoder": {"weight": weight, "bias": bias}}}, card)


def index_expert():
    """An expert whose representations an index holds."""
    encoder = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
    shape = SHAPES[LAYER]
    variables = build_network(encoder, "class", 1).init(jax.random.key(0), jnp.ones([1, *shape]))
    about = {"encoder": encoder, "head": "class", "layer": LAYER, "shape": list(shape)}
    return Expert(variables, about | {"tree": "Ant", "classes": ["one"]})


def told_forest(folder):
    """A forest of a number, classes of which several may hold and one of three, and its models."""
    models = write_tree(folder / "Ant", 1).glob("*/*")
    told = {path.name: {NUMBER: int(path.name[1:]) + 0.5} for path in models}
    (folder / "Ant" / "labels.json").write_text(json.dumps(told))
    store = pack(scan(folder / "Ant"), folder / "store").store
    grow(folder / "forest", store.view(NUMBER), number_expert())
    grow(folder / "forest", store, class_expert("Ant", 1), label_set=SEVERAL)
    card = {"task": {"name": "one_class"}, "calibration": {"temperature": 1.0}}
    card["conformal"] = {"coverage": 0.9, "score": 0.9, "n_models": 40, "by_class": {}}
    one = class_expert("Ant", 1, **card)
    grow(folder / "forest", store, one, label_set="kind")
    return folder


def told_index(folder):
    """The index of these models, to read."""
    made = Index.create_or_open(folder / "index", index_expert())
    models = find_models(folder / "Ant")
    assert made.add_models(models, forest=Forest.load(folder / "forest")).added == len(models)
    made.optimise()
    return Index.open(folder / "index")
