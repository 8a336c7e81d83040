"""Committees: what they answer, how they are chosen, kept and refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import (
    Alignment,
    Recipe,
    Ridge,
    best_committee,
    build_network,
    committee,
    evaluate,
    load_experts,
    sweep,
)
from probex_jax.experts.calibration import FACTORS
from probex_jax.language import HashingEncoder
from probex_jax.model_files import byte_ranges
from probex_jax.search import Subject, find_models, measure
from probex_jax.search.embedding import represented
from tests.conftest import CLASSES
from tests.end_to_end import warm
from tests.experts.test_sweeps import KILLED

pytestmark = pytest.mark.xdist_group("sweeps")

SHAPES = {"a": (6, 5), "b": (4, 7), "c": (5, 5)}
ENCODER = {"name": "probex", "n_probes": 3, "proj_dim": 4, "rep_dim": 8}
DENSE = {"name": "dense", "rep_dim": 8}
TEXT_DIM = 64


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_expert(layer, *, head="class", seed=0, encoder=ENCODER, **card):
    """An expert with random weights on one layer."""
    about = (
        {}
        if head != "text"
        else {
            "text": {
                "encoder": f"hashing:{TEXT_DIM}",
                "name": f"hashing-v1-{TEXT_DIM}",
                "dim": TEXT_DIM,
                "template": "a photo of a {class}",
                "logit_scale": 7.0,
                "texts": {},
            }
        }
    )
    network = build_network(encoder, head, 3, logit_scale=7.0)
    texts = [jnp.ones([1, TEXT_DIM])] if head == "text" else []
    x = jnp.ones([1, *SHAPES[layer]])
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, *texts)
    keys = iter(range(100 * seed + ord(layer), 9999))
    variables = jax.tree.map(lambda leaf: draw(next(keys), *leaf.shape), shapes)
    return px.Expert(
        variables,
        {
            "encoder": dict(encoder),
            "head": head,
            "layer": layer,
            "shape": list(SHAPES[layer]),
            "tree": "Mini",
            "classes": ["ant", "bee", "cat"],
            "store_hash": "0123",
            "metrics": {"val_accuracy": 0.5},
            **about,
            **card,
        },
    )


X = {layer: draw(number, 5, *shape) for number, (layer, shape) in enumerate(SHAPES.items())}
WEIGHTS = [3.0, 1.0, 4.0]


@pytest.fixture(scope="module")
def experts():
    return [make_expert(layer) for layer in SHAPES]


@pytest.fixture(scope="module")
def of_texts():
    return [make_expert(layer, head="text", encoder=DENSE) for layer in SHAPES]


def test_logits_are_the_weighted_mean(experts):
    logits = [np.asarray(expert.logits(X[layer])) for layer, expert in zip(X, experts, strict=True)]
    for weights in (None, WEIGHTS):
        found = committee(experts, weights).logits(X)
        expected = np.average(logits, axis=0, weights=weights)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    backwards = committee(experts[::-1], WEIGHTS[::-1])
    np.testing.assert_allclose(backwards.logits(X), found, rtol=1e-5, atol=1e-5)
    assert list(backwards.layers) == ["c", "b", "a"]


def test_representations_stand_side_by_side(experts):
    """Each by the root of its weight, so that inner products add up as logits do."""
    both = committee(experts, WEIGHTS)
    parts = [
        (weight / 8) ** 0.5 * np.asarray(expert.encode(X[layer]))
        for weight, layer, expert in zip(WEIGHTS, X, experts, strict=True)
    ]
    found = both.encode(X)
    assert found.shape == (5, both.rep_dim) == (5, 24)
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-5, atol=1e-6)


def test_cosines_with_texts_are_the_logits(of_texts):
    """As a search needs them: of one vector for a model, and one for a text."""
    both, sentences = committee(of_texts, WEIGHTS), ["an ant", "a bee", "some cats", "x"]
    texts = HashingEncoder(TEXT_DIM).encode(sentences)
    e, places = np.asarray(both.encode(X)), np.asarray(both.place(sentences))
    assert places.shape == (4, 24)
    for vectors in (e, places):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    logits = both.logits(X, texts)
    np.testing.assert_allclose(7.0 * e @ places.T, logits, rtol=1e-4, atol=1e-4)
    single = [
        np.asarray(expert.logits(X[layer], texts))
        for layer, expert in zip(X, of_texts, strict=True)
    ]
    np.testing.assert_allclose(
        logits, np.average(single, axis=0, weights=WEIGHTS), rtol=1e-4, atol=1e-5
    )


def test_members_may_differ_in_encoder_and_normalisation():
    plain = make_expert("a")
    dense = make_expert("b", encoder={"name": "dense", "rep_dim": 2})
    centred = make_expert("c")
    centre = {"centre": draw(8, *SHAPES["c"]), "scale": np.float32(2.0)}
    centred = replace(
        centred,
        variables={**centred.variables, "tree": centre},
        card={**centred.card, "normalise": "centre", "centre_rank": 0},
    )
    both = committee([plain, dense, centred])
    expected = [plain.logits(X["a"]), dense.logits(X["b"])]
    expected.append(make_expert("c").logits((X["c"] - centre["centre"]) / 2.0))
    np.testing.assert_allclose(both.logits(X), np.mean(expected, axis=0), rtol=1e-5, atol=1e-5)
    assert both.rep_dim == 8 + 2 + 8
    assert "encoder" not in both.card, "they agree on none"


def test_the_card_says_what_the_members_share_and_what_not(experts):
    both = committee(experts, WEIGHTS, note="mine")
    assert both.card["tree"] == "Mini"
    assert both.card["note"] == "mine"
    assert both.card["encoder"] == ENCODER
    assert not {"layer", "shape", "metrics"} & both.card.keys()
    assert [member["layer"] for member in both.card["members"]] == ["a", "b", "c"]
    assert [member["weight"] for member in both.card["members"]] == [3 / 8, 1 / 8, 4 / 8]
    assert both.card["members"][1]["metrics"] == {"val_accuracy": 0.5}
    assert both.reading == "3 layers"
    assert both.layers == SHAPES


def test_a_committee_of_one_is_that_expert(experts):
    one = committee(experts[:1], [17.0], note="mine")
    assert one.card == {**experts[0].card, "note": "mine"}
    np.testing.assert_array_equal(one.logits(X["a"]), experts[0].logits(X["a"]))
    np.testing.assert_array_equal(one.logits(X), experts[0].logits(X["a"]))
    assert one.reading == "a"


@pytest.mark.parametrize("head", ["class", "text"])
def test_a_committee_is_kept_as_one_expert(head, experts, of_texts, tmp_path):
    both = committee(experts if head == "class" else of_texts, WEIGHTS)
    both.save(tmp_path / "e")
    loaded = px.Expert.load(tmp_path / "e")
    assert loaded.card == both.card
    assert loaded.hash == both.hash
    np.testing.assert_array_equal(loaded.encode(X), both.encode(X))
    texts = [HashingEncoder(TEXT_DIM).encode(["x", "y"])] if head == "text" else []
    np.testing.assert_array_equal(loaded.logits(X, *texts), both.logits(X, *texts))


def test_the_hash_is_of_members_order_and_weights(experts):
    others = [make_expert("a", seed=1), *experts[1:]]
    made = [
        committee(experts),
        committee(experts[::-1]),
        committee(experts, WEIGHTS),
        committee(others),
        committee(experts[:2]),
    ]
    assert len({expert.hash for expert in made}) == len(made)
    assert committee(experts, [2, 2, 2]).hash == made[0].hash


def changed(both, **members):
    """With a member's card changed: number to what is put in, or None to take it off."""
    cards = [dict(card) for card in both.card["members"]]
    for key, value in members.items():
        number, field = int(key[1]), key[3:]
        cards[number] = {**cards[number], field: value}
        if value is None:
            del cards[number][field]
    return replace(both, card={**both.card, "members": cards})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"m1_weight": None}, r"its card has no members\.1\.weight \(float\)"),
        ({"m1_weight": "0.1"}, r"its card has no members\.1\.weight \(float\)"),
        ({"m1_weight": -0.5}, r"members\.1\.weight on the card is -0\.5"),
        ({"m2_weight": float("nan")}, r"members\.2\.weight on the card is nan"),
        ({"m1_layer": None}, r"its card has no members\.1\.layer \(str\)"),
        ({"m1_layer": "a"}, "two of its members read the same layer"),
        ({"m2_encoder": None}, r"its card has no members\.2\.encoder \(dict\)"),
        ({"m0_shape": [6]}, "shape on the card is"),
        ({"m0_shape": [6, 4]}, "parameters do not fit"),
        ({"m0_encoder": {**ENCODER, "n_probes": 4}}, "parameters do not fit"),
        ({"m0_encoder": {"name": "nothing"}}, r"encoder\.name"),
    ],
)
def test_a_card_of_members_that_lies_is_refused(experts, tmp_path, members, message):
    changed(committee(experts), **members).save(tmp_path / "e")
    with pytest.raises(px.ProbexError, match=message) as told:
        px.Expert.load(tmp_path / "e")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("members", [[], "all", [3], {"0": {}}])
