"""Conditions of strangers: what they mean, alone and in an index, and what they cannot say."""

import pytest

from probex_jax import ProbexError
from probex_jax.search import Filter, Snapshot, snapshot
from probex_jax.search.conditions import conditions
from tests.told import NUMBER, SEVERAL, told_forest, told_index

VALUES = {"accuracy": 0.93, "seed group": 2.0, "optimiser": "adamw", "tags": ("a b", "c")}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return told_index(told_forest(tmp_path_factory.mktemp("told")))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("accuracy > .9", True),
        ("accuracy>.95", False),
        ("accuracy >= 0.93 and accuracy <= 93e-2", True),
        ("accuracy < -1", False),
        ('"seed group" = 2', True),
        ('"seed group" != 2, accuracy > 0', False),
        ("optimiser = adamw AND accuracy > .1", True),
        ("optimiser != 'adamw'", False),
        ('tags = "a b"', True),
        ("tags != c", False),
        ("tags != d", True),
        ("", True),
    ],
)
def test_conditions_are_met_or_not(text, holds):
    found = conditions(text)
    for one in found:
        one.check(VALUES)
    assert all(one.holds(VALUES) for one in found) == holds
    assert not any(one.holds({}) for one in found)


@pytest.mark.parametrize(
    "text",
    [
        "accuracy",
        "accuracy > ",
        "> 3",
        "accuracy > .9 or 1 = 1",
        "accuracy > .9; DROP TABLE models",
        "accuracy > (select 1)) --",
        "accuracy > .9 and",
        "accuracy > .9 accuracy < 1",
        "nope = 3",
        "accuracy = high",
        "optimiser > adamw",
        "accuracy > 0," * 20 + "accuracy > 0",
    ],
)
def test_anything_else_is_one_line(text):
    def checked():
        for one in conditions(text):
            one.check(VALUES)

    with pytest.raises(ProbexError, match="filter") as error:
        checked()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "written",
    [
        f'"{NUMBER}" > 5',
        f'"{NUMBER}" <= 4.5 and kind != ant',
        f'"{SEVERAL}" = ant',
        f'"{SEVERAL}" != ant, kind = bee',
        'kind = "it\'s"',
    ],
)
def test_a_snapshot_finds_what_the_index_finds(index, monkeypatch, written):
    snap, where = Snapshot(index), Filter(conditions=conditions(written), sort=f"-{NUMBER}")
    listed = [hit.id for hit in snap.listed(100, where)]
    asked = index.search(where=where.sql(snap.attributes), sort=f"-{NUMBER}", k=100)
    assert sorted(listed) == sorted(hit.id for hit in asked)
    vector_T = snap.vectors_NT[0]
    near = [hit.id for hit in snap.near(vector_T, 4, where)]
    assert set(near) <= set(listed)
    assert [hit.attributes[NUMBER] for hit in snap.near(vector_T, 4, where)] == sorted(
        (hit.attributes[NUMBER] for hit in snap.models if hit.id in near), reverse=True
    )
    monkeypatch.setattr(snapshot, "ANN_MODELS", 1)
    assert [hit.id for hit in snap.near(vector_T, 4, where)] == near
