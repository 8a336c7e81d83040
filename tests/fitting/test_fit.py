"""From arrays to figures and calibrated answers in one call: every task, by every recipe."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import probex_jax as px
from probex_jax.fitting import Devices
from tests.numeric import draw

N, N_TRAIN, H, W, Y = 120, 80, 6, 5, 3
ADAM = px.Adam(epochs=40, eval_every=10, learning_rate=0.02, batch_size=32)
TEXTS = np.asarray(draw(9, Y, 4))
RNG = np.random.default_rng(3)
DIRECTIONS = RNG.normal(size=(H, W, Y))
X = np.asarray(draw(0, N, H, W)) + np.asarray(draw(1, H, W))
SCORES = np.einsum("nhw,hwy->ny", X - X.mean(axis=0), DIRECTIONS) + RNG.normal(size=(N, Y))
TARGETS = {
    px.SeveralClasses(): (SCORES > 1).astype(int),
    px.OneClass(): SCORES.argmax(axis=1),
    px.Number(): 1e3 + 7 * SCORES[:, 0],
    px.Texts(logit_scale=10.0): SCORES.argmax(axis=1),
}
PROBEX = px.ProbeX(n_probes=4, proj_dim=4, rep_dim=8)
CASES = [
    (recipe, task)
    for recipe in (ADAM, px.ClosedForm())
    for task in TARGETS
    if recipe is ADAM or task.head != "text"
]


def fit(recipe, task, val=True, x=X, y=None, encoder=None, **settings):
    """An encoder that the recipe fits, fitted to the first models."""
    y = TARGETS[task] if y is None else y
    if encoder is None:
        rep_dim = 1 if task.name == "number" else Y
        encoder = PROBEX if isinstance(recipe, px.Adam) else px.Dense(rep_dim)
    if task.head == "text":
        settings.setdefault("texts", TEXTS)
    given = (x[:N_TRAIN], y[:N_TRAIN]) if val else (x, y)
    settings["val"] = (x[N_TRAIN:], y[N_TRAIN:]) if val is True else val or None
    return px.fit(encoder, *given, task=task, recipe=recipe, **settings)


def kinds(case):
    return " ".join(type(each).__name__ for each in case)


@pytest.mark.parametrize("val", [True, False], ids=["val", "no val"])
@pytest.mark.parametrize("case", CASES, ids=kinds)
def test_every_task_by_every_recipe(case, val):
    recipe, task = case
    found = fit(*case, val)
    figures, y = found.figures, TARGETS[task]
    assert figures["accuracy"] > figures["chance"] + 0.1
    assert figures["calibration_error"] < 0.3
    solved = recipe is not ADAM
    expected = {"train": N_TRAIN, "val": N - N_TRAIN} if val else {"train": 96, "val": 24}
    assert figures["n_models"] == ({"train": N} if solved and not val else expected)
    answers = np.asarray(found.predictions(X))
    assert answers.shape == (N, 2 if task.name == "number" else Y)
    assert found.encode(X).shape[0] == N
    if task.exclusive:
        np.testing.assert_allclose(answers.sum(axis=1), 1, rtol=1e-5)
    if task.name == "number":
        assert np.mean(np.abs(answers[:, 0] - y)) < y.std()
        assert 0 < answers[0, 1] < y.std()
    else:
        assert ((answers >= 0) & (answers <= 1)).all()
    # What is said of the models that chose is what the network answers for them.
    if val:
        score = found.task.score(found.logits(X[N_TRAIN:]), y[N_TRAIN:])
        assert figures["accuracy"] == pytest.approx(score.value, abs=1e-4)
        assert (score.low, score.high) == pytest.approx(figures["interval"], abs=1e-4)


def test_without_val_the_closed_form_is_of_all_models_and_judged_by_those_left_out():
    recipe, task = px.ClosedForm((0.1,)), px.SeveralClasses()
    found, y = fit(recipe, task, False, normalise="none"), TARGETS[px.SeveralClasses()]
    given = fit(recipe, task, (X, y), normalise="none")
    # All training models, whoever chooses the factor.
    all_of_them = px.fit(px.Dense(Y), X, y, val=(X, y), recipe=recipe, task=task, normalise="none")
    weights = [np.asarray(f.variables["params"]["encoder"]["weight"]) for f in (found, all_of_them)]
    ratio = weights[0] / weights[1]
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-3)
    assert found.figures["accuracy"] < all_of_them.figures["accuracy"], "not seen beforehand"
    assert given.figures["n_models"] == {"train": N_TRAIN, "val": N}


@pytest.mark.parametrize("kind", ["factors", "jax", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("recipe", [ADAM, px.ClosedForm()], ids=["adam", "closed form"])
def test_matrices_of_any_kind(recipe, kind):
    x = {"jax": jnp.asarray(X)}.get(kind)
    if kind == "factors":
        up = jnp.broadcast_to(jnp.eye(H), (N, H, H))
        x = px.LowRank(up, jnp.asarray(X))
    elif x is None:
        x = X.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    found = fit(recipe, px.SeveralClasses(), x=x)
    assert found.figures["accuracy"] > found.figures["chance"] + 0.1
    assert np.mean((found.logits(X) > 0) == (found.logits(x) > 0)) > 0.97


@pytest.mark.parametrize("normalise", ["none", "scale", "centre"])
def test_the_network_normalises_itself(normalise):
    found = fit(ADAM, px.SeveralClasses(), normalise=normalise)
    assert sorted(found.variables.get("tree", {})) == {
        "none": [], "scale": ["scale"], "centre": ["centre", "scale"]
    }[normalise]  # fmt: skip
    if normalise != "none":
        far = fit(ADAM, px.SeveralClasses(), x=1000 * X, normalise=normalise)
        np.testing.assert_allclose(far.logits(1000 * X), found.logits(X), rtol=0.02, atol=0.02)


def test_the_key_decides_what_is_drawn_and_storage_what_is_kept():
    keys = [jax.random.key(1), jax.random.key(1), jax.random.key(2)]
    one, again, other = (fit(ADAM, px.OneClass(), False, key=key).logits(X) for key in keys)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    coarse = dataclasses.replace(ADAM, storage="bfloat16")
    exact, stored = (fit(recipe, px.OneClass()).logits(X) for recipe in (ADAM, coarse))
    assert np.mean(exact.argmax(axis=1) == stored.argmax(axis=1)) > 0.8
    assert (exact != stored).any()


def test_candidates_of_val_may_be_others():
    task = px.Texts(logit_scale=10.0)
    val = px.Split(X[N_TRAIN:], np.arange(N - N_TRAIN) % 5, np.asarray(draw(8, 5, 4)))
    found = fit(ADAM, task, val)
    assert found.figures["chance"] == 1 / 5
    assert found.predictions(X, texts=val.texts).shape == (N, 5)


def test_dense_is_solved_unless_it_is_asked_of_texts():
    assert "penalties" in fit(None, px.OneClass(), encoder=px.Dense(Y)).recipe
    aligned = fit(ADAM, px.Texts(logit_scale=10.0), encoder=px.Dense(8))
    assert aligned.figures["accuracy"] > aligned.figures["chance"]


def put(array, value):
    array = np.array(array, float)
    array.flat[7] = value
    return array


SEVERAL, ONE, NUMBER, ALIGNED = TARGETS
CLASSES, PLACES, NUMBERS = (TARGETS[task] for task in (SEVERAL, ONE, NUMBER))
WRONG = {
    "fewer targets": (SEVERAL, {"y": CLASSES[:60]}, "y "),
    "fewer models": (SEVERAL, {"x": X[:60]}, "y "),
    "one label each": (SEVERAL, {"y": PLACES}, "y "),
    "no target": (SEVERAL, {"y": np.float32(1)}, "y "),
    "labels of -1": (SEVERAL, {"y": 2 * CLASSES - 1}, "y "),
    "labels of NaN": (SEVERAL, {"y": put(CLASSES, np.nan)}, "y "),
    "names": (SEVERAL, {"y": CLASSES.astype(str)}, "y "),
    "beyond": (px.OneClass(n_classes=2), {"y": PLACES}, "y "),
    "below": (ONE, {"y": PLACES - 1}, "y "),
    "places of NaN": (ONE, {"y": put(PLACES, np.nan)}, "y "),
    "names of classes": (ONE, {"y": PLACES.astype(str)}, "y "),
    "infinite": (NUMBER, {"y": put(NUMBERS, np.inf)}, "y "),
    "a constant": (NUMBER, {"y": np.full(N, 0.1)}, "y "),
    "columns": (NUMBER, {"y": NUMBERS[:, None]}, "y "),
    "no texts": (ALIGNED, {"texts": None}, "texts "),
    "texts of NaN": (ALIGNED, {"texts": put(TEXTS, np.nan)}, "texts "),
    "texts for classes": (SEVERAL, {"texts": TEXTS}, "texts "),
    "two axes": (SEVERAL, {"x": X[0]}, "x "),
    "four axes": (SEVERAL, {"x": X[None]}, "x "),
    "no models": (SEVERAL, {"x": X[:0], "y": CLASSES[:0]}, "x "),
    "one model": (SEVERAL, {"x": X[:1], "y": CLASSES[:1]}, "one model|the same"),
    "whole numbers": (SEVERAL, {"x": X.astype(int)}, "x "),
    "a list": (SEVERAL, {"x": list(X)}, "x "),
    "x of NaN": (SEVERAL, {"x": put(X, np.nan)}, "x "),
    "x infinite": (SEVERAL, {"x": put(X, -np.inf)}, "x "),
    "x that overflows": (SEVERAL, {"x": put(X, 1e300)}, "x "),
    "all the same": (SEVERAL, {"x": np.repeat(X[:1], N, axis=0)}, "the same"),
    "normalise": (SEVERAL, {"normalise": "whiten"}, "normalise"),
    "val of another shape": (SEVERAL, {"val": (X.mT[:9], CLASSES[:9])}, "val: x "),
    "val of other lengths": (SEVERAL, {"val": (X[:8], CLASSES[:9])}, "val: y "),
    "val of NaN": (SEVERAL, {"val": (put(X[:9], np.nan), CLASSES[:9])}, "val: x "),
    "val of other classes": (ONE, {"val": (X[:9], np.full(9, Y))}, "val: y "),
}  # fmt: skip


@pytest.mark.parametrize("recipe", [ADAM, px.ClosedForm()], ids=["adam", "closed form"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_fitted_is_named_before_anything_is(wrong, recipe, monkeypatch):
    task, given, named = WRONG[wrong]
    if recipe is not ADAM and task.head == "text":
        return
    for untouched in ("group.Group.train", "ridge.Ridge.solution"):
        monkeypatch.setattr(f"probex_jax.fitting.{untouched}", None)
    settings = {"x": X, "y": TARGETS.get(task, PLACES), "val": None} | given
    if task.head == "text":
        settings = {"texts": TEXTS} | settings
    encoder = PROBEX if recipe is ADAM else px.Dense(1 if task == NUMBER else Y)
    with pytest.raises(px.ProbexError, match=named) as error:
        px.fit(encoder, task=task, recipe=recipe, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encoder", "task", "settings", "named"),
    [
        (px.Dense(Y), SEVERAL, {"loss": SEVERAL.loss}, "loss"),
        (px.Dense(Y), SEVERAL, {"optimiser": optax.sgd(0.1)}, "optimiser"),
        (PROBEX, SEVERAL, {}, "dense"),
        (px.Dense(Y), ALIGNED, {"texts": TEXTS}, "texts"),
        (px.Dense(Y), NUMBER, {}, "rep_dim"),
        (px.Dense(Y + 1), SEVERAL, {}, "y "),
    ],
)
def test_what_the_closed_form_is_not_for(encoder, task, settings, named):
    with pytest.raises(px.ProbexError, match=named):
        px.fit(encoder, X, TARGETS[task], task=task, recipe=px.ClosedForm(), **settings)


def test_devices_are_an_argument():
    alone, given = (fit(ADAM, ONE, devices=Devices.of(jax.devices()[:n])) for n in (1, None))
    np.testing.assert_allclose(alone.logits(X), given.logits(X), rtol=1e-3, atol=1e-3)


class TestWhatUsersMayPassByMistake:
    """Each is one error that names it, before anything is fitted."""

    X = np.random.default_rng(3).normal(size=(20, 6, 5)).astype(np.float32)
    Y = (X[:, :3, 0] > 0).astype(int)

    @pytest.mark.parametrize(
        ("named", "changed"),
        [
            ("encoder", {"encoder": px.ProbeX}),
            ("task", {"task": px.SeveralClasses}),
            ("recipe", {"recipe": {"epochs": 3}}),
            ("key", {"key": 0}),
            ("val", {"val": X}),
            ("weight", {"val": px.Split(X, Y, None, np.ones(20))}),
            ("y", {"y": [[1, 0], [1]]}),
            ("loss", {"loss": lambda logits, y: (logits - y) ** 2}),
            ("loss", {"loss": lambda logits, y: jnp.mean((logits - y) ** 2)}),
            ("optimiser", {"optimiser": optax.lbfgs()}),
        ],
    )
    def test_it_is_named(self, named, changed):
        given = {"encoder": px.ProbeX(4, 4, 8), "x": self.X, "y": self.Y, "recipe": px.Adam()}
        with pytest.raises(px.ProbexError, match=rf"\b{named}\b"):
            px.fit(**(given | changed))

    def test_what_an_expert_cannot_keep(self):
        class Doubled(px.SeveralClasses):
            def predictions(self, logits, temperature=1.0):
                return super().predictions(2 * logits, temperature)

        about = {"tree": "t", "layer": "a", "classes": ["one", "two", "three"]}
        found = px.fit(px.Dense(3), self.X, self.Y, task=Doubled())
        with pytest.raises(px.ProbexError, match="task: Doubled"):
            px.Expert.of(found, **about)
        found = px.fit(px.Dense(3), self.X, self.Y)
        with pytest.raises(px.ProbexError, match="classes: 2 names"):
            px.Expert.of(found, **about | {"classes": ["one", "two"]})

    def test_arrays_on_a_mesh_and_narrow_parameters_are_taken(self):
        mesh = jax.make_mesh((1,), ("models",))
        x = jax.device_put(self.X, jax.NamedSharding(mesh, jax.P("models")))
        encoder = px.ProbeX(4, 4, 8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        found = px.fit(encoder, x, self.Y, recipe=px.Adam(epochs=3))
        about = {"tree": "t", "layer": "a", "classes": ["one", "two", "three"]}
        expert = px.Expert.of(found, **about)
        np.testing.assert_array_equal(expert.logits(self.X), found.logits(self.X))

    def test_the_closed_form_answers_in_float32_too(self):
        found = px.fit(px.Dense(3, dtype=jnp.bfloat16), self.X, self.Y)
        exact = px.fit(px.Dense(3), self.X, self.Y)
        np.testing.assert_array_equal(found.logits(self.X), exact.logits(self.X))