def test_members_that_are_none_are_refused(experts, tmp_path, members):
    both = committee(experts)
    replace(both, card={**both.card, "members": members}).save(tmp_path / "e")
    with pytest.raises(px.ProbexError, match="no expert: its card has no") as told:
        px.Expert.load(tmp_path / "e")
    assert "\n" not in str(told.value)


def test_a_missing_member_is_one_line(experts, tmp_path):
    both = committee(experts)
    for name, variables, message in (
        ("missing", {"0": both.variables["0"], "2": both.variables["2"]}, "member 1 has no"),
        ("strange", {**both.variables, "1": both.variables["0"]}, "parameters do not fit"),
    ):
        replace(both, variables=variables).save(tmp_path / name)
        with pytest.raises(px.ProbexError, match=message):
            px.Expert.load(tmp_path / name)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"tree": "Other"}, "the experts of a and b differ in tree"),
        ({"classes": ["ant", "bee"]}, "differ in classes"),
        ({"classes": ["bee", "ant", "cat"]}, "differ in classes"),
        ({"head": "none"}, "differ in head"),
        ({"store_hash": "4567"}, "differ in store_hash"),
        ({"text": {"name": "x"}}, "differ in text"),
    ],
)
def test_experts_that_do_not_belong_together_are_refused(experts, others, message):
    other = replace(experts[1], card={**experts[1].card, **others})
    with pytest.raises(px.ProbexError, match=message) as told:
        committee([experts[0], other])
    assert "\n" not in str(told.value)


