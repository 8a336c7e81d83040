"""Every measure against a plain float64 reference, one query and one pair at a time."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from probex_jax import ProbexError
from probex_jax.fitting import metrics
from probex_jax.search import auc, knn, mahalanobis, neighbours, one_class, retrieval

CLASSES = 4


@pytest.fixture
def known():
    """Models of known class far from the origin, and queries among them."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(CLASSES, size=60)
    centres = 2 * rng.normal(size=(CLASSES, 7))
    train_NT = 50 + centres[labels_N] + 2 * rng.normal(size=(60, 7))
    labels_Q = rng.integers(CLASSES, size=25)
    queries_QT = 50 + centres[labels_Q] + 2 * rng.normal(size=(25, 7))
    return train_NT.astype("f4"), labels_N, queries_QT.astype("f4"), labels_Q


def plain_distances(queries_QT, train_NT):
    return np.array([[((q - g) ** 2).sum() for g in train_NT] for q in np.float64(queries_QT)])


def test_near_duplicates_far_from_the_origin_keep_their_distance():
    rng = np.random.default_rng(1)
    gallery_NT = (1000 + rng.normal(size=(8, 5))).astype("f4")
    queries_QT = gallery_NT + np.float32(2**-8) * np.eye(8, 5, dtype="f4")
    got = one_class(gallery_NT, np.arange(8), queries_QT, k=1)
    expected = np.sqrt(plain_distances(queries_QT, gallery_NT))
    np.testing.assert_allclose(got, expected, atol=2e-3)


def plain_knn(train_NT, labels_N, queries_QT, k):
    """Most votes among the k nearest; then the class whose nearest is nearest."""
    predicted = []
    for row in plain_distances(queries_QT, train_NT):
        nearest = np.argsort(row, kind="stable")[:k]
        votes = {}
        for place, model in enumerate(nearest):
            count, first = votes.get(labels_N[model], (0, place))
            votes[labels_N[model]] = (count + 1, first)
        predicted.append(max(votes, key=lambda label: (votes[label][0], -votes[label][1])))
    return predicted


@pytest.mark.parametrize("k", [1, 2, 4, 5, 60])
def test_knn_agrees_with_the_rule_written_out(known, k):
    train_NT, labels_N, queries_QT, _ = known
    assert knn(train_NT, labels_N, queries_QT, k).tolist() == plain_knn(
        train_NT, labels_N, queries_QT, k
    )


def test_equal_votes_go_to_the_nearer_class_whatever_its_number():
    gallery, queries = [[1.0], [-2.0], [-2.5], [3.0]], [[0.0]]
    assert knn(gallery, [9, 4, 4, 9], queries, 4).tolist() == [9]
    assert knn(gallery, [2, 4, 4, 2], queries, 4).tolist() == [2]
    assert knn(gallery, [9, 4, 4, 9], queries, 3).tolist() == [4]


def test_of_two_models_at_one_distance_the_earlier_is_nearer():
    assert knn([[1.0], [-1.0]], [3, 5], [[0.0]], 1).tolist() == [3]
    assert knn([[-1.0], [1.0]], [5, 3], [[0.0]], 1).tolist() == [5]


@pytest.mark.parametrize("k", [1, 2, 30])
def test_one_class_is_the_mean_distance_to_the_k_nearest_of_the_class(known, k):
    train_NT, labels_N, queries_QT, _ = known
    plain = np.sqrt(plain_distances(queries_QT, train_NT))
    expected = np.stack(
        [np.sort(plain[:, labels_N == c], axis=1)[:, :k].mean(axis=1) for c in range(CLASSES)], 1
    )
    assert np.bincount(labels_N).max() < 30  # so that k = 30 uses what a class has
    np.testing.assert_allclose(one_class(train_NT, labels_N, queries_QT, k), expected, rtol=1e-5)


def test_queries_worked_off_in_turn_give_the_same(known, monkeypatch):
    train_NT, labels_N, queries_QT, labels_Q = known
    whole = one_class(train_NT, labels_N, queries_QT)
    nearest = knn(train_NT, labels_N, queries_QT, 5)
    found = retrieval(train_NT, labels_N, queries_QT, labels_Q, 5)
    monkeypatch.setattr(neighbours, "_BYTES", 4 * len(train_NT) * 4)  # four queries, one is left
    for function in (neighbours._nearest, neighbours._one_class):
        function.clear_cache()
    np.testing.assert_allclose(one_class(train_NT, labels_N, queries_QT), whole, rtol=1e-6)
    assert knn(train_NT, labels_N, queries_QT, 5).tolist() == nearest.tolist()
    assert retrieval(train_NT, labels_N, queries_QT, labels_Q, 5) == found


