"""Models of the right architecture that are no models of the tree, and members that still are."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax import Forest, ProbexError, open_model
from probex_jax.experts import Calibration, committee
from probex_jax.forest import grow as grow_tree
from tests.forest.conftest import CLASSES, class_expert

N_LAYERS, SHAPE = 10, (12, 16)
NAMES = [f"block.{n}.weight" for n in range(N_LAYERS)]
NAMES.append("block.position_embeddings")
# What the expert reads; only the first is among the layers that any sketch is made of.
READ = (NAMES[0], NAMES[2], NAMES[-1], "classifier.weight")
ROOT = 0.2 * np.random.default_rng(0).normal(size=(N_LAYERS + 1, *SHAPE))
HEAD = (3, 16)
# Spread of the models, least and most, as a share of the root's; and training models.
KINDS = {"narrow": (0.02, 0.06, 40), "wide": (0.3, 1.4, 60), "small": (0.1, 0.2, 5)}


def member(kind, seed):
    """Weights of a model of the tree."""
    rng = np.random.default_rng(seed)
    least, most, _ = KINDS[kind]
    spread = np.exp(rng.uniform(np.log(least), np.log(most)))
    # Longer training moves weights farther, and does not make them much larger.
    moved = (ROOT + 0.2 * spread * rng.normal(size=ROOT.shape)) / np.sqrt(1 + spread**2)
    return dict(zip(NAMES, moved, strict=True)) | {"classifier.weight": rng.normal(size=HEAD)}


def write(path, weights, labels="['ant']"):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(w, np.float32) for name, w in weights.items()}
    save_file(arrays, path, {"dataset_chosen_targets": labels})
    return path


@pytest.fixture(scope="module", params=KINDS)
def tree(request, tmp_path_factory):
    """The kind of a tree, and a forest of it with an expert."""
    folder = tmp_path_factory.mktemp(request.param)
    for number in range(KINDS[request.param][2]):
        path = folder / "Toy" / "train" / f"m{number}.safetensors"
        write(path, member(request.param, number), str(list(CLASSES)))
    store = px.pack(px.scan(folder / "Toy"), folder / "store").store
    shapes = {name: HEAD if name.startswith("classifier") else SHAPE for name in READ}
    experts = [class_expert("Toy", 1, layer=name, shape=shapes[name]) for name in READ]
    expert = committee(experts)
    expert = expert.with_card(calibration=Calibration(1.0))
    grow_tree(folder / "forest", store, expert)
    return request.param, Forest.load(folder / "forest")


def described(forest, folder, models):
    paths = [write(folder / f"{n}.safetensors", m) for n, m in enumerate(models)]
    return list(forest.describe_all(paths))


def check_unknown(forest, folder, models):
    for found in described(forest, folder, models):
        assert (found.tree, found.predictions, found.expert) == ("", (), None), found.route
        assert found.route.reason
        with open_model(found.path) as model, pytest.raises(ProbexError, match="Toy"):
            forest.check_tree(model, "Toy")


def initialised(how, seed):
    """Weights as a framework's initialiser leaves them."""
    rng = np.random.default_rng(1000 + seed)

    def layer(shape):
        height, width = shape
        draws = rng.normal(size=shape)
        if how == "uniform":
            return rng.uniform(-1, 1, size=shape) / np.sqrt(width)
        if how == "orthogonal":
            return np.linalg.qr(draws.T)[0].T if height <= width else np.linalg.qr(draws)[0]
        if how == "truncated":
            return 0.2 * np.clip(draws, -2, 2)
        return draws * {"normal": 0.2, "small": 0.02, "kaiming": np.sqrt(2 / width)}[how]

    return {name: layer(SHAPE) for name in NAMES} | {"classifier.weight": layer(HEAD)}


@pytest.mark.parametrize(
    "how", ["normal", "small", "uniform", "kaiming", "truncated", "orthogonal"]
)
def test_models_fresh_from_an_initialiser_are_unknown(tree, tmp_path, how):
    _, forest = tree
    check_unknown(forest, tmp_path, [initialised(how, seed) for seed in range(40)])


@pytest.mark.parametrize("what", ["rows", "columns", "both"])
def test_members_with_their_channels_in_another_order_are_unknown(tree, tmp_path, what):
    kind, forest = tree
    rng = np.random.default_rng(0)

    def permuted(w):
        if what != "columns":
            w = w[rng.permutation(len(w))]
        return w if what == "rows" else w[:, rng.permutation(w.shape[1])]

    models = [{n: permuted(w) for n, w in member(kind, 500 + s).items()} for s in range(40)]
    check_unknown(forest, tmp_path, models)


@pytest.mark.parametrize("factor", [0.0, 1e-20, 0.5, 2.0, 1e20])
def test_members_times_a_number_are_unknown(tree, tmp_path, factor):
    kind, forest = tree
    models = [{n: factor * w for n, w in member(kind, 500 + s).items()} for s in range(5)]
    check_unknown(forest, tmp_path, models)