def test_wrong_numbers_of_experts_layers_and_weights_are_refused(experts):
    with pytest.raises(px.ProbexError, match="no experts"):
        committee([])
    for twice in ([experts[0], make_expert("a", seed=1)], [committee(experts), make_expert("a")]):
        with pytest.raises(px.ProbexError, match="each expert must read one layer, another than"):
            committee(twice)
    for weights in ([1.0], [1.0, 0.0, 1.0], [1, -1, 1], [1, float("nan"), 1], [1, float("inf"), 1]):
        with pytest.raises(px.ProbexError, match="3 experts need as many weights > 0"):
            committee(experts, weights)


def test_wrong_matrices_are_one_line(experts):
    both = committee(experts)
    for x, message in (
        (X["a"], "the expert reads 3 layers: give their matrices by layer"),
        ({"a": X["a"], "c": X["c"]}, "no matrices of layer b"),
        ({**X, "b": X["b"][:4]}, "layer b: matrices of 4 models, of another layer there are 5"),
        ({**X, "b": X["a"]}, r"layer b reads matrices of 4x7, got shape \(5, 6, 5\)"),
        ({**X, "a": X["a"][:0]}, "no matrices: expected one or more"),
    ):
        for answer in (both.logits, both.encode):
            with pytest.raises(px.ProbexError, match=message) as told:
                answer(x)
            assert "\n" not in str(told.value)