@pytest.mark.parametrize("of_two", [False, True])
def test_mahalanobis_is_scikit_learns_class_by_class(known, of_two):
    train_NT, labels_N, queries_QT, _ = known
    if of_two:  # classes whose covariance is not shrunk and has no inverse
        rows = np.concatenate([np.flatnonzero(labels_N == c)[:2] for c in range(CLASSES)])
        train_NT, labels_N = train_NT[rows], labels_N[rows]
    expected = [
        LedoitWolf().fit(np.float64(train_NT[labels_N == c])).mahalanobis(np.float64(queries_QT))
        for c in range(CLASSES)
    ]
    np.testing.assert_allclose(
        mahalanobis(train_NT, labels_N, queries_QT), np.stack(expected, 1), rtol=1e-8
    )


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_its_interval_are_scikit_learns_on_every_resample(known, ties, monkeypatch):
    monkeypatch.setattr(metrics, "_DRAWS", 60)
    train_NT, labels_N, queries_QT, labels_Q = known
    queries_QT, labels_Q = queries_QT[:9], np.array([0, 0, 1, 1, 1, 1, 2, 2, 2])  # none of 3
    scores_QC = one_class(train_NT, labels_N, queries_QT)
    scores_QC = scores_QC.round(0) if ties else scores_QC

    def plain(rows):
        of_rows = [c for c in range(CLASSES) if 0 < (labels_Q[rows] == c).sum() < len(rows)]
        areas = [roc_auc_score(labels_Q[rows] == c, -scores_QC[rows, c]) for c in of_rows]
        return np.mean(areas)

    score = auc(scores_QC, labels_Q)
    draws_DQ = np.random.default_rng(0).integers(9, size=(60, 9))
    areas = [plain(draw) for draw in draws_DQ]
    assert score.value == pytest.approx(plain(np.arange(9)), abs=1e-12)
    np.testing.assert_allclose((score.low, score.high), np.quantile(areas, [0.025, 0.975]))
    assert score.n_models == 9
    assert score.low < score.value < score.high


def test_draws_of_one_class_alone_do_not_count():
    score = auc([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)


def test_retrieval_counts_relevant_models_from_the_top(known):
    train_NT, labels_N, queries_QT, labels_Q = known
    precisions, averages = [], []
    for place, row in enumerate(plain_distances(queries_QT, train_NT)):
        order = np.argsort(row)
        relevant = [labels_N[n] == labels_Q[place] for n in order]
        precisions.append(sum(relevant[:5]) / 5)
        at = [sum(relevant[: n + 1]) / (n + 1) for n in range(len(order)) if relevant[n]]
        averages.append(np.mean(at))
    found = retrieval(train_NT, labels_N, queries_QT, labels_Q, 5)
    assert found.precision.value == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found.mean_average_precision.value == pytest.approx(np.mean(averages), abs=1e-6)
    assert found.precision.low < found.precision.value < found.precision.high


def test_a_query_without_a_relevant_model_is_left_out():
    found = retrieval([[0.0], [1.0]], [0, 1], [[0.1], [0.2], [0.3]], [0, 1, 7], 1)
    assert found.precision.n_models == 2
    assert found.precision.value == 0.5
    assert found.mean_average_precision.value == 0.75


X, LABELS = np.zeros([3, 2]), np.array([0, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(X, LABELS, X, 4), "k is 4"),
        (lambda: knn(X, LABELS, X, 0), "k is 0"),
        (lambda: knn(X, LABELS, X[:, :1], 1), r"\(3, 2\) and \(3, 1\)"),
        (lambda: knn(X, LABELS[:2], X, 1), "labels"),
        (lambda: knn(X, LABELS / 2, X, 1), "labels"),
        (lambda: knn(X, LABELS, X[:0], 1), "no models"),
        (lambda: one_class(X, LABELS, X, 0), "k is 0"),
        (lambda: one_class(X, 2 * LABELS, X), "class 1"),
        (lambda: one_class(X, LABELS - 1, X), "class 0"),
        (lambda: mahalanobis(X, LABELS, X), "class 1"),
        (lambda: mahalanobis(X, 0 * LABELS, X), "class 0"),
        (lambda: auc(X, LABELS + 1), "labels"),
        (lambda: auc(X, 0 * LABELS), "two classes"),
        (lambda: auc(X, LABELS[:2]), "do not fit"),
        (lambda: retrieval(X, LABELS, X, LABELS, 4), "k is 4"),
        (lambda: retrieval(X, LABELS, X, LABELS + 5, 1), "any query"),
        (lambda: retrieval(X, LABELS, X, LABELS[:2], 1), "3 queries and labels"),
    ],
)
def test_what_cannot_be_measured_is_said(call, message):
    with pytest.raises(ProbexError, match=message):
        call()


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.covariance", None)
    with pytest.raises(ProbexError, match="pip install scikit-learn"):
        mahalanobis(X, 0 * LABELS, X)
