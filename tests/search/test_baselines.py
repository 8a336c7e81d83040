"""Baselines beside an expert: scikit-learn's answers on all entries, chosen without the test."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, roc_auc_score

import probex_jax as px
from experiments import baseline_steps
from probex_jax.encoders import Dense
from probex_jax.experts import Expert
from probex_jax.fitting import ClosedForm, OneClass, fit
from probex_jax.matrices import LowRank
from probex_jax.search import Subject, compare
from probex_jax.search.baselines import METHODS
from probex_jax.search.tensors import read_tensors, standardised_products
from probex_jax.zoo.model_j import LABELS_KEY

SHAPES = {"a": (4, 3), "b": (3, 6), "constant": (2, 2), "head": (1, 5)}
SPLITS = ("train", "val", "test")
QUICK = [name for name in METHODS if "forest" not in name]


def make_store(folder, *, of_test=1, n_test=24):
    """Models of three classes, uneven and one very rare; `of_test` seeds those of the test."""
    rng, of_test = np.random.default_rng(0), np.random.default_rng(of_test)
    signs = {name: rng.normal(size=(3, *shape)) for name, shape in SHAPES.items()}
    for split, count in zip(SPLITS, (36, 12, n_test), strict=True):
        for number in range(count):
            place = 2 if (split, number) == ("train", 0) else (0, 1, 0, 0)[number % 4]
            draw = of_test if split == "test" else rng
            weights = {
                name: (10 + 0.5 * signs[name][place] + draw.normal(size=shape)).astype(np.float32)
                for name, shape in SHAPES.items()
            }
            weights["constant"] = np.full((2, 2), 0.1, np.float32)
            path = folder / "Zoo" / split / f"{split}{number:02d}"
            path.mkdir(parents=True)
            save_file(weights, path / "model.safetensors", {LABELS_KEY: str(["abc"[place]])})
    return px.pack(px.scan(folder / "Zoo"), folder / "s").store


def expert(store, task):
    x = store.matrices("a", "train")
    y = store.class_indices("train", store.classes) if task.exclusive else store.targets("train")
    network = Dense(rep_dim=len(store.classes))
    found = fit(network, x, y, task=task, recipe=ClosedForm((1.0,)))
    return Expert.of(found, tree=store.tree, layer="a", classes=store.classes)


def subject(store):
    return Subject({"val": expert(store, OneClass(len(store.classes)))}, store)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("baselines"))


@pytest.fixture(scope="module")
def found(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compared")
    return compare(subject(store), workdir), workdir


def entries(store, layers):
    """All entries [M, D] of some layers, centred and over their spread, in float64."""
    parts = []
    for layer in layers:
        x = np.concatenate([store.matrices(layer, split) for split in SPLITS]).astype(np.float64)
        x = x.reshape(len(x), -1)
        x -= x[:48].mean(axis=0)
        parts.append(x / x[:48].std())
    return np.concatenate(parts, axis=1)


def labels(store):
    return np.concatenate([store.class_indices(split, store.classes) for split in SPLITS])


def test_kernels_are_of_standardised_layers(store):
    tensors = read_tensors(store, ("train", "val"), "test")
    matrices, everything = entries(store, ["a", "b"]), entries(store, ["a", "b", "head"])
    for kernel, x in ((tensors.matrices, matrices), (tensors.everything, everything)):
        np.testing.assert_allclose(kernel.products, x @ x.T, rtol=1e-4, atol=1e-3)
    assert tensors.statistics.shape == (72, 7 * len(SHAPES))


def test_factors_have_the_products_of_their_matrices():
    rng = np.random.default_rng(0)
    x = LowRank(*(rng.normal(size=s).astype(np.float32) for s in ((9, 5, 2), (9, 2, 4))))
    dense = np.asarray(x.dense())
    np.testing.assert_allclose(
        standardised_products(x, 6), standardised_products(dense, 6), rtol=1e-4, atol=1e-4
    )


def test_what_all_models_share_costs_no_digits():
    x = (1000 + np.random.default_rng(0).normal(size=(9, 5, 4))).astype(np.float32)
    exact = x.reshape(9, -1).astype(np.float64)
    exact -= exact[:6].mean(axis=0)
    exact /= exact[:6].std()
    np.testing.assert_allclose(standardised_products(x, 6), exact @ exact.T, atol=0.01)


@pytest.mark.parametrize("method", ["ridge, matrices", "ridge, everything", "logistic regression"])
def test_linear_methods_answer_as_on_all_entries(store, found, method):
    """The same figures as scikit-learn's on standardised entries, at the setting chosen."""
    (compared,) = (each for each in found[0].others if each.method.startswith(method))
    x = entries(store, ["a", "b", *(["head"] if "matrices" not in method else [])])
    x /= np.sqrt(np.mean((x[:48] ** 2).sum(axis=1)))
    y = labels(store)
    chosen = float(compared.setting.split()[-1])
    if method == "logistic regression":
        scores = LogisticRegression(C=chosen, max_iter=1000).fit(x[:48], y[:48])
        scores = scores.predict_log_proba(x[48:])
    else:
        scores = Ridge(chosen).fit(x[:48], np.eye(3)[y[:48]]).predict(x[48:])
    accuracy = np.mean(scores.argmax(axis=1) == y[48:])
    assert compared.accuracy.value == pytest.approx(accuracy)
    assert compared.accuracy.chance == np.mean(y[48:] == 0)
    if method == "logistic regression":
        areas = [roc_auc_score(y[48:] == place, scores[:, place]) for place in (0, 1)]
        assert compared.auc.value == pytest.approx(np.mean(areas), abs=0.01)
    else:
        # The one factor that cross-validation chose is between the two that cannot be better.
        worst = log_loss(y[48:], np.full([24, 3], 1 / 3), labels=range(3))
        assert compared.log_loss < worst