def write_models(folder, n=5):
    """Models with all layers, and one that lacks `b`."""
    folder.mkdir()
    for number in range(n):
        weights = {layer: X[layer][number] for layer in X}
        save_file(weights, folder / f"m{number}.safetensors")
    save_file({"a": X["a"][0], "c": X["c"][0]}, folder / "lacking.safetensors")
    return folder


def test_a_model_is_opened_once_for_all_layers(of_texts, tmp_path, monkeypatch):
    folder, opened = write_models(tmp_path / "models"), []
    real = byte_ranges.os.open
    monkeypatch.setattr(
        byte_ranges.os, "open", lambda path, *rest: opened.append(str(path)) or real(path, *rest)
    )
    both, path = committee(of_texts), folder / "m3.safetensors"
    [vector] = represented(both, [path])
    assert opened.count(str(path)) == 1
    np.testing.assert_allclose(vector, both.encode(X)[3], rtol=1e-4, atol=1e-5)
    with px.open_model(path) as model:
        read = both.read(model)
    assert opened.count(str(path)) == 2
    assert list(read) == list(X)
    for layer in X:
        np.testing.assert_array_equal(read[layer], X[layer][3])
    with (
        px.open_model(folder / "lacking.safetensors") as model,
        pytest.raises(px.ProbexError, match="no layer 'b'"),
    ):
        both.read(model)


def test_a_committee_is_indexed_and_searched_by_text_and_example(of_texts, tmp_path):
    folder, both = write_models(tmp_path / "models"), committee(of_texts, WEIGHTS)
    made = px.Index.create_or_open(tmp_path / "index", both)
    done = made.add_models(find_models(folder))
    assert (done.added, list(done.failed)) == (5, ["lacking"])
    assert "no layer 'b'" in done.failed["lacking"]
    sentence = "a photo of an ant"
    logits = np.asarray(both.logits(X, HashingEncoder(TEXT_DIM).encode([sentence])))[:, 0]
    for index in (made, px.Index.open(tmp_path / "index")):
        hits = index.search(query=sentence)
        assert [hit.id for hit in hits] == [f"m{n}" for n in np.argsort(-logits)]
        np.testing.assert_allclose(
            [7.0 * hit.similarity for hit in hits], np.sort(logits)[::-1], rtol=1e-3, atol=1e-4
        )
    e = np.asarray(both.encode(X))
    hits = made.search(like=folder / "m2.safetensors", k=3)
    assert [hit.id for hit in hits] == [f"m{n}" for n in np.argsort(-(e @ e[2])) if n != 2][:3]
    with pytest.raises(px.ProbexError, match="3 layers"):
        px.Index.create_or_open(tmp_path / "index", committee(of_texts))


# What is chosen: the columns are classes, the rows models.
Y = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def answers(*rights, sure=1.0):
    """Logits so sure of each entry, right or wrong as listed."""
    return sure * np.where(np.reshape(rights, Y.shape) > 0, 1, -1) * (2 * Y - 1)


ALL, FIVE = (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 0)
FOUR = (1, 1, 1, 1, 0, 0)


def test_layers_go_by_accuracy_then_by_loss():
    logits = {
        "four, timid": answers(*FOUR, sure=0.1),
        "four, sure": answers(*FOUR, sure=9.0),
        "all, timid": answers(*ALL, sure=0.1),
        "all, sure": answers(*ALL, sure=2.0),
    }
    assert best_committee(logits, Y, most=1) == ("all, sure",)
    del logits["all, sure"]
    assert best_committee(logits, Y, most=1) == ("all, timid",)
    # Of equal accuracies the lower loss. Stretched as is best, nine times as sure is not worse.
    del logits["all, timid"], logits["four, sure"]
    logits["four, surer"] = answers(*FOUR, sure=0.9)
    logits["four, sure of what is wrong"] = answers(*FOUR) * np.where(answers(*FOUR) > 0, 1, 9)
    assert best_committee(logits, Y, most=1)[0] in ("four, timid", "four, surer")


