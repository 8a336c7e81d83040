"""The tasks of `evaluate` on toy LoRAs: protocol, denominators, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import probex_jax as px
from probex_jax.experts import Alignment, evaluate, load_experts
from probex_jax.fitting import Adam
from probex_jax.language import HashingEncoder
from probex_jax.search import TASKS, Subject, compare, measure
from probex_jax.sweeps import sweep
from probex_jax.zoo.tables import Tables
from tests.conftest import HELD_OUT

pytestmark = pytest.mark.xdist_group("alignment")

ENCODER = {"name": "probex", "n_probes": 8, "proj_dim": 8, "rep_dim": 32}


@pytest.fixture(scope="module")
def subject(toy_lora_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("downstream")
    tags = {m.id: (*m.labels[0].split(), m.labels[0]) for m in toy_lora_store.models}
    store = toy_lora_store.with_tables(Tables({"tags": tags}))
    sweep(
        store,
        workdir,
        encoder=ENCODER,
        head="text",
        recipe=Adam(epochs=30, eval_every=10, batch_size=32, learning_rate=3e-3, l2=0.0),
        alignment=Alignment(HashingEncoder(), spec="hashing", logit_scale=20.0, tags="tags"),
        normalise="scale",
        layers=["a"],
    )
    return Subject(load_experts(workdir), store, neighbours=3)


@pytest.fixture(scope="module")
def measured(subject):
    return {task: {figure.key: figure for figure in measure(subject, task)} for task in TASKS}


def encoded(subject, split):
    best = "val_holdout" if split.endswith("holdout") else "val"
    e = np.asarray(subject.experts[best].encode(subject.store.matrices("a", split)), np.float64)
    return e / np.linalg.norm(e, axis=1, keepdims=True)


def labels(subject, split):
    return np.array([model.labels[0] for model in subject.store.split(split)])


def counted_tags(figures):
    """Of 13 concepts and 8 words, and of 3 concepts held out; some models show none."""
    n_shown = {k: f.score.n_models for k, f in figures.items() if k.startswith("precision_in")}
    assert 0 < n_shown["precision_in_all"] <= 50
    counts = {"in_all": (24, 50), "seen": (21, 50), "held_out": (3, 24)}
    return {
        ("tags", f"{figure}_{of}"): (
            n_tags,
            figures[f"precision_{of}"].score.n_models if figure == "precision" else n_models,
        )
        for of, (n_tags, n_models) in counts.items()
        for figure in ("precision", "recall", "precision_at_1")
    }


def test_every_figure_has_its_denominators(measured):
    counted = {
        (task, key): (figure.n_classes, figure.score.n_models)
        for task, figures in measured.items()
        for key, figure in figures.items()
    }
    seen, held_out = (13, 26), (3, 24)
    assert counted == {
        ("classify", "accuracy"): seen,
        ("classify", "auc"): seen,
        ("zero_shot", "among_held_out"): held_out,
        ("zero_shot", "among_all"): (16, 24),
        ("zero_shot", "seen_among_all"): (16, 26),
        ("knn", "accuracy_seen"): seen,
        ("knn", "accuracy_held_out"): held_out,
        ("occ", "auc_nearest_seen"): seen,
        ("occ", "auc_mahalanobis_seen"): seen,
        ("occ", "auc_nearest_held_out"): held_out,
        ("occ", "auc_mahalanobis_held_out"): held_out,
        ("retrieval", "precision_seen"): seen,
        ("retrieval", "mean_average_precision_seen"): seen,
        ("retrieval", "precision_held_out"): held_out,
        ("retrieval", "mean_average_precision_held_out"): held_out,
        # Here a class is what is asked.
        ("retrieval", "mean_average_precision_by_text_seen"): (13, 13),
        ("retrieval", "mean_average_precision_by_text_held_out"): (3, 3),
        **counted_tags(measured["tags"]),
    }
    assert measured["zero_shot"]["among_held_out"].chance == pytest.approx(1 / 3)
    # Of whatever candidates: no one answer is right of more than the commonest class asked.
    assert measured["zero_shot"]["among_all"].chance == pytest.approx(1 / 3)
    assert measured["classify"]["auc"].chance == 0.5
    assert measured["occ"]["auc_nearest_seen"].chance == 0.5
    assert measured["retrieval"]["precision_held_out"].chance == pytest.approx(1 / 3)


def test_the_representations_tell_the_concepts(measured):
    for figures in measured.values():
        for figure in figures.values():
            assert figure.score.low <= figure.score.value <= figure.score.high, figure
            assert figure.score.value > figure.chance + 0.1, figure


@pytest.mark.parametrize(
    ("known", "queried", "kind"),
    [("train", "test", "seen"), ("val_holdout", "test_holdout", "held_out")],
)
def test_the_figures_are_what_numpy_and_scikit_learn_find(subject, measured, known, queried, kind):
    known_e, queries = encoded(subject, known), encoded(subject, queried)
    known_labels, truth = labels(subject, known), labels(subject, queried)
    squares = ((queries[:, None] - known_e[None]) ** 2).sum(-1)
    order = squares.argsort(axis=1)
    relevant = known_labels[order] == truth[:, None]
    precision = relevant[:, :3].mean()
    assert measured["retrieval"][f"precision_{kind}"].score.value == pytest.approx(precision)
    areas = []
    for name in sorted(set(truth)):
        near = np.sort(np.sqrt(squares[:, known_labels == name]), axis=1)[:, :2].mean(1)
        areas.append(roc_auc_score(truth == name, -near))
    assert measured["occ"][f"auc_nearest_{kind}"].score.value == pytest.approx(np.mean(areas))
    votes = [
        max(row[:3].tolist(), key=row[:3].tolist().count) == name
        for row, name in zip(known_labels[order], truth, strict=True)
    ]
    assert measured["knn"][f"accuracy_{kind}"].score.value == pytest.approx(np.mean(votes))


def test_retrieval_by_text_ranks_the_queried_models(subject, measured):
    expert = subject.experts["val"]
    e = encoded(subject, "test")
    truth = labels(subject, "test")
    found = []
    for name in subject.store.seen_classes:
        text = np.asarray(expert.place([f"a photo of a {name}"]), np.float64)[0]
        found.append(average_precision_score(truth == name, e @ text))
    figure = measured["retrieval"]["mean_average_precision_by_text_seen"]
    assert figure.score.value == pytest.approx(np.mean(found), rel=1e-4)


def test_accuracy_by_class_adds_up(subject, measured):
    figure = measured["classify"]["accuracy"]
    assert set(figure.by_class) == set(subject.store.seen_classes)
    # Two test models of each class.
    assert np.mean(list(figure.by_class.values())) == pytest.approx(figure.score.value)


def test_baselines_read_factors(subject, tmp_path):
    """They are told apart by kernels of factors; what factors do not tell is said."""
    compared = compare(subject, tmp_path)
    assert compared.left_out.keys() == {"ridge, matrices", "forest on statistics"}
    found = {each.method: each for each in compared.others}
    expert, store = subject.experts["val"], subject.store
    assert compared.ours.accuracy == evaluate(expert, store)[0]
    assert found["commonest class"].accuracy.value < 0.2
    assert found["ridge, everything"].accuracy.value > 0.5
    assert found["logistic regression, everything"].auc.value > 0.9


def test_classes_with_too_few_known_models_are_left_out(subject, toy_lora_zoo, tmp_path):
    """Of one held-out class no model is known, of another one."""
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    by_class = {name: [] for name in HELD_OUT}
    for model in subject.store.split("val_holdout"):
        by_class[model.labels[0]].append(model.id)
    for name, kept in ((HELD_OUT[0], 0), (HELD_OUT[1], 1)):
        for model in by_class[name][kept:]:
            shutil.rmtree(tmp_path / "ToyLoRA" / "val_holdout" / model)
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    fewer = Subject(subject.experts, store, neighbours=3)
    figures = {figure.key: figure for figure in (*measure(fewer, "occ"), *measure(fewer, "knn"))}
    assert set(figures) == {
        "auc_nearest_seen",
        "auc_mahalanobis_seen",
        "auc_nearest_held_out",
        "accuracy_seen",
        "accuracy_held_out",
    }
    for key in ("auc_nearest_held_out", "accuracy_held_out"):
        assert (figures[key].n_classes, figures[key].score.n_models) == (2, 16)
    assert figures["auc_nearest_held_out"].score.value > 0.6


def test_classes_trained_on_are_no_held_out_ones(subject, toy_lora_zoo, tmp_path):
    """Elsewhere a class is held out that the expert was trained on."""
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    for split, target in (("val", "val_holdout"), ("test", "test_holdout"), ("train", None)):
        for model in subject.store.split(split):
            if model.labels[0] == "red dog":
                path = tmp_path / "ToyLoRA" / split / model.id
                shutil.move(path, tmp_path / "ToyLoRA" / target) if target else shutil.rmtree(path)
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    for task in ("zero_shot", "knn", "occ", "retrieval"):
        with pytest.raises(px.ProbexError, match="was trained on class 'red dog', which is held"):
            measure(Subject(subject.experts, store), task)


def test_one_queried_class_leaves_one_class_classification_out(subject, toy_lora_zoo, tmp_path):
    shutil.copytree(toy_lora_zoo, tmp_path / "ToyLoRA")
    for model in subject.store.split("test_holdout"):
        if model.labels[0] != "red cat":
            shutil.rmtree(tmp_path / "ToyLoRA" / "test_holdout" / model.id)
    store = px.pack(px.scan(tmp_path / "ToyLoRA"), tmp_path / "s").store
    figures = measure(Subject(subject.experts, store), "occ")
    assert {figure.classes for figure in figures} == {"seen"}
    assert len(measure(Subject(subject.experts, store), "knn")) == 2


def toy_store_zoo(store):
    """The folder of test models that a store was packed from."""
    return Path(store.split("test")[0].source).parent


def test_what_does_not_fit_is_refused(subject, toy_store, tmp_path):
    with pytest.raises(px.ProbexError, match="--tasks: 'cook' is not one of classify, zero_shot"):
        measure(subject, "cook")
    sweep(
        toy_store,
        tmp_path,
        encoder=ENCODER,
        head="class",
        recipe=Adam(epochs=1, eval_every=1),
        layers=["a.weight"],
    )
    of_classes = Subject(load_experts(tmp_path), toy_store)
    with pytest.raises(px.ProbexError, match="text"):
        measure(of_classes, "zero_shot")
    with pytest.raises(px.ProbexError, match="3 classes"):
        measure(of_classes, "knn")
    accuracy, _ = measure(of_classes, "classify")
    assert accuracy.n_classes == 6
    (root := tmp_path / "Toy").mkdir()
    shutil.copytree(toy_store_zoo(toy_store), root / "test")
    (root / "zoo.json").write_text(json.dumps({"classes": list(toy_store.classes)}))
    only_test = px.pack(px.scan(root), tmp_path / "s").store
    again, _ = measure(Subject(of_classes.experts, only_test), "classify")
    assert again.score == accuracy.score
    assert 0.5 <= again.chance <= 1
    with pytest.raises(px.ProbexError, match="the expert is of tree ToyLoRA"):
        measure(Subject(subject.experts, toy_store), "knn")
