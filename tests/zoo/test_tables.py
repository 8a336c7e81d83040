"""Labels and splits as files have them: CSV, JSON, JSON lines; what is refused, by row."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probex_jax.errors import ProbexError
from probex_jax.zoo.label_files import read_labels
from probex_jax.zoo.tables import Names, Tables, matched, read_splits

KIND, STYLE = {"a": ("amp",), "b": ("pedal",)}, {"a": ("rock", "blues"), "c": ()}

CSV = 'model,kind,style\na,amp,rock;blues\nb,"pedal",\nc,,[]\n'
ROWS = [
    {"model": "a", "kind": "amp", "style": ["rock", "blues"]},
    {"model": "b", "kind": ["pedal"], "style": None},
    {"style": [], "model": "c", "kind": ""},
]
FORMS = {
    "labels.csv": CSV,
    "windows.csv": "\ufeff" + CSV.replace("\n", "\r\n") + "\r\n",
    "first.csv": CSV.replace("model", "net"),
    "behind.csv": "kind,style,Model\namp,rock; blues, a\npedal,,b\n,[],c\n",
    "labels.json": json.dumps(ROWS),
    "marked.json": "\ufeff" + json.dumps(ROWS),
    "columns.json": json.dumps({row["model"]: {**row, "model": None} for row in ROWS}),
    "labels.jsonl": "\n\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(tmp_path, form):
    (tmp_path / form).write_bytes(FORMS[form].encode())
    columns = dict(read_labels(tmp_path / form).columns)
    if form == "columns.json":
        assert columns.pop("model") == {}
    assert columns == {"kind": KIND, "style": STYLE}


def test_json_without_columns_is_one_without_a_name(tmp_path):
    said = {"a": "amp", "b": ["pedal", "loud"], "c": [], "d": None}
    (tmp_path / "labels.json").write_text(json.dumps(said))
    columns = read_labels(tmp_path / "labels.json").columns
    assert columns == {"": {"a": "amp", "b": ["pedal", "loud"], "c": []}}


def test_a_column_of_numbers_holds_no_classes_and_one_of_classes_no_numbers(tmp_path):
    rows = [{"id": "a", "loss": 0.5, "big": True, "n": 3}, {"id": "b", "loss": 2, "big": False}]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    labels = read_labels(tmp_path / "l.json")
    assert labels.columns == {"big": {"a": ("yes",), "b": ("no",)}, "n": {"a": ("3",)}}
    assert labels.numbers == {"loss": {"a": 0.5, "b": 2}}
    tables = Tables(labels.columns, labels.numbers)
    with pytest.raises(ProbexError, match="'loss' holds numbers"):
        tables.column("loss", "here")
    with pytest.raises(ProbexError, match="no column 'los'; there are 'big', 'loss', 'n'"):
        tables.column("los", "here")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.csv", b"model,kind\na,amp\nb,pedal\na,pedal\n", "line 4: 'a' stands in line 2"),
        ("l.csv", b"model,kind\na,amp,loud\n", "line 2: 3 cells, expected 2"),
        ("l.csv", b"model,kind\n,amp\n", "line 2: '' is not a valid model name"),
        ("l.csv", b"model,kind,kind\na,x,y\n", "two columns are called 'kind'"),
        ("l.csv", b"model,,kind\na,x,y\n", "column 2 has no name"),
        ("l.csv", b"model|kind\na|amp\n", "separated by commas"),
        ("l.csv", b"", "expected a header"),
        ("l.csv", b'model,kind\na,"amp\n', "not CSV"),
        ("l.csv", b"model,kind\na," + b"x" * 200_000 + b"\n", "line 2: not CSV"),
        ("l.csv", b"model,kind\na,\xe9\x81\n", r"not UTF-8 text \(byte 13\)"),
        ("l.csv", b"\xff\xfem\0o", "not UTF-16 text"),
        (
            "l.csv",
            b"model,kind\na,\x1b[2J\n",
            r"line 2: kind: '\\x1b\[2J' is not a valid class name",
        ),
        ("l.csv", b"model,kind\na,x;y;x\n", "line 2: kind: a class stands there twice"),
        ("l.csv", b'model,"k\nd"\na,x;x\n', "line 2: k d: a class stands there twice"),
        ("l.csv", b"sep=;\r\nmodel;kind\r\na;amp;loud\r\n", "line 3: 3 cells, expected 2"),
        ("l.csv", b"model," + b"k" * 5000 + b"\na,x;x\n", "line 2: 'kkk"),
        ("l.csv", b"model,kind\na,x;;y\n", "line 2: kind: expected a class"),
        ("l.csv", b"model,k\0nd\na,x\n", r"'k\\x00nd' is not a valid column name|not CSV"),
        ("l.json", b'{"a": {"kind": "x"}, "b": "x"}', "'b': expected column to class"),
        ("l.json", b'[{"kind": "x"}]', "row 1: names no model"),
        ("l.json", b'[{"model": 3, "kind": "x"}]', "row 1: 3 is not a valid model name"),
        ("l.json", b'[{"model": "a", "kind": {"x": 1}}]', "row 1: kind: expected a class"),
        ("l.json", b'[{"model": "a", "kind": [["x"]]}]', "row 1: kind: expected a class"),
        ("l.json", b'[{"model": "a", "x": [0.5, {}]}]', "row 1: x: expected a class"),
        ("l.json", b'["a"]', "row 1: expected an object, found 'a'"),
        ("l.json", b'{"a": ' + b"[" * 100_000, "nested"),
        ("l.jsonl", b'{"model": "a"}\n{"model": "a"}\n', "line 2: 'a' stands in line 1"),
        ("l.jsonl", b'{"model": "a"}\n[1]\n', "line 2 is a JSON list"),
        ("l.jsonl", b'\n{"model": "a", "model": "b"}\n', "line 2 has the key 'model' twice"),
    ],
)
def test_a_mistake_is_named_with_its_row_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbexError, match=rf"l\.\w+:? .*{says}") as error:
        read_labels(tmp_path / name)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


NASTY = [
    '"',
    ",",
    "\n",
    "\r",
    ";",
    "[]",
    "{",
    "}",
    "null",
    "1.5",
    "\0",
    "\x1b",
    "\ud800",
    "\\ud800",
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(sorted(FORMS)),
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 9), st.sampled_from(NASTY)), max_size=4
    ),
    tail=st.binary(max_size=4),
)
def test_whatever_a_table_holds_is_read_or_refused_in_one_line(tmp_path_factory, form, cuts, tail):
    text = FORMS[form]
    for where, length, piece in cuts:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + length :]
    path = tmp_path_factory.getbasetemp() / form
    path.write_bytes(text.encode(errors="surrogatepass") + tail)
    error = refusal(path)
    assert error.isprintable()
    assert error == "" or error.startswith(str(path))
    assert len(error) < 600


def refusal(path):
    """Why a table is refused; "" if it is read."""
    try:
        labels, _ = matched(read_labels(path), Names(["a", "b"]), path)
    except ProbexError as error:
        return str(error)
    checked = {name: column for name, column in labels.columns.items() if name}
    json.dumps(checked, ensure_ascii=False).encode()
    return ""


def test_large_tables_are_read_quickly_or_refused(tmp_path):
    path, began = tmp_path / "l.csv", time.process_time()
    path.write_text("model,x\n" + "".join(f"m{n},{'1' * 10_000}x\n" for n in range(100)))
    assert len(read_labels(path).columns["x"]) == 100
    path.write_text(",".join(map(str, range(200_000))) + "\n")
    assert read_labels(path).columns == {}
    path.write_text(
        "model,"
        + ",".join(f"c{n}" for n in range(50_000))
        + "\n"
        + ("a" + ",1" * 50_000 + "\n") * 50
    )
    with pytest.raises(ProbexError, match="stands in line 2"):
        read_labels(path)
    assert time.process_time() - began < 5


def test_models_are_found_by_file_name_and_two_names_of_one_are_refused(tmp_path):
    names = Names(["m1", "b/m2", "c/m2", "d/m3", "org"])
    found = ["m1", "m1.safetensors", "nets/m1.safetensors", r"nets\m1.safetensors", "./m1"]
    assert [names.find(name) for name in found] == ["m1"] * 5
    assert names.find("x/org/model.safetensors") == "org"
    assert (names.find("b/m2"), names.find("m2"), names.find("m3")) == ("b/m2", None, "d/m3")
    (tmp_path / "l.csv").write_text("file,kind\nm1.safetensors,amp\nm2,amp\nm3,\nm4,\n")
    labels, unknown = matched(read_labels(tmp_path / "l.csv"), names, "l.csv")
    assert labels.columns == {"kind": {"m1": ("amp",)}}
    assert unknown == ("m2",)
    (tmp_path / "l.csv").write_text("file,kind\nm1.safetensors,amp\nm1,pedal\n")
    with pytest.raises(ProbexError, match=r"'m1\.safetensors' and 'm1' are one model"):
        matched(read_labels(tmp_path / "l.csv"), names, "l.csv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"s": {"train": ["a"], "val": ["b"], "test": ["c", "x"]}}, "s: test: .* no model 'x'"),
        (
            {"s": {"train": ["a"], "val": ["b", "a.safetensors"]}},
            "'a.safetensors' is in val and tr",
        ),
        ({"s": {"train": ["a", "b", "a"]}}, "'a' is in train twice"),
        ({"s": {"train": ["a"], "val": []}}, "s: val is empty"),
        ({"s": {"train": ["a"], "vall": ["b"]}}, "no part is called 'vall'"),
        ({"s": {"train": "a"}}, "train: expected a list"),
        ({"s": {"train": [3]}}, "train: expected a list"),
        ({"s": {}}, "s: expected parts"),
        ({"../s": {"train": ["a"]}}, "name of a split"),
        ([], "expected an object"),
    ],
)
def test_splits_that_cannot_be_are_refused_by_name(tmp_path, content, says):
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(ProbexError, match=rf"splits\.json.*{says}"):
        read_splits(tmp_path / "splits.json", Names(["a", "b", "c"]))


def test_newer_tables_replace_what_was_said_of_their_models_alone():
    old = Tables(
        {"kind": {"a": ("amp",), "z": ("pedal",)}, "gone": {"a": ("x",)}, "n": {"z": ("1",)}},
        {"loss": {"z": 0.5}, "acc": {"a": 0.25, "z": 0.5}},
        {"s": {"train": ("a", "z"), "val": ("b",)}, "t": {"train": ("a",)}},
    )
    new = Tables(
        {"kind": {"b": ("amp",)}, "loss": {"a": ("low",)}},
        {"acc": {"b": 0.75}, "n": {"a": 2.0}},
        {"s": {"val": ("a",)}},
    )
    assert old.joined(new, ["a", "b"]) == Tables(
        {"kind": {"z": ("pedal",), "b": ("amp",)}, "loss": {"a": ("low",)}},
        {"acc": {"z": 0.5, "b": 0.75}, "n": {"a": 2.0}},
        {"s": {"train": ("z",), "val": ("a",)}},
    )


def test_the_first_line_may_say_what_stands_between_cells(tmp_path):
    """As spreadsheets read it; it is no header."""
    (tmp_path / "l.csv").write_bytes(b"sep=;\r\nmodel;kind,of\r\na;x\r\nb;y\r\n")
    assert read_labels(tmp_path / "l.csv").columns == {"kind,of": {"a": ("x",), "b": ("y",)}}
