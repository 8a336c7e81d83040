"""The table of vectors: upsert, filters, hostile text, the approximate index."""

import sys
import time
from datetime import timedelta

import lancedb
import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.search import ModelTable, lance_table

DIM = 16
HOSTILE = (
    "it's",
    "'; DROP TABLE models; --",
    "new\nline",
    "back\\slash",
    "back\\'both",
    '"double"',
    "per%cent_under",
    "ümläut €",
    "a, b') OR ('1' = '1",
)


def rows(names, **fields):
    return [{"id": name, "path": name, **fields} for name in names]


def vectors(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, DIM))


@pytest.fixture
def table(tmp_path):
    return ModelTable(tmp_path / "table", DIM, create=True)


def test_nearest_is_by_cosine_and_in_order(table):
    x, query = vectors(30), vectors(1, seed=1)[0]
    table.add(rows(map(str, range(30))), x)
    cosines = x @ query / np.linalg.norm(x, axis=1) / np.linalg.norm(query)
    found = table.nearest(query, 7)
    assert [row["id"] for row in found] == [str(n) for n in np.argsort(-cosines)[:7]]
    np.testing.assert_allclose(
        [row["similarity"] for row in found], np.sort(cosines)[:-8:-1], atol=1e-6
    )
    assert len(table.nearest(query, 99)) == 30
    assert max(table.nearest(v, 1)[0]["similarity"] for v in x) <= 1


@pytest.mark.parametrize("name", ["a b", "100%20", "what?", "x#y", "it's", "db:x", "ü", "file:"])
def test_the_folder_may_be_called_anything(tmp_path, name):
    ModelTable(tmp_path / name, DIM, create=True).add(rows("ab"), vectors(2))
    assert len(ModelTable(tmp_path / name, DIM)) == 2
    assert (tmp_path / name / "models.lance").is_dir()


def test_a_path_is_there_once_and_the_last_row_of_it_counts(table):
    x = vectors(4)
    table.add(rows("ab"), x[:2])
    table.add([*rows("b", split="old"), *rows("c"), *rows("b", split="new")], x[[2, 0, 3]])
    assert len(table) == 3
    (found,) = table.nearest(x[3], 9, "path = 'b'")
    assert found["split"] == "new"
    assert found["similarity"] == pytest.approx(1)


def test_hostile_text_is_kept_found_and_removed_as_it_is(table):
    x = vectors(len(HOSTILE) + 1)
    table.add([*(r | {"labels": [r["id"]], "text": r["id"]} for r in rows(HOSTILE)), *rows("z")], x)
    for number, name in enumerate(HOSTILE):
        literal = "'" + name.replace("'", "''") + "'"
        for where in (f"path = {literal}", f"array_has(labels, {literal})", f"text = {literal}"):
            assert [row["path"] for row in table.nearest(x[number], 9, where)] == [name]
    for name in HOSTILE:
        before = set(table.paths())
        assert set(table.stamps([name, "elsewhere"])) == {name}
        table.remove([name])
        assert before - set(table.paths()) == {name}
    table.add(rows(HOSTILE), x[:-1])
    table.remove(HOSTILE)
    assert set(table.paths()) == {"z"}


@pytest.mark.parametrize(
    "where",
    [
        "",
        "split =",
        "nope = 1",
        "split = 'a'; DROP",
        "split = 'a' rubbish",
        "labels > 2",
        "7",
        "array_has(labels, 1)",
        "CAST(id AS INT) = 1",
        "1/0 = 1",
        "regexp_match(id, '(')",
    ],
)
def test_a_bad_filter_is_named(table, where):
    table.add(rows("ab", labels=["cat"]), vectors(2))
    with pytest.raises(ProbexError, match=r"^filter ") as error:
        table.nearest(vectors(1)[0], 1, where)
    assert repr(where) in str(error.value)
    assert "cargo" not in str(error.value)


def test_the_ann_index_finds_what_was_there_and_what_came_after(table):
    x = vectors(1000)
    table.add(rows((f"old{n}" for n in range(1000)), split="a"), x)
    table.build_ann()
    assert table.recall() > 0.95
    new, moved = vectors(12, seed=1), vectors(12, seed=2)
    table.add(rows(f"new{n}" for n in range(12)), new)
    table.add(rows(f"old{n}" for n in range(12)), moved)
    for _ in range(2):  # before and after the index takes them in
        assert [table.nearest(v, 1)[0]["id"] for v in new] == [f"new{n}" for n in range(12)]
        assert [table.nearest(v, 1)[0]["id"] for v in moved] == [f"old{n}" for n in range(12)]
        assert all(table.nearest(v, 1)[0]["similarity"] < 0.999 for v in x[:12])
        table.compact()
    assert len(table.nearest(x[5], 50, "path IN ('old1', 'old700', 'new3')")) == 3
    table.remove(["old100"])
    assert table.nearest(x[100], 1)[0]["id"] != "old100"


def test_recall_is_low_where_the_search_finds_others(table, monkeypatch):
    x = vectors(400)
    table.add(rows(map(str, range(400))), x)
    assert table.recall() == 1
    search = table.nearest

    def half_blind(vector, k):
        return search(vector, 6) + [row | {"similarity": -1} for row in search(-vector, 5)]

    # Five of ten are right, and the query itself does not count as right.
    monkeypatch.setattr(table, "nearest", half_blind)
    assert table.recall() == pytest.approx(0.5)


