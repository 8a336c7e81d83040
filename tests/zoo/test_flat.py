"""Zoos without split folders: what is a model, and what lies beside the models."""

import json

import pytest

import probex_jax as px
from probex_jax.zoo.tables import Tables


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def listed(root):
    return [(model.id, model.split) for model in px.scan(root).models]


@pytest.mark.parametrize("folder", ["", "models"])
def test_models_lie_in_the_folder_or_in_models(tmp_path, folder):
    write(tmp_path / folder / "b.safetensors")
    write(tmp_path / folder / "a" / "model.safetensors")
    write(tmp_path / folder / "old.bin")
    write(tmp_path / folder / "notes" / "todo.txt")
    write(tmp_path / folder / ".git" / "x.safetensors")
    write(tmp_path / "labels.csv", b"file,kind,note\nb.safetensors,amp,\nnobody,amp,x\n")
    write(tmp_path / "splits.json", b'{"kind-0": {"train": ["a"], "val": ["b.safetensors"]}}')
    assert listed(tmp_path) == [("a", ""), ("b", ""), ("old.bin", "")]
    zoo = px.scan(tmp_path)
    assert zoo.is_flat
    assert zoo.tables == Tables(
        {"kind": {"b": ("amp",)}, "note": {}}, {}, {"kind-0": {"train": ("a",), "val": ("b",)}}
    )
    assert zoo.unmatched == {"labels.csv": ("nobody",)}


def test_names_of_models_have_no_suffix_whatever_the_format(tmp_path):
    for name in ("a.npz", "b.safetensors", "c.gguf", "c.safetensors", "old.bin"):
        write(tmp_path / name)
    write(tmp_path / "labels.csv", b"file,kind\na.npz,x\nb,y\nc.gguf,x\nc,y\n")
    assert [id for id, _ in listed(tmp_path)] == ["a", "b", "c.gguf", "c", "old.bin"]
    kinds = px.scan(tmp_path).tables.columns["kind"]
    assert kinds == {"a": ("x",), "b": ("y",), "c.gguf": ("x",), "c": ("y",)}


