"""Arrays that cannot be trained on are refused before anything is computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.fitting import ClosedForm, OneClass, SeveralClasses, Split, Texts, build_network
from probex_jax.fitting.closed_form import fit_closed_form
from probex_jax.fitting.data import check_finite, check_splits
from probex_jax.matrices import Centred

DENSE = build_network({"name": "dense"}, "none", 3)
RNG = np.random.default_rng(0)


def split(n_models=6, shape=(4, 5), n_classes=3):
    x = RNG.normal(size=(n_models, *shape)).astype(np.float32)
    return Split(x, RNG.integers(2, size=[n_models, n_classes]).astype(np.float32))


def aligned(n_models=6, n_texts=3, dim=4):
    texts = RNG.normal(size=(n_texts, dim)).astype(np.float32)
    return Split(split(n_models).x, RNG.integers(n_texts, size=n_models), texts)


def factors(n_models=6, rank=2, other_rank=2):
    up, down = (
        RNG.normal(size=shape) for shape in ((n_models, 4, rank), (n_models, other_rank, 5))
    )
    return px.LowRank(up.astype(np.float32), down.astype(np.float32))


def put(array, value):
    array = np.array(array)
    array.flat[7] = value
    return array


GOOD = split()
WRONG_OF_CLASSES = {
    "fewer labels": (GOOD._replace(y=GOOD.y[:4]), r"y .*\(4, 3\).*\(6, 3\)"),
    "fewer models": (GOOD._replace(x=GOOD.x[:4]), r"y .*\(6, 3\).*\(4, 3\)"),
    "one label each": (GOOD._replace(y=GOOD.y[:, 0]), r"y .*\(6,\)"),
    "one column": (GOOD._replace(y=GOOD.y[:, :1]), r"y .*\(6, 1\).*\(6, 3\)"),
    "more classes": (split(n_classes=4), r"y .*\(6, 4\).*\(6, 3\)"),
    "labels of -1": (GOOD._replace(y=2 * GOOD.y - 1), r"y .*\(6, 3\)"),
    "labels of NaN": (GOOD._replace(y=put(GOOD.y, np.nan)), r"y .*\(6, 3\)"),
    "labels of .5": (GOOD._replace(y=put(GOOD.y, 0.5)), r"y .*\(6, 3\)"),
    "names": (GOOD._replace(y=GOOD.y.astype(str)), r"y .*\(6, 3\)"),
    "four axes": (GOOD._replace(x=GOOD.x[None]), r"x .*\(1, 6, 4, 5\)"),
    "two axes": (GOOD._replace(x=GOOD.x[0]), r"x .*\(4, 5\)"),
    "no models": (split(0), r"x .*\(0, 4, 5\)"),
    "no rows": (split(shape=(0, 5)), r"x .*\(6, 0, 5\)"),
    "whole numbers": (GOOD._replace(x=GOOD.x.astype(int)), r"x .*\(6, 4, 5\).*int64"),
    "booleans": (GOOD._replace(x=GOOD.x > 0), r"x .*\(6, 4, 5\).*bool"),
    "complex": (GOOD._replace(x=GOOD.x.astype(complex)), r"x .*complex"),
    "a list": (GOOD._replace(x=list(GOOD.x)), "x .*list"),
    "factors of two ranks": (GOOD._replace(x=factors(other_rank=3)), r"x .*\(6, 3, 5\)"),
    "a wide centre": (GOOD._replace(x=Centred(factors(), np.zeros([4, 6]))), r"x .*\(4, 6\)"),
    "texts": (GOOD._replace(texts=np.ones([3, 4])), "texts"),
    "weights": (GOOD._replace(weight=np.full(6, 0.5)), "weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["train", "val", "val_holdout"])
@pytest.mark.parametrize("wrong", WRONG_OF_CLASSES)
def test_the_split_and_the_array_are_named(name, wrong):
    bad, message = WRONG_OF_CLASSES[wrong]
    splits = {"train": GOOD, "val": GOOD, "val_holdout": GOOD} | {name: bad}
    with pytest.raises(px.ProbexError, match=f"{name}: {message}"):
        check_splits(SeveralClasses(), 3, splits)
    if name != "val_holdout":
        given = splits["train"], splits["val"]
        with pytest.raises(px.ProbexError, match=f"{name}: {message}"):
            fit_closed_form(DENSE, SeveralClasses(), ClosedForm(), *given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, "factors"])
def test_matrices_that_are_not_finite_are_named(kind, value):
    x = factors() if kind == "factors" else GOOD.x
    bad = px.LowRank(x.up, put(x.down, value)) if kind == "factors" else kind(put(x, value))
    with pytest.raises(px.ProbexError, match=r"val: x .*\(6, 4, 5\)"):
        check_finite({"train": GOOD, "val": GOOD._replace(x=bad)})


def test_splits_have_matrices_of_one_shape_and_may_differ_in_models():
    with pytest.raises(px.ProbexError, match=r"val: x .*\(6, 5, 4\).*\[4, 5\]"):
        check_splits(SeveralClasses(), 3, {"train": GOOD, "val": split(shape=(5, 4))})
    fewer = split(1)._replace(weight=np.ones(1))
    check_splits(SeveralClasses(), 3, {"train": GOOD._replace(x=factors()), "val": fewer})
    others = {"train": TOLD, "val": aligned(2), "val_holdout": aligned(5, n_texts=7)}
    check_splits(Texts(), None, others)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float64])
def test_labels_may_be_of_any_type(dtype):
    task, y = SeveralClasses(), GOOD.y.astype(dtype)
    check_splits(task, 3, {"train": GOOD._replace(y=y)})
    logits = RNG.normal(size=GOOD.y.shape).astype(np.float32)
    for figure in (task.score, jax.jit(task.loss), task.best_factor, task.best_temperature):
        np.testing.assert_array_equal(figure(logits, y), figure(logits, GOOD.y))


TOLD = aligned()
WRONG_OF_TEXTS = {
    "beyond": (TOLD._replace(y=np.arange(6)), "y .*0 to 5.*0 to 2"),
    "below": (TOLD._replace(y=np.arange(6) % 3 - 1), "y .*-1 to 1"),
    "fewer": (TOLD._replace(y=TOLD.y[:4]), r"y .*\(4,\).* 6 models"),
    "floats": (TOLD._replace(y=TOLD.y.astype(float)), "y .*float64"),
    "booleans": (TOLD._replace(y=TOLD.y > 0), "y .*bool"),
    "of each class": (TOLD._replace(y=GOOD.y), r"y .*\(6, 3\)"),
    "no texts": (TOLD._replace(texts=None), "texts"),
    "empty texts": (TOLD._replace(texts=TOLD.texts[:0]), r"texts .*\(0, 4\)"),
    "one text": (TOLD._replace(texts=TOLD.texts[0]), r"texts .*\(4,\)"),
    "texts of NaN": (TOLD._replace(texts=put(TOLD.texts, np.nan)), r"texts .*\(3, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("wrong", WRONG_OF_TEXTS)
def test_a_model_is_of_one_of_the_texts(name, wrong):
    bad, message = WRONG_OF_TEXTS[wrong]
    with pytest.raises(px.ProbexError, match=f"{name}: {message}"):
        check_splits(Texts(), None, {"train": TOLD, "val": TOLD} | {name: bad})


def test_texts_of_one_encoder():
    with pytest.raises(px.ProbexError, match=r"val: texts .*\(3, 5\).*4"):
        check_splits(Texts(), None, {"train": TOLD, "val": aligned(dim=5)})


@pytest.mark.parametrize(
    ("task", "logits", "y"),
    [
        (SeveralClasses(), np.zeros([4, 4]), np.zeros(4)),
        (SeveralClasses(), np.zeros([4, 3]), np.zeros([5, 3])),
        (SeveralClasses(), np.zeros([0, 3]), np.zeros([0, 3])),
        (SeveralClasses(), np.full([4, 3], np.nan), np.zeros([4, 3])),
        (SeveralClasses(), np.zeros([4, 3]), -np.ones([4, 3])),
        (SeveralClasses(), np.zeros([4, 3]), np.full([4, 3], np.nan)),
        (OneClass(), np.zeros([4, 3]), np.zeros([4, 3])),
        (OneClass(), np.zeros([4, 3]), np.zeros(1, int)),
        (OneClass(), np.zeros([4, 3]), np.full(4, 3)),
        (OneClass(), np.zeros([4, 3]), np.full(4, -1)),
        (OneClass(), np.full([4, 3], np.nan), np.zeros(4, int)),
    ],
)
def test_a_score_is_of_answers_to_the_targets(task, logits, y):
    with pytest.raises(px.ProbexError):
        task.score(logits, y)