def test_the_first_k_of_the_lowest_loss_are_chosen():
    """By NumPy, on random answers: not the k of the highest accuracy, nor the best pair."""
    rng, differs, stretched = np.random.default_rng(0), 0, 0
    for _ in range(20):
        y = (rng.random((12, 4)) < 0.5).astype(float)
        logits = {
            f"l{i}": rng.uniform(0.1, 4)
            * ((2 * y - 1) * rng.uniform(0, 1) + rng.normal(size=y.shape))
            for i in range(6)
        }

        def loss(z, y=y):
            return np.mean(np.logaddexp(0, z) - y * z)

        def best_loss(z, y=y):
            return min(loss(factor * z, y) for factor in FACTORS)

        def accuracy(z, y=y):
            return np.mean((z > 0) == (y > 0.5))

        order = sorted(logits, key=lambda name: (-accuracy(logits[name]), best_loss(logits[name])))
        for most in (1, 3, 6):
            means = [np.mean([logits[n] for n in order[:k]], axis=0) for k in range(1, most + 1)]
            k = 1 + int(np.argmin([best_loss(z) for z in means]))
            assert best_committee(logits, y, most) == tuple(order[:k])
            differs += k not in (1, most)
            stretched += k != 1 + int(np.argmin([loss(z) for z in means]))
    assert differs, "all or one would have done"
    assert stretched, "the loss of the logits as they are would have done"


def test_ties_go_to_the_layer_named_first_and_to_the_fewest():
    same = answers(*FIVE)
    for names in (("a", "b", "c"), ("c", "b", "a")):
        assert best_committee(dict.fromkeys(names, same), Y, most=3) == (names[0],)


def test_a_committee_of_texts_is_chosen_by_what_is_told_rightly():
    y = np.array([0, 1, 2])
    wrong = np.eye(3)[[1, 1, 2]]
    logits = {"wrong": 5 * wrong, "right": 0.1 * np.eye(3), "other": 5 * np.eye(3)[[0, 1, 0]]}
    assert best_committee(logits, y, most=1) == ("right",)
    # With the others it would no longer be sure of all, however stretched.
    assert best_committee(logits, y, most=3) == ("right",)


# Whole trainings.
RIDGE = {"encoder": {"name": "dense"}, "head": "none", "recipe": Ridge((0.1, 1.0))}


def write_tree(zoo, *, blank_test=False):
    """Models in which three layers carry the classes, each a little, and one does not."""
    for index in range(60):
        split = ("train", "val", "test")[(index >= 36) + (index >= 48)]
        rng = np.random.default_rng(index)
        chosen = rng.permutation(len(CLASSES))[:3]
        signal = 0.0 if blank_test and split == "test" else 0.35
        weights = {"b.weight": rng.normal(size=(12, 16))}
        for number, layer in enumerate(("a.weight", "d.weight", "e.weight")):
            directions = np.random.default_rng([number]).normal(size=(len(CLASSES), 12, 16))
            weights[layer] = signal * directions[chosen].sum(0) + rng.normal(size=(12, 16))
        folder = zoo / split / f"m{index:02d}"
        folder.mkdir(parents=True)
        arrays = {name: value.astype(np.float32) for name, value in weights.items()}
        labels = str([CLASSES[i] for i in chosen])
        save_file(arrays, folder / "model.safetensors", {"dataset_chosen_targets": labels})
    return zoo


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committee")
    return px.pack(px.scan(write_tree(folder / "Toy")), folder / "store").store


