"""The benchmark of lineage: what the other methods choose, and what counts as right."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.benchmarks.lineage import measure, p_values, report, rivals, score


def _chain(**changes):
    """A root, its child and its grandchild, one after the other on a line."""
    place_K = np.array([0.0, 1.0, 2.0])
    distance_KK = np.abs(place_K[:, None] - place_K)
    known = {
        "distance_KK": distance_KK,
        "rank_KK": distance_KK,
        "kurtosis_K": np.array([3.0, 2.0, 1.0]),
        "norm_K": np.array([1.0, 2.0, 3.0]),
    }
    return rivals.Measured(**known | changes)


def test_mother_goes_where_kurtosis_goes():
    assert rivals.mother(_chain()) == {1: 0, 2: 1}
    assert rivals.mother(_chain(), specialising=False) == {0: 1, 1: 2}
    rising = _chain(kurtosis_K=np.array([1.0, 2.0, 3.0]))
    assert rivals.mother(rising) == {0: 1, 1: 2}


def test_mother_pays_a_share_of_the_mean_distance_for_a_wrong_direction():
    """From the nearest model the wrong way, if the next one is farther by more than the penalty."""
    distance_KK = np.array([[0, 1, 5], [1, 0, 4.9], [5, 4.9, 0]])
    known = _chain(distance_KK=distance_KK, kurtosis_K=np.array([3.0, 1.0, 2.0]))
    # 0.3 of 2.42 is more than the 0.1 that the child of the wrong one would save.
    assert rivals.mother(known) == {1: 0, 2: 0}
    distance_KK = np.array([[0, 1, 9], [1, 0, 4.9], [9, 4.9, 0]])
    assert rivals.mother(_chain(distance_KK=distance_KK, kurtosis_K=known.kurtosis_K)) == {
        1: 0,
        2: 1,
    }


def test_mother_by_rank_asks_ranks_alone():
    ranks = np.array([[0, 2, 1], [2, 0, 1], [1, 1, 0.0]])
    assert rivals.mother(_chain(rank_KK=ranks), by_rank=True) == {2: 0, 1: 2}


def test_the_spanning_tree_is_rooted_in_its_middle():
    assert rivals.spanning(_chain()) == {0: 1, 2: 1}


def test_the_nearest_with_a_smaller_norm_is_the_parent():
    assert rivals.nearest(_chain()) == {1: 0, 2: 1}
    assert rivals.nearest(_chain(norm_K=np.array([1.0, 3.0, 2.0]))) == {2: 0, 1: 0}
    assert rivals.nearest(_chain(), growing=False) == {1: 2, 0: 1}


def test_models_that_are_left_out_are_not_known():
    known = rivals.without(_chain(), np.array([False, True, False]))
    assert rivals.mother(known) == {1: 0}
    assert known.distance_KK.tolist() == [[0, 2], [2, 0]]


def _edge(parent, child, kind="fine-tune", **more):
    return {"parent": parent, "child": child, "kind": kind, "confidence": 0.9} | more


def _truth(kind, **parents):
    return {"role": kind, "kind": kind, "parents": parents}


# A root, two children, a merge of these, a copy of a child, and one that is no kin.
RECORD = {
    "kind": "MiniMAE",
    "name": "made by hand",
    "truth": {
        "r": _truth("root"),
        "a": _truth("fine-tune", r=1.0),
        "b": _truth("fine-tune", r=1.0),
        "m": _truth("merge", a=0.4, b=0.6) | {"method": "linear"},
        "c": _truth("copy", a=1.0),
        "u": _truth("unrelated"),
    },
    "copies": [["c", "a"]],
    "seconds": 1.0,
    "p_values": {"a": [0.0001], "b": [0.5], "m": [0.0001, 0.0001]},
}


def _record(edges, others=None):
    variants = {name: others or {} for each in rivals.METHODS.values() for name in each}
    return RECORD | {"edges": edges, "others": variants, "others_without_merges": variants}


def test_right_and_wrong_parents():
    record = _record(
        [
            _edge("r", "c"),  # the copy stands for a
            _edge("b", "r"),  # the wrong way round
            _edge("c", "m", "merge", coefficient=0.41),
        ],
        {"a": "r", "b": "a", "m": "b"},
    )
    ours = {(a.kind, a.directed, a.undirected) for a in score.answers(record, score.OURS)}
    assert ours == {
        ("fine-tune", True, True),
        ("fine-tune", False, True),
        ("merge", True, True),
    }
    other = [a.directed for a in score.answers(record, "L2 tree")]
    assert other == [True, False, True]
    alone = list(score.answers(record, "L2 tree", "others_without_merges"))
    assert [a.kind for a in alone] == ["fine-tune", "fine-tune"]


def test_an_extra_parent_is_wrong():
    record = _record([_edge("r", "a"), _edge("b", "a"), _edge("a", "m"), _edge("r", "m")])
    assert not any(answer.directed for answer in score.answers(record, score.OURS))


def test_copies_are_found_or_false():
    assert score.copies(RECORD) == ([True], 0)
    assert score.copies(RECORD | {"copies": [["r", "u"]]}) == ([False], 1)
    assert score.copies(RECORD | {"copies": [["a", "c", "b"]]}) == ([True], 1)


def test_metrics_of_ours():
    edges = [
        _edge("r", "a"),
        _edge("r", "b", "pruned", confidence=0.6),
        _edge("a", "m", "merge", coefficient=0.41),
        _edge("b", "m", "merge", coefficient=0.63),
        _edge("r", "u", confidence=0.1),
    ]
    found = report.metrics([_record(edges)] * 3, {"MiniMAE": [0.5] * 3})
    assert found["edges"]["true edges found, directed"][0] == 1
    assert found["edges"]["stated edges that are true"][0] == pytest.approx(0.8)
    assert found["edges"]["kind right, of these"][0] == 0.75
    assert found["merges"]["merge"]["largest_error"] == pytest.approx(0.03)
    assert found["merges"]["merge"]["within"] == 0.5
    assert found["others"]["unrelated models left without parents"][0] == 0
    assert found["true_pairs"]["fine-tune"]["below_0.001"] == 0.5
    bins = {each["from"]: each["right"] for each in found["reliability"]}
    assert bins == {0.0: 0.0, 0.5: 1.0, 0.9: 1.0}
    ours = found["by_edge"]["others"][score.ALL][score.OURS]
    assert ours["directed"] == [1, 1, 1, 9]
    assert "MiniMAE" in report.text(found)
    json.dumps(found)


def test_intervals_are_over_families():
    """Families that are right or wrong as a whole tell less than as many models."""
    rights = [[True] * 10, [False] * 10] * 4
    share, low, high, total = score.share(rights, lambda family: family)
    assert (share, total) == (0.5, 80)
    assert low < 0.25
    assert high > 0.75
    mixed = score.share([[True, False] * 5] * 8, lambda family: family)
    assert mixed == [0.5, 0.5, 0.5, 80]
    assert score.share([[], []], lambda family: family) is None


def test_shares_of_p_values():
    """One model that is like all others is one piece of evidence, not as many as its pairs."""
    count = 20
    p_MM = np.ones((count, count))
    p_MM[0] = 0.005
    shares = p_values.shares_below(p_MM[np.triu_indices(count, 1)].tolist())
    assert shares["0.05"][0] == shares["0.01"][0] == pytest.approx(2 / count)
    assert shares["0.05"][1] == 0  # it may not be drawn
    assert shares["0.001"] == [0, 0, 0]


def test_a_family_on_disk_is_measured(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"body.0.weight": (48, 64), "body.1.weight": (64, 48)}

    def near(like, size=0.05):
        return {n: (x + size * rng.normal(size=x.shape)).astype("f4") for n, x in like.items()}

    models = {"r": near({name: np.zeros(shape) for name, shape in sizes.items()}, 1)}
    models |= {"a": near(models["r"]), "b": near(models["r"])}
    models["m"] = {name: (0.4 * x + 0.6 * models["b"][name]) for name, x in models["a"].items()}
    models["c"] = {name: x.astype("f2") for name, x in models["a"].items()}
    models["u"] = near({name: np.zeros(shape) for name, shape in sizes.items()}, 1)
    (tmp_path / "models").mkdir()
    for name, tensors in models.items():
        (tmp_path / "models" / name).mkdir()
        save_file(tensors, tmp_path / "models" / name / "model.safetensors")
    card = {"kind": "MiniMAE", "models": RECORD["truth"]}
    (tmp_path / "family.json").write_text(json.dumps(card))
    record = json.loads(json.dumps(measure.measured(tmp_path)))
    assert score.copies(record) == ([True], 0)
    assert record["p_values"]["a"][0] < 0.001
    known = rivals.measured([tmp_path / "models" / name for name in "rab"])
    change = [models["a"][name] - models["r"][name] for name in sizes]
    assert known.distance_KK[0, 1] == pytest.approx(np.mean([np.linalg.norm(x) for x in change]))
    assert known.rank_KK[0, 1] == 48
    found = report.metrics([record], {})
    assert found["merges"]["merge"]["parents"][0] == 1
    assert set(record["others"]) == {v for each in rivals.METHODS.values() for v in each}
    assert "m" not in record["others_without_merges"]["L2 tree"]