def test_recall_of_copies_does_not_depend_on_which_copy_is_found(table):
    table.add(rows(map(str, range(300))), np.repeat(vectors(10), 30, axis=0))
    table.build_ann()
    assert table.recall() == 1


def test_paths_that_are_looked_up_by_an_index_are_the_same(table, tmp_path, monkeypatch):
    monkeypatch.setattr(lance_table, "_PATH_ROWS", 300)

    def indexed():
        made = lancedb.connect(str(tmp_path / "table")).open_table("models")
        return sorted(column for index in made.list_indices() for column in index.columns)

    names = [*HOSTILE, *map(str, range(280))]
    table.add(rows(names, stamp="old"), vectors(len(names)))
    table.index_paths()
    assert indexed() == []  # too few
    table.add(rows(map(str, range(280, 300)), stamp="old"), vectors(20, seed=1))
    table.index_paths()
    table.build_ann()
    assert indexed() == ["path", "vector"]
    for stamp in ("new", "newer"):  # beside the index, and in it
        table.add(rows([*HOSTILE, "5", "one more"], stamp=stamp), vectors(11, seed=2))
        table.compact()
        assert len(table) == 310
        expected = dict.fromkeys(["5", *HOSTILE, "one more"], stamp) | {"6": "old"}
        assert table.stamps([*HOSTILE, "5", "6", "none", "one more"]) == expected
    table.drop_ann()
    assert indexed() == ["path"]
    table.remove(HOSTILE)
    assert table.stamps(HOSTILE) == {}
    assert len(ModelTable(tmp_path / "table", DIM)) == 301


@pytest.mark.parametrize("n", [0, 1, 2])
def test_recall_of_few(table, n):
    if n:
        table.add(rows(map(str, range(n))), vectors(n))
    assert table.recall() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.add(rows("a"), np.zeros([1, DIM])), "zero"),
        (lambda t: t.add(rows("a"), np.full([1, DIM], np.nan)), "zero"),
        (lambda t: t.add(rows("a"), vectors(2)), r"expected \(1, 16\)"),
        (lambda t: t.add([{"id": "a"}], vectors(1)), "without a path"),
        (lambda t: t.add(rows("a", text="\ud800"), vectors(1)), r"cannot hold '\\ud800'"),
        (lambda t: t.add(rows("a", attributes={"\ud800": 1.0}), vectors(1)), "cannot hold"),
        (lambda t: t.nearest(np.ones(DIM + 1), 1), "vector of 17"),
        (lambda t: t.nearest(np.ones(DIM), 0), "k is 0"),
    ],
)
def test_what_cannot_be_stored_or_sought_is_said(table, call, message):
    with pytest.raises(ProbexError, match=message):
        call(table)
    assert len(table) == 0


def test_an_absent_or_damaged_table_is_named(table, tmp_path):
    with pytest.raises(ProbexError, match="damaged"):
        ModelTable(tmp_path / "none", DIM)
    with pytest.raises(ProbexError, match="damaged"):
        ModelTable(tmp_path / "table", DIM + 1)
    table.add(rows("ab"), vectors(2))
    for file in (tmp_path / "table").rglob("data/*.lance"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ProbexError, match=f"{tmp_path / 'table'}.*/data/.*damaged"):
        ModelTable(tmp_path / "table", DIM)


def test_without_lancedb_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ProbexError, match="pip install 'lancedb"):
        ModelTable(tmp_path, DIM, create=True)


def test_a_list_of_files_that_were_removed_since_is_no_damage(tmp_path):
    """As of a writer that was killed between removing old versions and listing what is left."""
    table = ModelTable(tmp_path, 4, create=True)
    for number in range(4):
        table.add([{"path": f"/{number}"}], np.eye(4)[[number]])
    with pytest.warns(UserWarning, match="cleanup_older_than"):
        lancedb.connect(tmp_path).open_table("models").optimize(cleanup_older_than=timedelta(0))
    found = ModelTable(tmp_path, 4, checked=True)
    rows, vectors_NT = found.everything(["path"])
    assert sorted(row["path"] for row in rows) == ["/0", "/1", "/2", "/3"]
    assert vectors_NT.shape == (4, 4)


def test_old_versions_go_but_those_that_readers_may_have_opened(tmp_path):
    """Each compaction writes the table anew: a week of versions would be a week of tables."""
    table = ModelTable(tmp_path, 512, create=True)

    def grow(number, **kept):
        draw = np.random.default_rng(number).normal(size=[100, 512])
        table.add(rows(map(str, range(100 * number, 100 * number + 100))), draw)
        table.compact(**kept)
        return sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())

    for number in range(7):
        grow(number)
    before = grow(7)
    reader = ModelTable(tmp_path, 512, checked=True)
    time.sleep(1)
    assert grow(8, kept=timedelta(seconds=1)) < 0.75 * before
    assert len(reader.everything(["path"])[0]) == 800
    assert len(ModelTable(tmp_path, 512, checked=True)) == 900