@pytest.fixture(scope="module")
def swept(tree, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swept")
    return workdir, sweep(tree, workdir, committee=3, **RIDGE)


def by_layer(workdir, store, split):
    """What the experts of all layers say of a split."""
    found = {}
    for layer in store.layers:
        expert = px.Expert.load(workdir / "layers" / layer)
        found[layer] = np.asarray(expert.logits(store.matrices(layer, split)))
    return found


def test_a_sweep_keeps_the_best_committee(swept, tree):
    workdir, result = swept
    expected = best_committee(by_layer(workdir, tree, "val"), tree.targets("val"), 3)
    assert 1 < len(expected) <= 3
    assert tuple(result.expert.layers) == expected
    answers = by_layer(workdir, tree, "test")
    together = np.mean([answers[layer] for layer in expected], axis=0)
    score, logits = evaluate(px.Expert.load(workdir), tree)
    np.testing.assert_allclose(logits, together, rtol=1e-5, atol=1e-5)
    right = (together > 0) == (tree.targets("test") > 0.5)
    assert result.test.value == score.value == pytest.approx(right.mean())


def test_metrics_tell_of_layers_committee_and_test(swept, tree):
    workdir, result = swept
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["layers"] == {"expert": list(result.expert.layers)}
    assert metrics["layer"] == next(iter(result.expert.layers))
    assert metrics["val_accuracy_by_layer"].keys() == tree.layers.keys()
    answers = by_layer(workdir, tree, "val")
    targets = tree.targets("val") > 0.5
    for layer, accuracy in metrics["val_accuracy_by_layer"].items():
        assert accuracy == pytest.approx(np.mean((answers[layer] > 0) == targets))
    together = np.mean([answers[layer] for layer in result.expert.layers], axis=0)
    assert metrics["committee_accuracy"] == pytest.approx(np.mean((together > 0) == targets))
    assert metrics["test_accuracy"]["value"] == result.test.value
    assert metrics["encoder"] == {"name": "dense"}
    card = result.expert.card["metrics"]
    of_layers = {"val_accuracy_by_layer", "val_chance"}
    assert card.keys() == {"committee_accuracy", "test_accuracy"} | of_layers


def test_the_choice_never_sees_the_test_split(swept, tree, tmp_path):
    """Other test models, in which no layer carries anything: the same committee, to the bit."""
    zoo = write_tree(tmp_path / "Toy", blank_test=True)
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    assert store.hash != tree.hash
    result, (_, original) = sweep(store, tmp_path / "w", committee=3, **RIDGE), swept
    assert list(result.expert.layers) == list(original.expert.layers)
    for one, other in zip(
        jax.tree.leaves(result.expert.variables),
        jax.tree.leaves(original.expert.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    metrics = result.metrics
    assert metrics["committee_accuracy"] == original.metrics["committee_accuracy"]
    assert result.test.value < original.test.value - 0.1


def test_the_most_layers_are_respected_and_part_of_the_config(swept, tree, tmp_path):
    workdir, _ = swept
    for most in (1, 2):
        result = sweep(tree, tmp_path / str(most), committee=most, **RIDGE)
        expected = best_committee(by_layer(workdir, tree, "val"), tree.targets("val"), most)
        assert tuple(result.expert.layers) == expected
    with pytest.raises(px.ProbexError, match="committee is 3 there, 2 here"):
        sweep(tree, workdir, committee=2, **RIDGE)
    for wrong in (0, True, 2.0, "all"):
        with pytest.raises(px.ProbexError, match=r"committee: .* is not a whole number >= 1"):
            sweep(tree, tmp_path / "w", committee=wrong, **RIDGE)
    assert not (tmp_path / "w").exists()


def test_a_killed_sweep_of_a_committee_goes_on_to_the_same_bits(swept, tree, tmp_path):
    """Killed when the second layer of four was fitted, but not yet kept."""
    workdir, _ = swept
    script = KILLED.replace('head="class"', 'head="none", committee=3').replace("Recipe", "Ridge")
    program = script.format(
        kill=2,
        encoder=RIDGE["encoder"],
        recipe=RIDGE["recipe"],
        store=str(tree.path),
        workdir=str(tmp_path),
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (-9, "a.weight 1\nb.weight 1\n")
    assert [folder.name for folder in (tmp_path / "layers").glob("*/expert")] == ["expert"]
    resumed = sweep(tree, tmp_path, committee=3, **RIDGE)
    for name in ("metrics.json", "config.json"):
        assert (tmp_path / name).read_text() == (workdir / name).read_text()
    assert resumed.expert.hash == px.Expert.load(workdir).hash


def test_a_choice_that_was_interrupted_is_made_again(swept, tree, tmp_path, monkeypatch):
    """All layers are finished; nothing is trained, and the same is chosen."""
    workdir, result = swept
    shutil.copytree(workdir, tmp_path / "w")
    (tmp_path / "w" / "metrics.json").unlink()
    monkeypatch.setattr("probex_jax.experts.sweeps.solve", None)
    again = sweep(tree, tmp_path / "w", committee=3, **RIDGE)
    assert again.metrics == result.metrics
    assert again.expert.hash == result.expert.hash


def test_evaluate_takes_a_committee(swept, tree):
    workdir, result = swept
    done = warm.run("evaluate", f"--experts={workdir}", f"--store={tree.path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{result.test.value:.3f}" in done.stdout
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert metrics["layers"] == list(result.expert.layers)
    assert metrics["classify"]["accuracy"]["value"] == result.test.value
    shutil.rmtree(workdir / "evaluation")


@pytest.fixture(scope="module")
def aligned(toy_lora_store, tmp_path_factory):
    """Both layers of the toy LoRAs, so briefly trained that more candidates are harder to tell."""
    workdir = tmp_path_factory.mktemp("aligned")
    result = sweep(
        toy_lora_store,
        workdir,
        encoder={"name": "dense", "rep_dim": 16},
        head="text",
        recipe=Recipe(epochs=4, eval_every=2, batch_size=32, learning_rate=3e-3, l2=0.0),
        alignment=Alignment(HashingEncoder(), spec="hashing", logit_scale=20.0),
        normalise="scale",
        committee=2,
    )
    return workdir, result


def test_the_held_out_committee_is_chosen_on_held_out_models(aligned, toy_lora_store):
    workdir, result = aligned
    store, experts = toy_lora_store, load_experts(workdir)
    seen, held_out = list(store.seen_classes), list(store.held_out_classes)
    candidates = {"val": seen, "val_holdout": held_out + seen}
    for split, folder in (("val", "expert"), ("val_holdout", "expert_val_holdout")):
        sentences = [f"a photo of a {name}" for name in candidates[split]]
        texts = HashingEncoder().encode(sentences)
        answers, kept = {}, {}
        for layer in store.layers:
            kept[layer] = px.Expert.load(workdir / "layers" / layer / folder)
            assert kept[layer].card["selected_on"] == split
            answers[layer] = np.asarray(kept[layer].logits(store.matrices(layer, split), texts))
        y = store.class_indices(split, candidates[split])
        expected = best_committee(answers, y, 2)
        assert tuple(experts[split].layers) == expected
        assert result.metrics["layers"][folder] == list(expected)
        assert experts[split].card["selected_on"] == split
        right = np.mean([answers[layer] for layer in expected], axis=0).argmax(1) == y
        assert experts[split].card["metrics"]["committee_accuracy"] == pytest.approx(right.mean())
        for member in experts[split].members:
            wanted = kept[member.layer].variables
            for one, other in zip(
                jax.tree.leaves(member.variables), jax.tree.leaves(wanted), strict=True
            ):
                np.testing.assert_array_equal(one, other)


def test_representations_of_a_committee_are_measured(aligned, toy_lora_store):
    workdir, result = aligned
    both = {
        split: committee(
            [px.Expert.load(workdir / "layers" / layer / folder) for layer in toy_lora_store.layers]
        )
        for split, folder in (("val", "expert"), ("val_holdout", "expert_val_holdout"))
    }
    subject = Subject(both, toy_lora_store, neighbours=3)
    found = {task: measure(subject, task) for task in ("classify", "zero_shot", "knn", "occ")}
    found["retrieval"] = measure(subject, "retrieval")
    assert all(figures for figures in found.values())
    known, asked = (both["val"].encode(toy_lora_store.by_layer(s)) for s in ("train", "test"))
    labels = {
        split: np.array([m.labels[0] for m in toy_lora_store.split(split)])
        for split in ("train", "test")
    }
    near = labels["train"][np.asarray(asked @ known.T).argsort(axis=1)[:, ::-1][:, :3]]
    precision = np.mean(near == labels["test"][:, None])
    measured = {figure.key: figure.score.value for figure in found["retrieval"]}
    assert measured["precision_seen"] == pytest.approx(precision, abs=0.03)
    score, _ = evaluate(both["val"], toy_lora_store)
    assert found["classify"][0].score.value == score.value
    assert result.zero_shot is not None
