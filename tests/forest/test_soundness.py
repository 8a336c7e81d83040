"""What is said of models that differ from their tree's, and of those that do not."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.forest import Forest, grow
from probex_jax.forest.usual import Usual
from probex_jax.forest.usual_layer import Sampled
from probex_jax.matrices import LowRank
from probex_jax.reports import model_card

SHAPES = {"a.weight": (24, 16), "b.weight": (16, 30), "c.weight": (20, 20)}
N_MODELS = 120

_RNG = np.random.default_rng(5)
_ROOT = {name: _RNG.normal(size=shape) for name, shape in SHAPES.items()}
_SIDES = {n: (_RNG.normal(size=(h, 6)), _RNG.normal(size=(6, w))) for n, (h, w) in SHAPES.items()}


def member(seed):
    """A root, what training changed along a few directions, and noise."""
    rng = np.random.default_rng([7, seed])
    rate = 0.05 * np.exp(rng.normal(scale=0.2))
    return {
        name: (
            _ROOT[name]
            + rate * (left @ rng.normal(size=(6, 6)) @ right)
            + 0.2 * rate * rng.normal(size=SHAPES[name])
        ).astype(np.float32)
        for name, (left, right) in _SIDES.items()
    }


def sampled(weights):
    return {name: Sampled.of(x[None], name, x.shape) for name, x in weights.items()}


@pytest.fixture(scope="module")
def usual():
    models = [member(seed) for seed in range(N_MODELS)]
    stacked = {name: np.stack([model[name] for model in models]) for name in SHAPES}
    return Usual.of({n: Sampled.of(x, n, SHAPES[n]) for n, x in stacked.items()}, SHAPES)


def rounded(x):
    step = np.abs(x).max() / 7
    return np.round(x / step) * step


def spiked(x):
    rng = np.random.default_rng(3)
    return x + 0.15 * np.outer(rng.normal(size=len(x)), rng.normal(size=len(x.T)))


PLANTED = {
    "zeros": (lambda x: 0 * x, "all zeros"),
    "constant": (lambda x: 0 * x + 0.5, "all equal"),
    "scaled": (lambda x: 1.5 * x, "size"),
    "other sign": (lambda x: -x, "size"),
    "permuted rows": (lambda x: np.random.default_rng(0).permutation(x), None),
    "a spike": (spiked, None),
    "rounded": (rounded, None),
    "noise": (lambda x: x + 0.2 * np.random.default_rng(0).normal(size=x.shape), None),
    "nearly the root": (lambda x: _ROOT["b.weight"] + 1e-3 * x, None),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_layer_that_was_changed_is_named(usual, kind):
    change, fact = PLANTED[kind]
    weights = member(1000)
    assert usual.judge(sampled(weights))[1] == ()
    weights["b.weight"] = change(weights["b.weight"]).astype(np.float32)
    p_value, found = usual.judge(sampled(weights))
    assert [finding.layer for finding in found] == ["b.weight"]
    if fact is not None:
        assert found[0].fact == fact
    if fact not in ("all zeros", "all equal"):
        assert p_value == 1 / (N_MODELS + 1)
        assert (
            found[0].fact == "random"
            or not found[0].low <= found[0].value <= found[0].high
            or (found[0].beside)
        )


def test_few_models_of_the_tree_are_called_unusual(usual):
    p_values, alarms = zip(
        *[usual.judge(sampled(member(seed))) for seed in range(2000, 2300)], strict=True
    )
    assert sum(map(bool, alarms)) <= 9  # 3 are expected
    assert 0.35 < np.mean(p_values) < 0.65


def test_a_training_model_is_not_called_unusual(usual):
    assert sum(bool(usual.judge(sampled(member(seed)))[1]) for seed in range(N_MODELS)) <= 3


def test_of_factors_the_product_counts_and_not_their_form(usual):
    rng, shape = np.random.default_rng(0), (24, 16)

    def update(scale=1.0):
        up, down = rng.normal(size=(24, 2)), rng.normal(size=(2, 16))
        return LowRank(up[None] * scale, down[None] / scale)

    models = [Sampled.of(update(), "a.weight", shape) for _ in range(N_MODELS)]
    tree = Usual.of({"a.weight": Sampled.joined(models)}, {"a.weight": shape})
    same = update(scale=100.0)
    dense = Sampled.of(np.asarray(same.dense()), "a.weight", shape)
    found = [tree.judge({"a.weight": x})[0] for x in (Sampled.of(same, "a.weight", shape), dense)]
    assert found[0] == pytest.approx(found[1])


def test_of_few_models_only_what_needs_no_comparison_is_said():
    models = {"a.weight": np.stack([member(seed)["a.weight"] for seed in range(8)])}
    tree = Usual.of(
        {n: Sampled.of(x, n, SHAPES[n]) for n, x in models.items()},
        {"a.weight": SHAPES["a.weight"]},
    )
    assert tree.judge(sampled({"a.weight": 9 * member(99)["a.weight"]})) == (None, ())
    _, [finding] = tree.judge(sampled({"a.weight": np.zeros(SHAPES["a.weight"])}))
    assert finding.fact == "all zeros"


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    for seed in range(N_MODELS):
        write(folder / "zoo" / "train" / f"m{seed}.safetensors", member(seed))
    store = px.pack(px.scan(folder / "zoo"), folder / "store").store
    root = write(folder / "root.safetensors", _ROOT)
    grow(folder / "forest", store, root=str(root))
    return Forest.load(folder / "forest")


def write(path, weights):
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = {"d.bias": np.ones(5, np.float32)}
    said = {"dataset_chosen_targets": "['cat']"}
    save_file({**vectors, **{n: np.float32(x) for n, x in weights.items()}}, path, said)
    return path


def test_a_card_says_what_is_unusual_or_that_nothing_is(forest, tmp_path):
    weights = member(1000)
    plain = forest.describe(write(tmp_path / "plain.safetensors", weights))
    assert plain.soundness.findings == ()
    assert (plain.soundness.n_models, plain.soundness.n_layers) == (N_MODELS, 3)
    assert "Nothing" in model_card(plain)
    weights["c.weight"] = 1.3 * weights["c.weight"]
    scaled = forest.describe(write(tmp_path / "scaled.safetensors", weights))
    [finding] = scaled.soundness.findings
    assert (finding.layer, finding.fact, round(finding.value, 1)) == ("c.weight", "size", 1.3)
    section = model_card(scaled).split("## ")[2]
    assert "`c.weight`" in section
    assert "1.3" in section
    assert (
        json.loads(json.dumps(scaled.as_json()))["soundness"]["findings"][0]["layer"] == "c.weight"
    )


@pytest.mark.parametrize("trained", [0.0, 0.01, 1.0])
def test_a_copy_of_the_root_is_told(forest, tmp_path, trained):
    weights = {n: _ROOT[n] + trained * (x - _ROOT[n]) for n, x in member(1000).items()}
    found = forest.describe(write(tmp_path / "copy.safetensors", weights))
    near = [finding for finding in found.soundness.findings if finding.fact == "root"]
    assert len(near) == (trained < 1)
    if near:
        assert near[0].value < 0.02 * near[0].low
        assert "from the root" in model_card(found)


@pytest.mark.parametrize("spoilt", ["b.weight", "d.bias"])
def test_a_model_with_nan_has_a_card_without_predictions(forest, tmp_path, spoilt):
    weights = {"d.bias": np.ones(5), **member(1000)}
    weights[spoilt] = weights[spoilt].copy()
    weights[spoilt].flat[3:5] = np.nan, np.inf
    found = forest.describe(write(tmp_path / "nan.safetensors", weights))
    [finding] = found.soundness.findings
    assert (finding.layer, finding.fact, finding.value) == (spoilt, "not finite", 2)
    assert (found.tree, found.predictions) == ("zoo", ())
    assert f"`{spoilt}`: 2 of" in model_card(found)


def test_a_tree_that_refuses_a_model_names_the_layer_but_says_nothing_of_strangers(
    forest, tmp_path
):
    rng = np.random.default_rng(0)
    weights = member(1000) | {"a.weight": rng.normal(size=SHAPES["a.weight"])}
    found = forest.describe(write(tmp_path / "one.safetensors", weights))
    assert found.tree == ""
    assert [finding.layer for finding in found.soundness.findings] == ["a.weight"]
    strange = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    found = forest.describe(write(tmp_path / "all.safetensors", strange))
    assert (found.tree, found.soundness) == ("", None)


def test_a_layer_that_is_the_same_in_all_models_is_kept_and_its_change_is_named():
    """Statistics of what remains make no sense there, and are no reason to refuse a tree."""
    rng = np.random.default_rng(0)
    same = np.broadcast_to(rng.normal(size=(8, 8)), (120, 8, 8))
    usual = Usual.of({"a": Sampled.of(same, "a", (8, 8))}, {"a": (8, 8)})
    assert all(np.isfinite(array).all() for array in usual.arrays.values())
    again = Usual.from_json(usual.as_json(), usual.arrays)
    assert again.judge({"a": Sampled.of(same[:1], "a", (8, 8))})[1] == ()
    changed = same[:1] + rng.normal(size=(1, 8, 8))
    [finding] = again.judge({"a": Sampled.of(changed, "a", (8, 8))})[1]
    assert finding.layer == "a"
