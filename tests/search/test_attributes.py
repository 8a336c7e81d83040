"""An index with predicted attributes: its columns, conditions and orders by them."""

import json
import shutil

import numpy as np
import pytest
from pyarrow import parquet

from probex_jax import Forest, LayerStore, ProbexError
from probex_jax.forest import grow
from probex_jax.search import Index, Indexes, ModelTable, find_models, verify_index
from probex_jax.search.searching import Searchable
from tests.end_to_end.warm import run
from tests.forest.conftest import class_expert, write_member
from tests.told import NUMBER, SEVERAL, index_expert, told_forest, told_index


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return told_forest(tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def whole(zoo):
    """The index of all models, to read."""
    return told_index(zoo)


def described(zoo):
    """Model to its answers by the forest itself."""
    models = find_models(zoo / "Ant")
    found = Forest.load(zoo / "forest").describe_all([model.path for model in models])
    return {
        model.id: {answer.label_set: answer for answer in description.answers}
        for model, description in zip(models, found, strict=True)
    }


def test_attributes_are_those_that_a_description_tells(zoo, whole):
    answers = described(zoo)
    hits = whole.search(sort=NUMBER, k=100)
    assert len(hits) == len(answers)
    assert whole.attributes == (NUMBER, SEVERAL, "kind")
    for hit in hits:
        expected = answers[hit.id]
        assert hit.attributes[NUMBER] == pytest.approx(expected[NUMBER].quantity.value)
        assert hit.attributes["kind"] == expected["kind"].predictions[0].label
        assert set(hit.attributes[SEVERAL]) == {p.label for p in expected[SEVERAL].predicted}
    values = [hit.attributes[NUMBER] for hit in hits]
    assert len(set(values)) > 5
    assert values == sorted(values)
    falling = [hit.id for hit in whole.search(sort=f"-{NUMBER}", k=100)]
    assert falling == [hit.id for hit in hits][::-1]
    assert list(verify_index(zoo / "index")) == []


def test_conditions_and_orders_name_attributes_as_they_are(zoo, whole):
    values = {hit.id: hit.attributes for hit in whole.search(sort=NUMBER, k=100)}
    middle = float(np.median([told[NUMBER] for told in values.values()]))
    above = whole.search(where=f"\"{NUMBER}\" > {middle} AND kind <> 'x'", k=100)
    assert {hit.id for hit in above} == {id for id, v in values.items() if v[NUMBER] > middle}
    label = values["m00"][SEVERAL][0]
    having = whole.search(where=f"array_has(`{SEVERAL}`, '{label}') and tree = 'Ant'", k=100)
    assert {hit.id for hit in having} == {id for id, v in values.items() if label in v[SEVERAL]}
    like = zoo / "Ant" / "train" / "m03"
    near = whole.search(like=like, where=f'"{NUMBER}" > {middle}', k=4)
    again = whole.search(like=like, where=f'"{NUMBER}" > {middle}', k=4, sort=f"-{NUMBER}")
    assert {hit.id for hit in near} == {hit.id for hit in again}
    assert all(hit.similarity > -1 for hit in again)
    found = [hit.attributes[NUMBER] for hit in again]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"where": "accuracy > .9"}, ("accuracy", NUMBER, "kind")),
        ({"where": f"\"{NUMBER}\" > 'much'"}, ("learning rate",)),
        ({"where": "kind = 'a') or (1"}, ("kind",)),
        ({"sort": "-accuracy"}, ("-accuracy", NUMBER, "kind")),
        ({"sort": SEVERAL}, ("what.it",)),
        ({}, ("query",)),
    ],
)
def test_what_cannot_be_asked_is_one_line_that_names_it(whole, asked, named):
    with pytest.raises(ProbexError) as error:
        whole.search(**asked)
    said = str(error.value)
    assert all(name in said for name in named)
    assert "attribute_" not in said
    assert "\n" not in said


def test_a_table_of_before_gets_columns_and_others_have_no_value(tmp_path):
    table = ModelTable(tmp_path, 4, create=True)
    x = np.eye(4)
    table.add([{"id": name, "path": name} for name in "ab"], x[:2])
    assert table.attributes == {}
    told = [{"accuracy": 0.95, "and": "yes", "id": "c", "lower": "x"}, {"accuracy": 0.5}]
    rows = [{"id": n, "path": n, "attributes": a} for n, a in zip("bc", told, strict=True)]
    table.add(rows, x[1:3])
    again = ModelTable(tmp_path, 4)
    found = {row["id"]: row["attributes"] for row in again.nearest(x.sum(0), 9)}
    of_b = {"accuracy": 0.95, "and": "yes", "predicted_id": "c", "lower": "x"}
    assert found == {"a": {}, "b": of_b, "c": told[1]}
    assert [row["id"] for row in again.nearest(x[0], 9, "predicted_id = 'c'")] == ["b"]
    assert [row["id"] for row in again.nearest(x[0], 9, "id = 'c'")] == ["c"]
    assert [row["id"] for row in again.nearest(x[0], 9, "lower(id) = 'b' and lower = 'x'")] == ["b"]
    assert [row["id"] for row in again.nearest(x.sum(0), 9, "accuracy > .9")] == ["b"]
    assert [row["id"] for row in again.nearest(x[0], 9, "accuracy > .1 and \"and\" = 'yes'")] == [
        "b"
    ]
    assert [row["id"] for row in again.ordered(9, "-accuracy")] == ["b", "c", "a"]
    assert [row["id"] for row in again.ordered(9, "accuracy")] == ["c", "b", "a"]
    assert [row["id"] for row in again.ordered(1, "accuracy")] == ["c"]
    with pytest.raises(ProbexError, match="accuracy"):
        table.add([{"id": "d", "path": "d", "attributes": {"accuracy": "high"}}], x[:1])
    table.add([{"id": "a", "path": "a", "attributes": {"accuracy": 0.7}}], x[:1])
    table.build_ann()
    table.compact()
    assert [row["id"] for row in table.ordered(9, "-accuracy")] == ["b", "a", "c"]
    assert list(again.everything(["id"])[0][0]) == ["id", "attributes"]


