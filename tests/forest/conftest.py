"""Toy trees of one architecture, told apart by their weights alone, and a forest of some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import committee
from probex_jax.fitting import build_network
from probex_jax.forest import Forest, grow
from tests.conftest import CLASSES

# Of a layer on which models show their classes; of another one, a convolution.
LAYER, CONV = "body.0.weight", "body.1.weight"
SHAPES = {
    LAYER: (12, 16),
    CONV: (6, 2, 3, 3),
    "body.bias": (6,),
    "body.position_embeddings": (1, 9, 8),
}
NOISE = 0.1
TEXT_DIM = 64
SPLITS = ("train",) * 12 + ("val",) * 5 + ("test",) * 5

_DIRECTIONS = 0.1 * np.random.default_rng(7).normal(size=(len(CLASSES), *SHAPES[LAYER]))


def root(seed):
    """Weights that a tree's models descend from; those of positions are no tree's own."""
    rng = np.random.default_rng(1000 + seed)
    weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return weights | {"body.position_embeddings": np.ones(SHAPES["body.position_embeddings"])}


def write_member(path, seed, labels=(), *, of, noise=NOISE, metadata=None, n_head=3, **changes):
    """A model of the tree with root `of`; returns its folder."""
    rng = np.random.default_rng(seed)
    weights = {name: w + noise * rng.normal(size=w.shape) for name, w in root(of).items()}
    weights[LAYER] += _DIRECTIONS[[CLASSES.index(label) for label in labels]].sum(axis=0)
    weights["classifier.weight"] = rng.normal(size=(n_head, 16))
    weights |= changes
    stated = {"dataset_chosen_targets": str(list(labels))} if labels else {}
    path.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(w, np.float32) for name, w in weights.items()}
    save_file(arrays, path / "model.safetensors", stated | (metadata or {}))
    return path


def labels_of(seed):
    return tuple(np.random.default_rng(seed).permutation(CLASSES)[:3].tolist())


def write_tree(folder, of, splits=SPLITS, **settings):
    """A zoo of models of one tree."""
    for number, split in enumerate(splits):
        seed = 100 * of + number
        path = folder / split / f"m{number:02d}"
        write_member(path, seed, labels_of(seed), of=of, **settings)
    return folder


def pack_tree(folder, name, of, **settings):
    """Writes and packs a tree; returns its store."""
    return px.pack(px.scan(write_tree(folder / name, of, **settings)), folder / f"{name}-s").store


def _card(layer, shape, tree, **card):
    return {
        "encoder": {"name": "dense"},
        "head": "none",
        "layer": layer,
        "shape": list(shape),
        "tree": tree,
        "classes": list(CLASSES),
        **card,
    }


def class_expert(tree, of, *, layer=LAYER, shape=SHAPES[LAYER], gain=8.0, **card):
    """An expert that nobody trained: of LAYER it tells the classes, of others nothing."""
    if layer == LAYER:
        lengths_Y = np.sum(_DIRECTIONS**2, axis=(1, 2))
        weight_HWY = np.moveaxis(_DIRECTIONS, 0, -1) * gain / lengths_Y
        bias_Y = -np.einsum("hw,hwy->y", root(of)[LAYER], weight_HWY) - gain / 2
    else:
        weight_HWY, bias_Y = np.zeros([*shape, len(CLASSES)]), np.zeros(len(CLASSES))
    encoder = {"weight": weight_HWY.astype("f4"), "bias": bias_Y.astype("f4")}
    return px.Expert({"params": {"encoder": encoder}}, _card(layer, shape, tree, **card))


def committee_expert(tree, of):
    """The expert of two layers, one of which knows nothing."""
    return committee([class_expert(tree, of), class_expert(tree, of, layer=CONV, shape=(6, 18))])


def text_expert(store, seed=0):
    """An expert of toy LoRAs with random weights, of texts that the hashing encoder embeds."""
    encoder = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
    network = build_network(encoder, "text", 0, logit_scale=5.0)
    x, texts = jnp.ones([1, *store.layers["a"]]), jnp.ones([1, TEXT_DIM])
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, texts)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    text = {
        "encoder": f"hashing:{TEXT_DIM}",
        "name": f"hashing-v1-{TEXT_DIM}",
        "dim": TEXT_DIM,
        "template": "a photo of a {class}",
        "logit_scale": 5.0,
        "texts": {store.seen_classes[0]: "a thing"},
    }
    card = _card("a", store.layers["a"], store.tree, text=text)
    card |= {"encoder": encoder, "head": "text", "classes": list(store.seen_classes)}
    return px.Expert(variables, card)


def one_line(error):
    """Whether an error is one line."""
    return "\n" not in str(error.value)


def probabilities(description):
    """By class, of a description."""
    return {p.label: p.probability for p in description.predictions}


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """A folder of zoos of one architecture: Ant, Bee, and Cow, which the forest lacks."""
    folder = tmp_path_factory.mktemp("trees")
    stores = {name: pack_tree(folder, name, of) for of, name in enumerate(("Ant", "Bee"), start=1)}
    write_tree(folder / "Cow", 3, ("test",) * 4)
    return folder, stores


@pytest.fixture(scope="session")
def forest_path(trees, toy_lora_store, tmp_path_factory):
    """A forest of Ant, Bee and LoRAs; not to be changed by a test."""
    path = tmp_path_factory.mktemp("forests") / "forest"
    _, stores = trees
    grow(path, stores["Ant"], class_expert("Ant", 1), root="me/ant-root")
    grow(path, stores["Bee"], committee_expert("Bee", 2))
    grow(path, toy_lora_store, text_expert(toy_lora_store))
    return path


@pytest.fixture(scope="session")
def forest(forest_path):
    """The forest, loaded."""
    return Forest.load(forest_path)
