"""Tags: their vocabulary, their scores, and how probable those of either kind are."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import Card, TextCard
from probex_jax.experts.tag_cut import TagCut
from probex_jax.experts.tags import Vocabulary, ranked_tags, tag_scores, vocabulary
from probex_jax.fitting.ranked import Curve
from probex_jax.language import text_encoder
from probex_jax.zoo.tables import Tables
from tests.experts.toys import TEXT, card, draw, make_expert, one_line

KNOWN = TagCut("tags", ("cat", "dog"), ("red fox",), Curve(9.0, 0.5, 0.1), Curve(3, -2), 0.4)
SAID = json.loads(json.dumps(card(head="text", text={**TEXT, "tags": KNOWN.as_json()})))


def expert_of(cut):
    expert = make_expert(head="text")
    return expert.with_card(text=replace(expert.text, tags=cut))


@pytest.fixture
def tagged_store(toy_lora_store):
    """Each concept and its words are tags; four models have none, one of them says so."""
    tags = {m.id: (*m.labels[0].split(), m.labels[0]) for m in toy_lora_store.models}
    silent = [m.id for m in toy_lora_store.split("val")[:4]]
    tags |= dict.fromkeys(silent, ())
    return toy_lora_store.with_tables(
        Tables({"tags": {id: tags[id] for id in tags if id not in silent[1:]}})
    )


def test_a_card_keeps_its_tags():
    found = Card.from_json(SAID)
    assert found.text.tags == KNOWN
    # To the digit, or an expert would have another hash once it was kept.
    assert json.dumps(found.to_json(), sort_keys=True) == json.dumps(SAID, sort_keys=True)
    assert isinstance(found.text, TextCard)
    unfitted = TagCut("tags", ("cat",), ())
    assert TagCut.from_json(unfitted.as_json()) == unfitted


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("column", 3),
        ("seen", "cat"),
        ("seen", [3]),
        ("new", None),
        ("seen_curve", [1.0]),
        ("seen_curve", [1.0, 0.0, 0.0, 0.0]),
        ("new_curve", [1.0, float("nan"), 0.0]),
        ("new_curve", 3),
        ("cut", "all"),
        ("wrong", True),
    ],
)
def test_tags_on_a_card_that_lies_are_refused(field, value):
    said = copy.deepcopy(SAID)
    said["text"]["tags"][field] = value
    with pytest.raises(px.ProbexError, match=r"^some/file: text\.tags") as told:
        Card.from_json(said, "some/file")
    one_line(told)


def drawn(rng, n_models):
    """Scores of 5 tags of training models and 4 others, of which the former are raised."""
    right = rng.random((n_models, 9)) < 0.25
    scores = rng.normal(size=right.shape) + 2.5 * right
    scores[:, :5] += 2
    return scores, right


def test_new_tags_are_as_probable_as_validation_models_say():
    rng = np.random.default_rng(0)
    start = TagCut("tags", tuple("abcde"), tuple("wxyz"))
    cut = start.fitted(*drawn(rng, 800))
    scores, right = drawn(rng, 4000)
    p = cut.probabilities(scores, cut.vocabulary)
    for of in (slice(0, 5), slice(5, 9)):
        for low in (0.2, 0.4, 0.6, 0.8):
            between = (p[:, of] >= low) & (p[:, of] < low + 0.2)
            assert right[:, of][between].mean() == pytest.approx(p[:, of][between].mean(), abs=0.08)
    shown = cut.shown(p)
    wrong = (shown & ~right).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
    assert 0.1 < wrong.mean() < cut.wrong + 0.02
    assert not (replace(cut, cut=None).shown(p)).any()


def test_tags_without_a_curve_are_refused():
    rng = np.random.default_rng(0)
    scores, right = drawn(rng, 100)
    right[:, 5:] = False
    cut = TagCut("tags", tuple("abcde"), tuple("wxyz")).fitted(scores, right)
    assert cut.vocabulary == tuple("abcde")
    assert cut.cut is not None
    with pytest.raises(px.ProbexError, match="'moon'") as told:
        vocabulary(expert_of(cut), ["a", "moon"])
    one_line(told)
    with pytest.raises(px.ProbexError, match=r"text\.tags") as told:
        vocabulary(make_expert(head="text"))
    one_line(told)


def test_scores_are_cosines_less_those_of_the_classes():
    expert, encoder = expert_of(KNOWN), text_encoder(TEXT["encoder"])
    words = vocabulary(expert, ["cat", "moon"], encoder)
    assert words.tags == ("cat", "dog", "red fox", "moon")
    x = draw(3, 7, 6, 5)
    e = np.asarray(expert.encode(x), np.float64)
    sentences, classes = (
        [f"a {name}" for name in names] for names in (words.tags, expert.card.classes)
    )
    tags, known = (np.asarray(expert.place(each, encoder)) for each in (sentences, classes))
    expected = (e - known.mean(axis=0)) @ tags.T
    logits = np.asarray(expert.logits(x, words.texts_VD))
    np.testing.assert_allclose(tag_scores(expert, logits, words), expected, atol=1e-5)
    p = np.stack([KNOWN.seen_curve(expected)[:, 0], KNOWN.new_curve(expected)[:, 3]], axis=1)
    for model, found in zip(p, ranked_tags(expert, logits, words), strict=True):
        by_tag = {each.tag: each.probability for each in found}
        assert list(by_tag.values()) == sorted(by_tag.values(), reverse=True)
        assert min(by_tag.values(), default=1) >= KNOWN.cut
        for name, probability in zip(("cat", "moon"), model, strict=True):
            assert by_tag.get(name, 0.0) == pytest.approx(
                probability if probability >= KNOWN.cut else 0.0, abs=1e-4
            )


def test_the_vocabulary_is_that_of_the_models(tagged_store, toy_lora_store):
    found = TagCut.of(tagged_store, "tags")
    assert found.new == ("blue ant", "pink dog", "red cat")
    assert {"red", "cat", "red ant"} < set(found.seen)
    assert not set(found.seen) & set(found.new)
    with pytest.raises(px.ProbexError, match="tags"):
        TagCut.of(toy_lora_store, "tags")
    val = {m.id: () for m in tagged_store.split("val")}
    column = {**tagged_store.tables.columns["tags"], **val}
    with pytest.raises(px.ProbexError, match="val") as told:
        TagCut.of(tagged_store.with_tables(Tables({"tags": column})), "tags")
    one_line(told)


def test_models_whose_tags_are_unknown_are_left_out(tagged_store):
    from probex_jax.experts.tags import stored_tags
    from tests.forest.conftest import text_expert

    expert = text_expert(tagged_store)
    expert = expert.with_card(text=replace(expert.text, tags=TagCut.of(tagged_store, "tags")))
    tags = ("red", "cat")
    words = Vocabulary(tags, text_encoder(expert.text.encoder).encode(tags), np.zeros((1, 64)))
    logits, right = stored_tags(expert, tagged_store, "val", words)
    models = tagged_store.split("val")
    assert logits.shape == right.shape == (len(models) - 3, 2)
    assert not right[0].any()
    expected = [[tag in m.labels[0].split() for tag in tags] for m in models[4:]]
    np.testing.assert_array_equal(right[1:], expected)