def test_models_are_asked_again_only_if_their_experts_change(tmp_path, zoo):
    for number in range(3):
        write_member(tmp_path / "models" / f"m{number}", 400 + number, ("ant",), of=1)
    shutil.copytree(zoo / "forest", tmp_path / "forest")
    expert = class_expert("Ant", 1, gain=9.0)
    made = Index.create_or_open(tmp_path / "index", index_expert())
    made.add_models(find_models(tmp_path / "models"))
    assert made.attributes == ()

    def add(forest):
        done = made.add_models(find_models(tmp_path / "models"), forest=forest)
        return done.updated, done.unchanged, len(done.failed)

    assert add(Forest.load(tmp_path / "forest")) == (3, 0, 0)
    assert add(Forest.load(tmp_path / "forest")) == (0, 3, 0)
    with pytest.raises(ProbexError, match="forest"):
        made.add_models(find_models(tmp_path / "models"))
    store = LayerStore.open(zoo / "store")
    grow(tmp_path / "forest", store, expert, label_set="more")
    assert add(Forest.load(tmp_path / "forest")) == (3, 0, 0)
    assert "more" in made.attributes
    assert all("more" in hit.attributes for hit in made.search(sort=NUMBER))


def test_several_indexes_are_ordered_as_one(tmp_path, zoo, whole):
    half = Index.create_or_open(tmp_path / "half", index_expert())
    half.add_models(find_models(zoo / "Ant")[:5], forest=Forest.load(zoo / "forest"))
    both: Searchable = Indexes([half, whole])
    expected = whole.search(sort=f"-{NUMBER}", k=7)
    assert [hit.id for hit in both.search(sort=f"-{NUMBER}", k=7)] == [hit.id for hit in expected]
    assert both.attributes == whole.attributes


def test_the_command_shows_what_was_asked_for_and_json_all(zoo, whole):
    hits = whole.search(sort=f"-{NUMBER}", k=3)
    asked = [f"--index={zoo / 'index'}", f"--sort=-{NUMBER}", "--k=3", "--filter=kind <> 'x'"]
    done = run("search", *asked)
    assert done.returncode == 0, done.stderr
    header, _, *rows = done.stdout.strip().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][-2:] == ["kind", NUMBER]
    assert "similarity" not in header
    assert all(hit.id in row for hit, row in zip(hits, rows, strict=True))
    done = run("search", *asked, "--json")
    found = json.loads(done.stdout)
    assert [hit["attributes"].keys() for hit in found["hits"]] == [hits[0].attributes.keys()] * 3
    assert "similarity" not in found["hits"][0]
    assert run("search", f"--index={zoo / 'index'}").returncode == 2


def test_the_export_is_of_all_models_once_with_their_vectors_and_attributes(tmp_path, zoo, whole):
    half = Index.create_or_open(tmp_path / "half", index_expert())
    half.add_models(find_models(zoo / "Ant")[:5])  # which knows no attributes
    assert Indexes([whole, half]).export(tmp_path / "map.parquet") == len(whole)
    found = parquet.read_table(tmp_path / "map.parquet").to_pylist()
    models, vectors = whole.everything()
    for row, model, vector in zip(found, models, vectors, strict=True):
        told = model.pop("attributes")
        told[SEVERAL] = list(told[SEVERAL])
        predicted = {f"predicted {name}": value for name, value in told.items()}
        assert row == model | predicted | {"vector": vector.tolist()}
    kind = found[0]["predicted kind"]
    for sought in (kind, "nothing"):
        asked = [f"--index={zoo / 'index'}", f"--export={tmp_path / 'some.parquet'}"]
        done = run("search", *asked, f"--filter=kind = '{sought}'")
        assert done.returncode == 0, done.stderr
        some = parquet.read_table(tmp_path / "some.parquet")["path"].to_pylist()
        assert some == [row["path"] for row in found if row["predicted kind"] == sought]
        assert len(some) == 0 or sought == kind
    assert run("search", *asked, "--query=a").returncode == 2


def test_an_export_of_attributes_of_two_kinds_is_one_line(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, value in zip(folders, (0.5, "high"), strict=True):
        dim = Index.create_or_open(folder, index_expert()).about["expert"]["rep_dim"]
        row = {"id": "a", "path": str(folder), "attributes": {"kind": value}}
        ModelTable(folder, dim).add([row], np.ones([1, dim]))
    with pytest.raises(ProbexError, match="kind"):
        Indexes.open(*folders).export(tmp_path / "map.parquet")
    assert not (tmp_path / "map.parquet").exists()