def test_models_whose_lengths_vary_are_known_and_those_times_two_are_not(tmp_path):
    """What they share with the tree has one size, whatever training added to it."""
    rng = np.random.default_rng(0)

    def varied():
        added = np.exp(rng.uniform(-1, 1))
        weights = ROOT + 0.2 * added * rng.normal(size=ROOT.shape)
        return dict(zip(NAMES, weights, strict=True))

    for number in range(40):
        write(tmp_path / "Far" / "train" / f"m{number}.safetensors", varied())
    store = px.pack(px.scan(tmp_path / "Far"), tmp_path / "store").store
    grow_tree(tmp_path / "forest", store)
    forest, models = Forest.load(tmp_path / "forest"), [varied() for _ in range(20)]
    assert {found.tree for found in described(forest, tmp_path, models)} == {"Far"}
    for factor in (0.5, 2.0):
        others = [{name: factor * w for name, w in model.items()} for model in models]
        for found in described(forest, tmp_path, others):
            assert found.tree == ""
            assert "as a whole" in found.route.reason


@pytest.mark.parametrize("layer", READ)
@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e20])
def test_a_layer_that_the_expert_reads_is_checked(tree, tmp_path, layer, factor):
    kind, forest = tree
    weights = member(kind, 500)
    weights[layer] = factor * weights[layer]
    check_unknown(forest, tmp_path, [weights])
    if factor:  # without the layer a model may be too far away as well
        [found] = described(forest, tmp_path, [weights])
        assert layer in found.route.reason


@pytest.mark.parametrize("layer", READ[:3])
def test_a_layer_of_another_origin_is_noticed_where_the_trees_are_alike(tree, tmp_path, layer):
    kind, forest = tree
    if kind == "wide":
        pytest.skip("models differ by as much")
    rng = np.random.default_rng(1)
    weights = member(kind, 500)
    others = [0.2 * rng.normal(size=SHAPE), np.full(SHAPE, 0.2), rng.permutation(weights[layer])]
    check_unknown(forest, tmp_path, [weights | {layer: other} for other in others])


def test_a_layer_that_no_one_reads_may_be_anything(tree, tmp_path):
    kind, forest = tree
    read = {layer.name for layer in forest.trees["Toy"].router.sketch.layers}
    [unread, *_] = [name for name in NAMES if name not in read]
    [found] = described(forest, tmp_path, [member(kind, 500) | {unread: np.zeros(SHAPE)}])
    assert found.tree == "Toy"


@pytest.mark.parametrize("change", ["none", "half precision", "noise", "decay", "another head"])
def test_members_that_were_held_out_are_known(tree, tmp_path, change):
    kind, forest = tree
    rng = np.random.default_rng(1)
    models = [member(kind, 500 + seed) for seed in range(40)]
    for model in models:
        for name, w in model.items():
            if change == "half precision":
                model[name] = w.astype(np.float16)
            elif change == "noise":
                model[name] = w + 0.02 * w.std() * rng.normal(size=w.shape)
            elif change == "decay":
                model[name] = 0.9 * w
    for found in described(forest, tmp_path, models):
        assert found.tree == "Toy", found.route
        assert len(found.predictions) == len(CLASSES)


def test_models_that_have_nothing_in_common_make_no_tree(tmp_path):
    """Each in an order of its own: whatever they share, a stranger does, too."""
    rng = np.random.default_rng(0)
    for number in range(12):
        flat = {name: 1 + 0.1 * rng.normal(size=SHAPE) for name in NAMES}
        write(tmp_path / "Flat" / "train" / f"m{number}.safetensors", flat)
    store = px.pack(px.scan(tmp_path / "Flat"), tmp_path / "store").store
    with pytest.raises(ProbexError, match="unrelated"):
        grow_tree(tmp_path / "forest", store)


def write_lora(path, seed, factor=1.0, base="me/sd"):
    rng = np.random.default_rng(seed)
    factors = {"q.lora.up.weight": (6, 2), "q.lora.down.weight": (2, 5)}
    tensors = {name: rng.normal(size=shape).astype("f4") for name, shape in factors.items()}
    tensors["q.lora.up.weight"] *= np.float32(factor)
    path.mkdir(parents=True)
    metadata = {"concept": "cat", "base_model": base}
    save_file(tensors, path / "pytorch_lora_weights.safetensors", metadata)
    return path


@pytest.mark.parametrize(("factor", "known"), [(1, 1), (0.3, 1), (2, 1), (0, 0), (1e20, 0)])
def test_loras_may_be_small_but_not_nothing(tmp_path, factor, known):
    for number in range(12):
        write_lora(tmp_path / "L" / "train" / f"m{number}", number)
    store = px.pack(px.scan(tmp_path / "L"), tmp_path / "store").store
    grow_tree(tmp_path / "forest", store)
    path = write_lora(tmp_path / "one", 50, factor)
    assert Forest.load(tmp_path / "forest").describe(path).tree == ("L" if known else "")