STRANGERS = {  # column to the cell of a model, as German spreadsheets write them
    "Lernrate": lambda n: f"{10 ** (-4 + n / 50):.6f}".replace(".", ","),
    "Genauigkeit": lambda n: f"{50 + n / 4:.1f} %".replace(".", ","),
    "Schritte": lambda n: f"{1000 + 10 * n:,}".replace(",", "."),
    "Optimierer": lambda n: ("Adam", "SGD", "Größe")[n % 3],
    "gespiegelt": lambda n: ("JA", "nein")[n % 2],
    "augmented": lambda n: ("TRUE", "FALSE")[n % 2],
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_stranger_s_table_beside_a_hundred_models(tmp_path, encoding):
    for n in range(100):
        write(tmp_path / "models" / f"m{n}.safetensors")
    rows = [["Modell", *STRANGERS]]
    for n in range(100):
        cells = [cell(n) for cell in STRANGERS.values()]
        cells[n % len(cells)] = ("", "NA", "-")[n % 3]
        rows.append([f"m{n}.safetensors", *cells])
    text = "\r\n".join(";".join(row) for row in rows)
    write(tmp_path / "labels.csv", text.encode(encoding))
    zoo = px.scan(tmp_path)
    known = {name: [n for n in range(100) if n % 6 != k] for k, name in enumerate(STRANGERS)}
    assert zoo.tables.numbers == {
        "Lernrate": {
            f"m{n}": pytest.approx(10 ** (-4 + n / 50), abs=1e-6) for n in known["Lernrate"]
        },
        "Genauigkeit": {
            f"m{n}": pytest.approx(0.5 + n / 400, abs=1e-3) for n in known["Genauigkeit"]
        },
        "Schritte": {f"m{n}": 1000 + 10 * n for n in known["Schritte"]},
    }
    assert zoo.tables.columns == {
        "Optimierer": {f"m{n}": (("Adam", "SGD", "Größe")[n % 3],) for n in known["Optimierer"]},
        "gespiegelt": {f"m{n}": (("JA", "nein")[n % 2],) for n in known["gespiegelt"]},
        "augmented": {f"m{n}": (("yes", "no")[n % 2],) for n in known["augmented"]},
    }
    assert len(zoo.notes) == (encoding == "cp1252")


def test_a_zoo_may_say_which_columns_hold_numbers(tmp_path):
    write(tmp_path / "a.safetensors")
    write(tmp_path / "labels.csv", b"model,rank,loss\na,4,0.5\n")
    write(tmp_path / "zoo.json", b'{"kinds": {"rank": "numbers", "loss": "classes"}}')
    tables = px.scan(tmp_path).tables
    assert (tables.columns, tables.numbers) == ({"loss": {"a": ("0.5",)}}, {"rank": {"a": 4.0}})
    for kinds in (b'{"rank": "number"}', b'["rank"]', b'{"rank": ["numbers"]}'):
        write(tmp_path / "zoo.json", b'{"kinds": ' + kinds + b"}")
        with pytest.raises(px.ProbexError, match=r"zoo\.json: kinds"):
            px.scan(tmp_path)


def test_a_zoo_may_name_models_that_lie_elsewhere(tmp_path):
    write(tmp_path / "downloads" / "b" / "model.safetensors")
    write(tmp_path / "zoo" / "own.safetensors")
    models = {"x/b": "../downloads/b", "mine": str(tmp_path / "zoo" / "own.safetensors")}
    write(tmp_path / "zoo" / "zoo.json", json.dumps({"models": models, "tree": "T"}).encode())
    zoo = px.scan(tmp_path / "zoo")
    found = {model.id: model.path.resolve() for model in zoo.models}
    assert found == {
        "x/b": tmp_path / "downloads" / "b",
        "mine": tmp_path / "zoo" / "own.safetensors",
    }
    assert zoo.tree == "T"


@pytest.mark.parametrize(
    "models", [["a"], {"a": 3}, {"": "a"}, {"a": ""}, {"a": "https://x.org/a"}, {"\0": "a"}]
)
def test_models_that_a_zoo_cannot_name(tmp_path, models):
    write(tmp_path / "zoo.json", json.dumps({"models": models}).encode())
    with pytest.raises(px.ProbexError, match=r"zoo\.json: models"):
        px.scan(tmp_path)


def test_split_folders_and_named_models_contradict_each_other(tmp_path):
    write(tmp_path / "train" / "a.safetensors")
    write(tmp_path / "zoo.json", b'{"models": {"b": "b.safetensors"}}')
    with pytest.raises(px.ProbexError, match=r"zoo\.json: models: they are in train/"):
        px.scan(tmp_path)


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path):
    write(tmp_path / "a.safetensors")
    write(tmp_path / "a" / "model.safetensors")
    with pytest.raises(px.ProbexError, match="a is in both"):
        px.scan(tmp_path)


def test_a_column_in_two_files_is_refused(tmp_path):
    write(tmp_path / "a.safetensors")
    write(tmp_path / "labels.csv", b"model,kind\na,amp\n")
    write(tmp_path / "labels.json", b'[{"model": "a", "kind": "amp"}]')
    with pytest.raises(px.ProbexError, match=r"labels\.json: another file has the column 'kind'"):
        px.scan(tmp_path)


def test_a_folder_of_zoos_or_of_nothing_is_no_flat_zoo(tmp_path):
    write(tmp_path / "notes" / "todo.txt")
    with pytest.raises(px.ProbexError, match="no models"):
        px.scan(tmp_path)
    write(tmp_path / "A" / "train" / "a.safetensors")
    write(tmp_path / "b.safetensors")
    with pytest.raises(px.ProbexError, match="give one of the zoos in it, such as 'A'"):
        px.scan(tmp_path)
