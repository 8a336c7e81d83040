"""One store, several label columns and splits: what a view holds, and what is taken over."""

import csv
import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import probex_jax as px
from probex_jax.layer_store.tables import check_labels
from probex_jax.zoo.tables import Tables
from tests.conftest import CLASSES, write_toy_model

N = 12
PARTS = {"train": range(8), "val": range(8, 10), "test": range(10, N)}


def write_table(folder, rows, name="labels.csv"):
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows(n=N):
    """`kind` of all, `gain` of those with an even number; `loss` is a number."""
    return [
        {
            "model": f"m{number:02d}",
            "kind": CLASSES[number % 2],
            "gain": "" if number % 2 else ("low", "high", "mid")[number % 3],
            "style": "[]" if number == 5 else "rock;blues" if number % 2 else "rock",
            "loss": number / 7,
        }
        for number in range(n)
    ]


def split_of(names, parts=PARTS):
    return {part: [names[number] for number in numbers] for part, numbers in parts.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A flat zoo whose headers state three of six classes; not to be changed by a test."""
    folder, rng = tmp_path_factory.mktemp("views") / "Flat", np.random.default_rng(0)
    for number in range(N):
        write_toy_model(folder / "models" / f"m{number:02d}", [CLASSES[number % 6]], rng)
    write_table(folder, rows())
    names = [row["model"] for row in rows()]
    splits = {"kind-0": split_of(names), "kind-1": split_of(names[::-1])}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


@pytest.fixture(scope="module")
def store(made, tmp_path_factory):
    return px.pack(px.scan(made), tmp_path_factory.mktemp("stores") / "Flat").store


def test_a_view_has_the_labels_of_a_column_and_the_parts_of_a_split(store):
    assert store.columns == ("", "gain", "kind", "style")
    assert store.splits == ("kind-0", "kind-1")
    view = store.view(column="gain", split="kind-0")
    assert (view.label_set, view.split_set, view.classes) == (
        "gain",
        "kind-0",
        ("high", "low", "mid"),
    )
    for part, numbers in PARTS.items():
        labelled = [number for number in numbers if number % 2 == 0]
        assert [model.id for model in view.split(part)] == [f"m{n:02d}" for n in labelled]
        for model, number in zip(view.split(part), labelled, strict=True):
            assert model.labels == (("low", "high", "mid")[number % 3],)
        kept = view.matrices("a.weight", part)
        every = store.view("kind", "kind-0").matrices("a.weight", part)
        np.testing.assert_array_equal(kept, every[[n in labelled for n in numbers]])
        assert view.targets(part).sum(1).tolist() == [1] * len(labelled)


def test_views_are_told_apart_and_made_of_views(store):
    views = {
        (column, split): store.view(column=column, split=split)
        for column in store.columns
        for split in store.splits
    }
    assert len({view.hash for view in views.values()}) == len(views)
    kind = views["kind", "kind-0"]
    assert kind.view(column="gain", split="kind-1").hash == views["gain", "kind-1"].hash
    assert [m.id for m in kind.split("test")] == ["m10", "m11"]
    assert [m.id for m in views["kind", "kind-1"].split("test")] == ["m00", "m01"]


def test_headers_are_a_column_without_a_name(store):
    view = store.view(split="kind-0")
    assert (view.label_set, view.classes) == ("", tuple(sorted(CLASSES)))
    assert [model.labels for model in view.split("val")] == [(CLASSES[2],), (CLASSES[3],)]


def test_exclusive_is_told_from_the_labels(store):
    assert store.view("kind", "kind-0").exclusive
    assert store.view("gain", "kind-0").exclusive
    assert not store.view("style", "kind-0").exclusive
    tables = Tables({"one": {f"m{n:02d}": () if n == 3 else (CLASSES[n % 2],) for n in range(N)}})
    none = store.with_tables(tables).view("one", "kind-0")
    with pytest.raises(px.ProbexError, match="'m03'"):
        _ = none.exclusive
    assert none.targets("train")[3].tolist() == [0, 0]
    with pytest.raises(px.ProbexError, match="m03"):
        none.class_indices("train", none.classes)


def test_a_view_of_numbers_has_the_number_of_each_model(store):
    assert store.attributes == ("gain", "kind", "loss", "style")
    view = store.view("loss", "kind-0")
    assert (view.is_number, view.label_set, view.classes) == (True, "loss", ("loss",))
    for part, numbers in PARTS.items():
        assert view.values(part).tolist() == [n / 7 for n in numbers]
        assert [model.value for model in view.split(part)] == [n / 7 for n in numbers]
    assert not view.exclusive
    with pytest.raises(px.ProbexError, match="'loss'"):
        view.targets("train")
    back = view.view("kind", "kind-0")
    assert not back.is_number
    assert back.hash == store.view("kind", "kind-0").hash
    with pytest.raises(px.ProbexError, match="'kind'"):
        back.values("train")


def test_models_without_a_number_are_left_out_and_numbers_are_in_the_hash(store):
    def view(**numbers):
        given = {f"m{n:02d}": n / 7 for n in range(N)} | numbers
        known = {id: number for id, number in given.items() if number is not None}
        return store.with_tables(Tables(numbers={"loss": known})).view("loss", "kind-0")

    assert view().hash == store.view("loss", "kind-0").hash
    assert len({view().hash, view(m03=0.5).hash, view(m03=None).hash}) == 3
    assert "m03" not in {model.id for model in view(m03=None).models}


def test_held_out_splits_may_have_any_numbers(store):
    parts = {"train": ("m00", "m01"), "val": ("m02",), "test_holdout": ("m03",)}
    numbers = {f"m{n:02d}": 1.5 for n in range(4)}
    given = store.with_tables(Tables(numbers={"x": numbers}, splits={"held": parts}))
    view = given.view("x", "held")
    assert view.held_out_classes == ()
    assert view.values("test_holdout").tolist() == [1.5]


def test_classes_that_are_numbers_are_read_as_numbers_when_asked(store):
    sizes = {f"m{n:02d}": (str(n % 3),) for n in range(N)}
    given = store.with_tables(Tables({"size": sizes}))
    assert given.view("size", "kind-0").classes == ("0", "1", "2")
    view = given.view("size", "kind-0", number=True)
    assert view.values("val").tolist() == [n % 3 for n in PARTS["val"]]
    assert pickle.loads(pickle.dumps(view)).hash == view.hash
    assert store.view("loss", "kind-0", number=True).hash == store.view("loss", "kind-0").hash
    odd = store.with_tables(Tables({"size": sizes | {"m04": ("big",)}}))
    with pytest.raises(px.ProbexError, match=r"'m04'.*'big'"):
        odd.view("size", "kind-0", number=True)


def test_a_store_that_kept_names_of_numbers_alone_says_to_pack_again(made, tmp_path):
    store = px.pack(px.scan(made), tmp_path / "s").store
    path = store.path / "tables.json"
    about = json.loads(path.read_text()) | {"numbers": ["loss"]}
    about.pop("crc32c", None)
    path.write_text(json.dumps(about))
    before = px.LayerStore.open(store.path)
    assert before.attributes == store.attributes
    assert before.view("kind", "kind-0").hash == store.view("kind", "kind-0").hash
    with pytest.raises(px.ProbexError, match=r"'loss'.*pack"):
        before.view("loss", "kind-0")
    again = px.pack(px.scan(made), store.path).store
    assert again.view("loss", "kind-0").hash == store.view("loss", "kind-0").hash


@pytest.mark.parametrize(
    ("column", "split", "says"),
    [
        ("gian", "kind-0", "no column 'gian'"),
        ("kind", "kind-7", "no split 'kind-7'; there are 'kind-0', 'kind-1'"),
        ("kind", "", "in no split folders; give one of its splits: kind-0, kind-1"),
    ],
)
def test_what_a_view_cannot_have_is_named(store, column, split, says):
    with pytest.raises(px.ProbexError, match=says):
        store.view(column=column, split=split)


def test_a_part_without_labels_is_named(store):
    tables = Tables({"few": {"m00": ("a",), "m01": ("b",), "m08": ("a",)}})
    with pytest.raises(px.ProbexError, match=r"'few'.*no model of test"):
        store.with_tables(tables).view("few", "kind-0")


def test_one_class_is_refused_and_rare_ones_are_named(store):
    def checked(labels):
        column = {f"m{n:02d}": (label,) for n, label in enumerate(labels)}
        view = store.with_tables(Tables({"x": column})).view("x", "kind-0")
        return check_labels("here", view.models)

    assert checked("abababababab") == ()
    with pytest.raises(px.ProbexError, match=r"here: all 8 training models.* 'a'"):
        checked("aaaaaaaaabab")
    single, untrained = checked("abababacabdb")
    assert "'c' has one model only" in single
    assert "'d' is in no training model" in untrained
    assert len(checked("abcdefghijkl")) == 6


def test_packing_again_takes_over_tables_without_touching_weights(made, tmp_path):
    zoo, path = shutil.copytree(made, tmp_path / "Flat"), tmp_path / "store"
    px.pack(px.scan(zoo), path)
    weights = {file: file.stat().st_mtime_ns for file in path.rglob("layers/*") if file.is_file()}
    tables = (path / "tables.json").read_bytes()
    assert px.pack(px.scan(zoo), path).added == 0
    assert (path / "tables.json").read_bytes() == tables
    changed = [
        {"model": row["model"], "kind": "amp" if n else "pedal"} for n, row in enumerate(rows())
    ]
    write_table(zoo, changed)
    (zoo / "splits.json").write_text(json.dumps({"new": split_of([r["model"] for r in changed])}))
    write_toy_model(zoo / "models" / "m99", [CLASSES[0]], np.random.default_rng(1))
    summary = px.pack(px.scan(zoo), path)
    assert summary.added == 1
    assert (set(summary.store.columns), summary.store.splits) == ({"", "kind"}, ("new",))
    view = summary.store.view("kind", "new")
    assert [model.labels for model in view.split("train")] == [("pedal",)] + [("amp",)] * 7
    # What the headers of models said that were packed before is still there.
    assert len(summary.store.tables.columns[""]) == N + 1
    assert all(file.stat().st_mtime_ns == then for file, then in weights.items())


def test_a_zoo_of_folders_has_views_too(made, tmp_path):
    zoo, rng = tmp_path / "Folders", np.random.default_rng(0)
    names = []
    for part, numbers in PARTS.items():
        for number in numbers:
            names.append(f"m{number:02d}")
            write_toy_model(zoo / part / names[-1], [CLASSES[number % 3]], rng)
    (zoo / "zoo.json").write_text(json.dumps({"classes": CLASSES[::-1]}))
    old = px.pack(px.scan(zoo), tmp_path / "store").store
    assert not (tmp_path / "store" / "tables.json").exists()
    assert old.view().hash == old.hash
    write_table(zoo, rows())
    (zoo / "splits.json").write_text(json.dumps({"other": split_of(names[::-1])}))
    store = px.pack(px.scan(zoo), tmp_path / "store").store
    assert (store.hash, store.columns) == (old.hash, ("gain", "kind", "style"))
    assert [m.id for m in store.view("gain").split("test")] == ["m10"]
    assert [m.id for m in store.view("kind", "other").split("test")] == ["m00", "m01"]
    assert store.view(split="other").classes == old.classes == CLASSES[::-1]


def test_models_in_folders_whose_labels_only_a_column_knows_are_in_no_split_but_its_own(tmp_path):
    zoo, rng = tmp_path / "Folders", np.random.default_rng(0)
    for part, numbers in PARTS.items():
        for number in numbers:
            write_toy_model(zoo / part / f"m{number:02d}", [CLASSES[number % 3]], rng)
    bare = zoo / "train" / "m50" / "model.safetensors"
    shutil.copytree(zoo / "train" / "m00", bare.parent)
    _without_metadata(bare)
    assert px.pack(px.scan(zoo), tmp_path / "no").skipped.keys() == {"m50"}
    write_table(zoo, [*rows(), {**rows()[0], "model": "m50"}])
    store = px.pack(px.scan(zoo), tmp_path / "store").store
    assert len(store.models) == N + 1
    assert [m.id for m in store.split("train")] == [f"m{n:02d}" for n in PARTS["train"]]
    assert "m50" in {m.id for m in store.view("kind").split("train")}
    assert px.pack(px.scan(zoo), tmp_path / "store").added == 0


def _without_metadata(file):
    save_file(load_file(file), file)


@pytest.mark.parametrize("damage", ['{"columns": {}}', "[1]", '{"columns": {"a": {"b": 3}}, "num'])
def test_damaged_tables_are_named(store, tmp_path, damage):
    path = shutil.copytree(store.path, tmp_path / "store")
    (path / "tables.json").write_text(damage)
    with pytest.raises(px.ProbexError, match=r"tables\.json"):
        px.LayerStore.open(path)
