"""What the models of a tree have in common, taken off: by the network, and before it."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import evaluate
from probex_jax.fitting import Adam, ClosedForm, SeveralClasses, build_network
from probex_jax.fitting.centre import FrozenLayer, centre_rank, normalised
from probex_jax.fitting.sharding import ONE
from probex_jax.matrices import Centred, dense
from probex_jax.sweeps import sweep
from probex_jax.sweeps.source import Source
from tests.numeric import error

pytestmark = pytest.mark.xdist_group("sweeps")

SMALL = {"n_probes": 3, "proj_dim": 4, "rep_dim": 2}
ENCODERS = [{"name": "probex", **SMALL}, {"name": "dense"}]


def wide(x):
    """Multiplied out, in float64."""
    if isinstance(x, px.LowRank):
        return np.asarray(x.up, np.float64) @ np.asarray(x.down, np.float64)
    return np.asarray(x, np.float64)


def tree_variables(store, layer, normalise):
    """As a sweep has them."""
    return Source(store, SeveralClasses(), None, normalise, None, ONE).tree(layer)


@pytest.fixture(scope="module")
def few(toy_lora_store):
    """Two LoRAs: together of a rank so low that layer `a` keeps its centre as factors, not `b`."""
    return toy_lora_store.limited(2)


@pytest.fixture(params=["dense", "factors, dense centre", "factors, centre of factors"])
def case(request, toy_store, few):
    """A store, a layer, and the arrays of its centre."""
    return {
        "dense": (toy_store, "a.weight", {"centre"}),
        "factors, dense centre": (few, "b", {"centre"}),
        "factors, centre of factors": (few, "a", {"centre_up", "centre_down"}),
    }[request.param]


def expected_of(store, layer, split="train"):
    """Centre, scale, and the matrices of a split less that centre and by that scale."""
    train = wide(store.matrices(layer))
    centre = train.mean(axis=0)
    scale = (train - centre).std()
    return centre, scale, (wide(store.matrices(layer, split)) - centre) / scale


def test_centre_and_scale_are_those_of_the_training_matrices(case):
    store, layer, arrays = case
    tree = tree_variables(store, layer, "centre")
    assert set(tree) == arrays | {"scale"}
    assert {np.asarray(value).dtype for value in tree.values()} == {np.dtype("f4")}
    centre, scale, _ = expected_of(store, layer)
    found = tree["centre"] if "centre" in tree else tree["centre_up"] @ tree["centre_down"]
    assert error(found, centre) <= 1e-6
    assert tree["scale"] == pytest.approx(scale, rel=1e-6)


def test_the_centre_is_kept_as_factors_where_that_is_smaller(toy_lora_store, few):
    tree = tree_variables(few, "a", "centre")
    rank = centre_rank(tree)
    # Ranks 2 and 3, with the colour in common.
    assert rank == np.linalg.matrix_rank(wide(few.matrices("a")).mean(axis=0)) == 4
    assert (tree["centre_up"].shape, tree["centre_down"].shape) == ((12, 4), (4, 16))
    assert centre_rank(tree_variables(few, "b", "centre")) == 0
    # Of all LoRAs together the rank is full, and 12 x 16 is less than 12 x (12 + 16).
    assert centre_rank(tree_variables(toy_lora_store, "a", "centre")) == 0
    assert centre_rank({}) == 0


@pytest.mark.parametrize("split", ["train", "test"])
def test_normalised_is_the_dense_difference(case, split):
    store, layer, _ = case
    x = store.matrices(layer, split)
    found = normalised(x, tree_variables(store, layer, "centre"))
    assert isinstance(found, Centred) == isinstance(x, px.LowRank)
    assert isinstance(found, Centred | np.ndarray), "it is on the device"
    _, _, expected = expected_of(store, layer, split)
    assert error(dense(found), expected) <= 1e-5


def test_to_scale_is_to_divide_alone(toy_store, few):
    for store, layer in ((toy_store, "a.weight"), (few, "a")):
        x = wide(store.matrices(layer))
        tree = tree_variables(store, layer, "scale")
        assert set(tree) == {"scale"}
        assert tree["scale"] == pytest.approx(x.std(), rel=1e-6)
        found = normalised(store.matrices(layer), tree)
        assert error(wide(found), x / x.std()) <= 1e-6
        assert tree_variables(store, layer, "none") == {}
        assert normalised(x, {}) is x


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder["name"])
def test_the_network_takes_off_what_it_was_trained_without(case, encoder):
    """With its collection `tree` it says of matrices what the trained one says of normalised."""
    store, layer, _ = case
    tree = tree_variables(store, layer, "centre")
    head = "none" if encoder["name"] == "dense" else "class"
    x = store.matrices(layer, "val")
    trained = build_network(encoder, head, 3)
    read = jax.device_put(normalised(x, tree))
    params = jax.jit(trained.init)(jax.random.key(0), read)["params"]
    network = build_network(encoder, head, 3, normalise="centre", centre_rank=centre_rank(tree))
    made = jax.eval_shape(network.init, jax.random.key(0), x)
    assert {name: leaf.shape for name, leaf in made["tree"].items()} == {
        name: np.shape(value) for name, value in tree.items()
    }
    assert jax.tree.structure(made["params"]) == jax.tree.structure(params)
    apply = jax.jit(network.apply)
    found = apply({"params": params, "tree": tree}, x)
    expected = jax.jit(trained.apply)({"params": params}, read)
    assert error(found, expected) <= 1e-5
    moved = {**tree, "scale": 2 * tree["scale"]}
    assert error(apply({"params": params, "tree": moved}, x), expected) > 1e-2


def test_an_expert_keeps_its_centre(case, tmp_path):
    """Fitted, saved and loaded, it reads matrices as they are; by NumPy."""
    store, layer, arrays = case
    recipe = Adam(epochs=2, eval_every=1)
    settings = {"encoder": {"name": "dense"}, "head": "none", "recipe": recipe}
    sweep(store, tmp_path, normalise="centre", layers=[layer], **settings)
    expert = px.Expert.load(tmp_path)
    tree = expert.variables["tree"]
    assert set(tree) == arrays | {"scale"}
    assert expert.card.members[0].normalise == "centre"
    assert expert.card.members[0].centre_rank == centre_rank(tree)
    _, _, read = expected_of(store, layer, "test")
    params = expert.variables["params"]["encoder"]
    expected = np.einsum("nhw,hwy->ny", read, wide(params["weight"])) + wide(params["bias"])
    found = expert.logits(store.matrices(layer, "test"))
    assert error(found, expected) <= 1e-4
    np.testing.assert_array_equal(evaluate(expert, store)[1], found)


def test_training_leaves_the_centre_as_it_is(toy_store, tmp_path):
    """Steps as long as these would have moved it."""
    recipe = Adam(epochs=3, eval_every=3, batch_size=16, learning_rate=0.5, l2=0.5)
    settings = {"encoder": {"name": "dense"}, "head": "none", "recipe": recipe}
    result = sweep(toy_store, tmp_path, normalise="centre", layers=["a.weight"], **settings)
    expected = tree_variables(toy_store, "a.weight", "centre")
    found = result.expert.variables["tree"]
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    # What was trained on matrices less their centre says of them as they are what it said then.
    score, _ = evaluate(result.expert, toy_store, "val")
    assert result.layers["a.weight"] == pytest.approx(score.value)


def write_zoo(zoo, *weights):
    """A tree of one layer `a`: `up` times `down` if two are given, training models as listed."""
    labels = {}
    for index, arrays in enumerate(weights):
        for split in ("train", "val", "test") if index == 0 else ("train",):
            name = f"{split}{index}"
            (zoo / split / name).mkdir(parents=True)
            file = "model" if len(arrays) == 1 else "pytorch_lora_weights"
            save_file(
                {key: value.astype(np.float32) for key, value in arrays.items()},
                zoo / split / name / f"{file}.safetensors",
            )
            labels[name] = ["xy"[index % 2]]
    (zoo / "labels.json").write_text(json.dumps(labels))
    return zoo


X = np.random.default_rng(0).normal(size=(4, 3))
LORA = {"a.lora.up.weight": X[:, :2], "a.lora.down.weight": X[:2]}


@pytest.mark.parametrize(
    ("normalise", "weights"),
    [
        ("centre", [{"a": X}, {"a": X}]),
        ("scale", [{"a": X}, {"a": X}]),  # its entries differ, its models do not
        ("centre", [LORA, LORA]),
        ("scale", [{"a": np.ones([4, 3])}, {"a": np.ones([4, 3])}]),
        ("centre", [{"a": X}, {"a": X * (1 + 1e-30)}]),
        ("scale", [{"a": X * 1e-42}, {"a": -X * 1e-42}]),
    ],
)
def test_matrices_that_are_all_the_same_are_refused(tmp_path, normalise, weights):
    """The last ones are, as far as float32 can divide by what tells them apart."""
    store = px.pack(px.scan(write_zoo(tmp_path / "Same", *weights)), tmp_path / "s").store
    assert tree_variables(store, "a", "none") == {}
    with pytest.raises(FrozenLayer, match="a: the training matrices are all the same") as told:
        tree_variables(store, "a", normalise)
    assert "\n" not in str(told.value)
    settings = {"encoder": {"name": "dense"}, "head": "none", "recipe": ClosedForm()}
    with pytest.raises(px.ProbexError, match="a: the training matrices are all the same"):
        sweep(store, tmp_path / "w", normalise=normalise, **settings)