def test_all_stand_beside_chance_and_the_commonest_class_is_chance(found):
    compared, _ = found
    assert [each.method for each in compared.others] == list(METHODS)
    commonest = compared.others[0]
    assert commonest.accuracy.value == commonest.accuracy.chance == 0.75
    assert commonest.auc.value == 0.5
    for each in compared.others[1:]:
        assert each.accuracy.value > 0.75, each
        assert each.auc.value > 0.6, each
        assert each.seconds > 0


def test_the_queried_models_choose_nothing(found, tmp_path):
    """Other test models: the same settings."""
    other = make_store(tmp_path, of_test=2, n_test=8)
    compared = compare(subject(other), tmp_path, methods=QUICK)
    settings = {each.method: each.setting for each in found[0].others if each.method in QUICK}
    assert {each.method: each.setting for each in compared.others} == settings


def test_what_was_measured_is_kept_and_the_rest_goes_on(store, found, tmp_path):
    before = json.loads((found[1] / "metrics.json").read_text())
    path = tmp_path / "metrics.json"
    kept = before["baselines"]["methods"]
    kept["kNN, cosine"]["seconds"] = 77.0
    removed = kept.pop("ridge, everything")
    path.write_text(json.dumps(before | {"classify": {"mine": 1}}))
    again = {each.method: each for each in compare(subject(store), tmp_path).others}
    assert again["kNN, cosine"].seconds == 77.0
    assert again["ridge, everything"].accuracy.value == removed["accuracy"]["value"]
    written = json.loads(path.read_text())
    assert written["classify"] == {"mine": 1}
    px.search.measure_all(subject(store), ["classify"], tmp_path)
    written = json.loads(path.read_text())
    assert written["classify"]["accuracy"]["value"] > 0.5
    assert set(written["baselines"]["methods"]) == set(METHODS)


@pytest.mark.parametrize("damage", ["[]", '{"baselines": []}'])
def test_a_damaged_file_is_named(store, tmp_path, damage):
    (tmp_path / "metrics.json").write_text(damage)
    with pytest.raises(px.ProbexError, match=r"metrics\.json"):
        compare(subject(store), tmp_path)


def test_of_classes_each_for_itself_entries_count(toy_store, tmp_path):
    network = Dense(rep_dim=len(toy_store.classes))
    x, y = toy_store.matrices("a.weight", "train"), toy_store.targets("train")
    known = fit(network, x, y, recipe=ClosedForm((1.0,)))
    ours = Expert.of(known, tree=toy_store.tree, layer="a.weight", classes=toy_store.classes)
    compared = compare(Subject({"val": ours}, toy_store), tmp_path, methods=QUICK)
    found = {each.method: each for each in compared.others}
    known = np.concatenate([toy_store.targets(split) for split in ("train", "val")])
    usual = known.mean(axis=0) > 0.5
    commonest = np.mean((toy_store.targets("test") > 0) == usual)
    assert found["commonest class"].accuracy.value == pytest.approx(commonest)
    for method in ("ridge, everything", "logistic regression, everything", "RBF SVM, unit length"):
        assert found[method].accuracy.value > found[method].accuracy.chance + 0.1
        assert found[method].auc.value > 0.8
    [row, *_] = [baseline_steps.row(each) for each in (compared.ours, *compared.others)]
    assert row["accuracy"] == f"{compared.ours.accuracy.value:.3f}"


def test_the_words_name_what_is_better(found):
    compared, _ = found
    ours = compared.ours
    better = [m for m in compared.others if m.accuracy.value > ours.accuracy.value]
    accuracy, *_ = baseline_steps.in_words(compared)
    assert all((m.method in accuracy) == (m in better) for m in compared.others)
    assert ("beyond" in accuracy) == any(m.accuracy.value > ours.accuracy.high for m in better)
