"""Arrays that cannot be trained on are refused before anything is computed from them."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import (
    Recipe,
    Ridge,
    Split,
    accuracy,
    build_network,
    fit,
    fit_ridge,
    top_accuracy,
    training,
)
from probex_jax.matrices import Centred

PROBEX = {"name": "probex", "n_probes": 2, "proj_dim": 2, "rep_dim": 4}
CLASSES = build_network(PROBEX, "class", 3)
TEXTS = build_network(PROBEX, "text", 3)
DENSE = build_network({"name": "dense"}, "none", 3)
RECIPE = Recipe(epochs=1, eval_every=1)
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
    train, val = splits.pop("train"), splits.pop("val")
    with pytest.raises(px.ProbexError, match=f"{name}: {message}"):
        fit(CLASSES, RECIPE, train, val, **splits)
    if name != "val_holdout":
        with pytest.raises(px.ProbexError, match=f"{name}: {message}|to classes"):
            fit_ridge(DENSE, Ridge(), train, val)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["dense", "factors", "device"])
def test_matrices_that_are_not_finite_are_named(kind, value):
    x = factors() if kind == "factors" else GOOD.x
    if kind == "factors":
        bad = px.LowRank(x.up, put(x.down, value))
    else:
        bad = (jnp.asarray if kind == "device" else np.asarray)(put(x, value))
    with pytest.raises(px.ProbexError, match=r"val: x .*\(6, 4, 5\)"):
        fit(CLASSES, RECIPE, GOOD, GOOD._replace(x=bad))


def test_what_overflows_on_the_device_is_not_finite():
    with pytest.raises(px.ProbexError, match=r"train: x .*float32"):
        fit(CLASSES, RECIPE, GOOD._replace(x=put(GOOD.x.astype(float), 1e300)), GOOD)


def test_splits_have_matrices_of_one_shape():
    with pytest.raises(px.ProbexError, match=r"val: x .*\(6, 5, 4\).*\[4, 5\]"):
        fit(CLASSES, RECIPE, GOOD, split(shape=(5, 4)))
    with pytest.raises(px.ProbexError, match=r"val: x .*\(6, 5, 4\).*\[4, 5\]"):
        fit_ridge(DENSE, Ridge(), GOOD, split(shape=(5, 4)))


TOLD = aligned()
WRONG_OF_TEXTS = {
    "beyond": (TOLD._replace(y=np.arange(6)), "y .*0 to 5.*0 to 2"),
    "below": (TOLD._replace(y=np.arange(6) % 3 - 1), "y .*-1 to 1"),
    "fewer": (TOLD._replace(y=TOLD.y[:4]), r"y .*\(4,\).*\(6, 4, 5\)"),
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
    splits = {"train": TOLD, "val": TOLD} | {name: bad}
    with pytest.raises(px.ProbexError, match=f"{name}: {message}"):
        fit(TEXTS, RECIPE, **splits)


def test_texts_of_one_encoder():
    with pytest.raises(px.ProbexError, match=r"val: texts .*\(3, 5\).*4"):
        fit(TEXTS, RECIPE, TOLD, aligned(dim=5))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float64])
def test_labels_may_be_of_any_type(dtype):
    expected = fit(CLASSES, RECIPE, GOOD, GOOD)
    found = fit(CLASSES, RECIPE, *[GOOD._replace(y=GOOD.y.astype(dtype))] * 2)
    np.testing.assert_array_equal(found.loss_E, expected.loss_E)
    assert fit_ridge(DENSE, Ridge(), GOOD, GOOD).loss == (
        fit_ridge(DENSE, Ridge(), *[GOOD._replace(y=GOOD.y.astype(dtype))] * 2).loss
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_matrices_may_be_of_any_precision(dtype):
    data = GOOD._replace(x=GOOD.x.astype(dtype))
    assert np.isfinite(fit(CLASSES, RECIPE, data, data).loss_E).all()


def test_splits_may_differ_in_models_texts_and_weights():
    fit(CLASSES, RECIPE, GOOD, split(1)._replace(weight=np.ones(1)))
    fit(TEXTS, RECIPE, TOLD, aligned(2), val_holdout=aligned(5, n_texts=7))
    fit(CLASSES, RECIPE, GOOD._replace(x=factors()), GOOD._replace(x=factors()))


def test_layers_that_are_trained_together_have_their_labels():
    together = training.Together(CLASSES, (RECIPE,), 2, {"train": 6, "val": 6})
    whole = GOOD._replace(x=jnp.stack([GOOD.x, GOOD.x]))
    with pytest.raises(px.ProbexError, match="val"):
        training.fit_together(together, {"train": whole, "val": whole._replace(y=whole.y[:5])})
    with pytest.raises(px.ProbexError, match="train"):
        training.fit_together(together, {"train": whole._replace(x=whole.x[:1]), "val": whole})


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (np.zeros([4, 4]), np.zeros(4)),
        (np.zeros([4, 3]), np.zeros([5, 3])),
        (np.zeros([0, 3]), np.zeros([0, 3])),
        (np.full([4, 3], np.nan), np.zeros([4, 3])),
        (np.zeros([4, 3]), -np.ones([4, 3])),
        (np.zeros([4, 3]), np.full([4, 3], np.nan)),
    ],
)
def test_an_accuracy_is_of_answers_to_the_targets(logits, targets):
    with pytest.raises(px.ProbexError):
        accuracy(logits, targets)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros([4, 3]), np.zeros([4, 3])),
        (np.zeros([4, 3]), np.zeros(1, int)),
        (np.zeros([4, 3]), np.full(4, 3)),
        (np.zeros([4, 3]), np.full(4, -1)),
        (np.full([4, 3], np.nan), np.zeros(4, int)),
    ],
)
def test_the_highest_logit_is_of_a_class(logits, labels):
    with pytest.raises(px.ProbexError):
        top_accuracy(logits, labels)
