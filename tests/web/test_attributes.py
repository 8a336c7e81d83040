"""The page and `/api` about predicted attributes."""

import re

import httpx
import pytest

from tests.told import NUMBER, SEVERAL, told_forest, told_index
from tests.web.conftest import served

pytestmark = pytest.mark.xdist_group("web")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return told_index(told_forest(tmp_path_factory.mktemp("told")))


@pytest.fixture(scope="module")
def client(index, tmp_path_factory):
    forest, temporary = index.path.parent / "forest", tmp_path_factory.mktemp("temporary")
    with (
        served(forest, [index.path], temporary) as made,
        httpx.Client(base_url=made.address, timeout=120) as client,
    ):
        yield client


def test_models_are_listed_by_an_attribute(client, index):
    params = {"filter": f'"{NUMBER}" > 4', "sort": f"-{NUMBER}", "k": 5}
    found = client.get("/api/search", params=params).json()["hits"]
    expected = index.search(where=f'"{NUMBER}" > 4', sort=f"-{NUMBER}", k=5)
    assert [hit["id"] for hit in found] == [hit.id for hit in expected]
    assert found[0]["attributes"].keys() == {NUMBER, SEVERAL, "kind"}
    assert "similarity" not in found[0]


def test_similar_models_are_filtered_and_sorted(client, index):
    params = {"like": "m03", "filter": f'"{NUMBER}" > 4', "sort": NUMBER, "k": 4}
    found = client.get("/api/search", params=params).json()["hits"]
    values = [hit["attributes"][NUMBER] for hit in found]
    assert values == sorted(values)
    assert min(values) > 4
    model = next(index.path.parent.glob("Ant/*/m03/model.safetensors"))
    del params["like"]
    answer = client.post("/api/search", params=params | {"k": 5}, content=model.read_bytes())
    sent = {hit["id"] for hit in answer.json()["hits"]}
    assert {hit["id"] for hit in found} | {"m03"} == sent


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"filter": "accuracy > .9"}, NUMBER),
        ({"filter": "1=1) OR (1=1"}, "filter"),
        ({"sort": "-nope"}, NUMBER),
        ({"sort": SEVERAL}, "several"),
        ({"filter": "kind = " + "x" * 1000}, "at most"),
        ({"like": "m03", "filter": "kind > 3"}, "kind"),
    ],
)
def test_mistakes_are_one_line(client, params, says):
    answer = client.get("/api/search", params=params)
    assert answer.status_code == 422
    [line] = answer.json()["error"].splitlines()
    assert says in line
    assert "attribute_" not in line


def test_a_description_has_intervals_and_sets(client, index):
    model = next(index.path.parent.glob("Ant/*/m03/model.safetensors"))
    found = client.post("/api/describe?name=m", content=model.read_bytes()).json()
    of = {answer["label_set"]: answer for answer in found["answers"]}
    quantity = of[NUMBER]["quantity"]
    assert quantity["low"] < quantity["value"] < quantity["high"]
    assert isinstance(of["kind"]["likely"], list)
    assert re.search(rf"\| `{NUMBER}` +\| [-\d.]+ ", found["card"])


def test_the_forest_lists_what_can_be_asked(client):
    (tree,) = client.get("/api/forest").json()["trees"]
    assert [one["attribute"] for expert in tree["experts"] for one in expert["attributes"]] == [
        NUMBER,
        SEVERAL,
        "kind",
    ]
