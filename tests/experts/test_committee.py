"""Committees: what they answer, which layers they are of, how they are kept and refused."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import best_committee, committee
from probex_jax.fitting import OneClass, SeveralClasses
from probex_jax.language import HashingEncoder
from probex_jax.model_files import byte_ranges
from probex_jax.search import find_models
from probex_jax.search.embedding import represented
from tests.experts.toys import CLASSES, DENSE, TEXT, TEXT_DIM, draw, make_expert, one_line

SHAPES = {"a": (6, 5), "b": (4, 7), "c": (5, 5)}
X = {layer: draw(number, 5, *shape) for number, (layer, shape) in enumerate(SHAPES.items())}
WEIGHTS = [3.0, 1.0, 4.0]


def make(layer, **about):
    return make_expert(layer, SHAPES[layer], metrics={"val_accuracy": 0.5}, **about)


@pytest.fixture(scope="module")
def experts():
    return [make(layer) for layer in SHAPES]


@pytest.fixture(scope="module")
def of_texts():
    return [make(layer, head="text", encoder=DENSE) for layer in SHAPES]


def each(experts, answer):
    """What each expert says of its layer."""
    return [np.asarray(getattr(expert, answer)(X[next(iter(expert.layers))])) for expert in experts]


def test_logits_are_the_weighted_mean_and_representations_stand_side_by_side(experts):
    """Each by the root of its weight, so that inner products add up as logits do."""
    for weights in (None, WEIGHTS):
        found = committee(experts, weights)
        expected = np.average(each(experts, "logits"), axis=0, weights=weights)
        np.testing.assert_allclose(found.logits(X), expected, rtol=1e-5, atol=1e-5)
    backwards = committee(experts[::-1], WEIGHTS[::-1])
    np.testing.assert_allclose(backwards.logits(X), expected, rtol=1e-5, atol=1e-5)
    assert list(backwards.layers) == ["c", "b", "a"]
    parts = [(w / 8) ** 0.5 * e for w, e in zip(WEIGHTS, each(experts, "encode"), strict=True)]
    assert found.encode(X).shape == (5, found.rep_dim) == (5, 24)
    np.testing.assert_allclose(found.encode(X), np.hstack(parts), rtol=1e-5, atol=1e-6)
    jitted = jax.jit(lambda expert, x: expert.logits(x))(found, X)
    np.testing.assert_allclose(jitted, expected, rtol=1e-5, atol=1e-5)


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
    single = [expert.logits(X[layer], texts) for layer, expert in zip(X, of_texts, strict=True)]
    expected = np.average(single, axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_members_may_differ_in_encoder_and_normalisation():
    plain, dense = make("a"), make("b", encoder={"name": "dense", "rep_dim": 2})
    centred = make("c", normalise="centre")
    both = committee([plain, dense, centred])
    tree = centred.variables["tree"]
    read = (X["c"] - tree["centre"]) / tree["scale"]
    bare = px.Expert({"params": centred.variables["params"]}, make("c").card)
    expected = [plain.logits(X["a"]), dense.logits(X["b"]), bare.logits(read)]
    np.testing.assert_allclose(both.logits(X), np.mean(expected, axis=0), rtol=1e-5, atol=1e-5)
    assert both.rep_dim == 8 + 2 + 8
    assert both.card.common("encoder") is None
    assert not {"encoder", "normalise"} & both.card.to_json().keys(), "they agree on none"


def test_the_card_says_what_the_members_share_and_what_not(experts):
    both = committee(experts, WEIGHTS)
    json = both.card.to_json()
    assert (json["tree"], json["encoder"]) == ("Mini", experts[0].card.members[0].encoder)
    assert not {"layer", "shape", "metrics"} & json.keys()
    assert [member.layer for member in both.card.members] == ["a", "b", "c"]
    assert [member.weight for member in both.card.members] == [3 / 8, 1 / 8, 4 / 8]
    assert json["members"][1]["metrics"] == {"val_accuracy": 0.5}
    assert (both.reading, both.layers) == ("3 layers", SHAPES)
    one = committee(experts[:1], [17.0])
    assert one.hash == experts[0].hash
    np.testing.assert_array_equal(one.logits(X), experts[0].logits(X["a"]))


@pytest.mark.parametrize("head", ["class", "text"])
def test_a_committee_is_kept_as_one_expert(head, experts, of_texts, tmp_path):
    both = committee(experts if head == "class" else of_texts, WEIGHTS)
    both.save(tmp_path / "e")
    loaded = px.Expert.load(tmp_path / "e")
    assert (loaded.card, loaded.hash) == (both.card, both.hash)
    np.testing.assert_array_equal(loaded.encode(X), both.encode(X))


def test_the_hash_is_of_members_order_and_weights(experts):
    made = [
        committee(experts),
        committee(experts[::-1]),
        committee(experts, WEIGHTS),
        committee([make("a", seed=1), *experts[1:]]),
        committee(experts[:2]),
    ]
    assert len({expert.hash for expert in made}) == len(made)
    assert committee(experts, [2, 2, 2]).hash == made[0].hash


@pytest.mark.parametrize(
    ("field", "others"),
    [
        ("tree", {"tree": "Other"}),
        ("classes", {"classes": CLASSES[:2]}),
        ("classes", {"classes": CLASSES[::-1]}),
        ("head", {"head": "none", "encoder": {"name": "dense"}}),
        ("store_hash", {"store_hash": "4567"}),
        ("task", {"task": {"name": "one_class"}}),
        ("text", {"head": "text", "text": {**TEXT, "template": "the {class}"}}),
    ],
)
def test_experts_that_do_not_belong_together_are_refused(experts, of_texts, field, others):
    first = of_texts[0] if field == "text" else experts[0]
    with pytest.raises(px.ProbexError, match=rf"of a and b differ in {field}$") as told:
        committee([first, make("b", **others)])
    one_line(told)


def test_wrong_numbers_of_experts_layers_and_weights_are_refused(experts):
    with pytest.raises(px.ProbexError, match="no experts"):
        committee([])
    for twice in ([experts[0], make("a", seed=1)], [committee(experts), make("a")]):
        with pytest.raises(px.ProbexError, match="one layer"):
            committee(twice)
    for weights in ([1.0], [1.0, 0.0, 1.0], [1, -1, 1], [1, float("nan"), 1], [1, float("inf"), 1]):
        with pytest.raises(px.ProbexError, match="weights"):
            committee(experts, weights)


def test_wrong_matrices_are_one_line(experts):
    both = committee(experts)
    for x, message in (
        (X["a"], "3 layers"),
        ({"a": X["a"], "c": X["c"]}, "layer b"),
        ({**X, "b": X["b"][:4]}, "layer b: .* 4 models, .* 5"),
        ({**X, "b": X["a"]}, r"layer b .*4x7.*\(5, 6, 5\)"),
        ({**X, "a": X["a"][:0]}, "no matrices"),
    ):
        for answer in (both.logits, both.encode):
            with pytest.raises(px.ProbexError, match=message) as told:
                answer(x)
            one_line(told)


def test_a_committee_reads_indexes_and_searches_models(of_texts, tmp_path, monkeypatch):
    """By text and by example; each model is opened once for all layers."""
    folder, both = tmp_path / "models", committee(of_texts, WEIGHTS)
    folder.mkdir()
    for number in range(5):
        weights = {layer: X[layer][number] for layer in X}
        save_file(weights, folder / f"m{number}.safetensors")
    save_file({"a": X["a"][0], "c": X["c"][0]}, folder / "lacking.safetensors")

    opened, real = [], byte_ranges.os.open
    monkeypatch.setattr(
        byte_ranges.os, "open", lambda path, *rest: opened.append(str(path)) or real(path, *rest)
    )
    path, e = folder / "m3.safetensors", np.asarray(both.encode(X))
    [vector] = represented(both, [path])
    np.testing.assert_allclose(vector, e[3], rtol=1e-4, atol=1e-5)
    with px.open_model(path) as model:
        read = both.read(model)
    assert opened.count(str(path)) == 2
    assert list(read) == list(X)
    for layer in X:
        np.testing.assert_array_equal(read[layer], X[layer][3])

    made = px.Index.create_or_open(tmp_path / "index", both)
    done = made.add_models(find_models(folder))
    assert (done.added, list(done.failed)) == (5, ["lacking"])
    assert "no layer 'b'" in done.failed["lacking"]
    sentence = "an ant"
    logits = np.asarray(both.logits(X, HashingEncoder(TEXT_DIM).encode([sentence])))[:, 0]
    for index in (made, px.Index.open(tmp_path / "index")):
        hits = index.search(query=sentence)
        assert [hit.id for hit in hits] == [f"m{n}" for n in np.argsort(-logits)]
        found = [7.0 * hit.similarity for hit in hits]
        np.testing.assert_allclose(found, np.sort(logits)[::-1], rtol=1e-3, atol=1e-4)
    hits = made.search(like=folder / "m2.safetensors", k=3)
    assert [hit.id for hit in hits] == [f"m{n}" for n in np.argsort(-(e @ e[2])) if n != 2][:3]
    with pytest.raises(px.ProbexError, match="3 layers"):
        px.Index.create_or_open(tmp_path / "index", committee(of_texts))


# What is chosen: the columns are classes, the rows models.
Y = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
ALL, FIVE, FOUR = (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 0), (1, 1, 1, 1, 0, 0)


def answers(*rights, sure=1.0):
    """Logits so sure of each entry, right or wrong as listed."""
    return sure * np.where(np.reshape(rights, Y.shape) > 0, 1, -1) * (2 * Y - 1)


def best(logits, most, y=Y):
    return best_committee(logits, y, most, SeveralClasses())


def test_layers_go_by_accuracy_then_by_loss():
    logits = {
        "four, timid": answers(*FOUR, sure=0.1),
        "all, timid": answers(*ALL, sure=0.1),
        "all, sure": answers(*ALL, sure=2.0),
    }
    assert best(logits, most=1) == ("all, sure",)
    del logits["all, sure"]
    assert best(logits, most=1) == ("all, timid",)
    # Of equal accuracies the lower loss. Stretched as is best, nine times as sure is not worse.
    del logits["all, timid"]
    logits["four, surer"] = answers(*FOUR, sure=0.9)
    logits["four, sure of what is wrong"] = answers(*FOUR) * np.where(answers(*FOUR) > 0, 1, 9)
    assert best(logits, most=1)[0] in ("four, timid", "four, surer")
    # Ties go to the layer named first, and to the fewest.
    for names in (("a", "b", "c"), ("c", "b", "a")):
        assert best(dict.fromkeys(names, answers(*FIVE)), most=3) == (names[0],)


def test_the_first_k_of_the_lowest_loss_are_chosen():
    """By NumPy, on random answers: not the k of the highest accuracy, nor the best pair."""
    rng, differs, stretched = np.random.default_rng(0), 0, 0

    def loss(z, y):
        return np.mean(np.logaddexp(0, z) - y * z)

    def best_loss(z, y):
        return min(loss(factor * z, y) for factor in np.geomspace(0.1, 100, 142))

    for _ in range(20):
        y = (rng.random((12, 4)) < 0.5).astype(float)
        signals = (2 * y - 1) * rng.uniform(0, 1, (6, 1, 1)) + rng.normal(size=(6, *y.shape))
        logits = {f"l{i}": rng.uniform(0.1, 4) * signal for i, signal in enumerate(signals)}
        ranks = {n: (-np.mean((z > 0) == (y > 0.5)), best_loss(z, y)) for n, z in logits.items()}
        order = sorted(logits, key=ranks.get)
        for most in (1, 3, 6):
            means = [np.mean([logits[n] for n in order[:k]], axis=0) for k in range(1, most + 1)]
            k = 1 + int(np.argmin([best_loss(z, y) for z in means]))
            assert best(logits, most, y) == tuple(order[:k])
            differs += k not in (1, most)
            stretched += k != 1 + int(np.argmin([loss(z, y) for z in means]))
    assert differs, "all or one would have done"
    assert stretched, "the loss of the logits as they are would have done"


def test_a_committee_of_one_class_is_chosen_by_what_is_told_rightly():
    y, right = np.array([0, 1, 2]), 0.1 * np.eye(3)
    logits = {"wrong": 5 * np.eye(3)[[1, 1, 2]], "right": right, "other": 5 * np.eye(3)[[0, 1, 0]]}
    for most in (1, 3):  # with the others it would no longer be sure of all, however stretched
        assert best_committee(logits, y, most, OneClass()) == ("right",)
