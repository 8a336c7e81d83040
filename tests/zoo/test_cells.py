"""Cells as people write them: what is a number, what is a class, what is missing, what is wrong."""

import csv
import io
import json

import pytest

from probex_jax.errors import ProbexError
from probex_jax.zoo.label_files import read_labels

N = 100


def written(cells, delimiter=",", name="x"):
    text = io.StringIO()
    rows = ((f"m{n}", cell) for n, cell in enumerate(cells))
    csv.writer(text, delimiter=delimiter).writerows([("model", name), *rows])
    return text.getvalue()


def read(folder, cells, delimiter=",", **options):
    (folder / "l.csv").write_text(written(cells, delimiter), encoding="utf-8")
    return read_labels(folder / "l.csv", **options)


def numbers(folder, cells, delimiter=",", **options):
    """The numbers in order, None where one is missing; None if the column holds classes."""
    found = read(folder, cells, delimiter, **options).numbers.get("x")
    return found and [found.get(f"m{n}") for n in range(len(cells))]


def classes(folder, cells, **options):
    found = read(folder, cells, **options).columns.get("x")
    return found and [found.get(f"m{n}") for n in range(len(cells))]


def cycled(*cells, n=N):
    return [cells[k % len(cells)] for k in range(n)]


NUMBERS = {
    "few models": ["0.1", "0.2"],
    "rates on a grid": cycled("0.1", "0.01", "1e-3"),
    "many steps": [str(100 + n) for n in range(N)],
    "few steps": [str(n % 13) for n in range(N)],
    "wide and not whole": [f"{1.5 + n / 7:.3f}" for n in range(N)],
    "as pandas writes whole ones": [f"{n}.0" for n in range(N)],
    "negative": cycled(*(f"-{n}.5" for n in range(20))),
}
CLASSES = {
    "versions": cycled("1.5", "2.1"),
    "versions of programs": cycled("1.5", "2.0", "2.1", "3.5-turbo"),
    "layers": cycled("2", "10"),
    "zero and one": cycled("0", "1"),
    "zero and one of pandas": cycled("0.0", "1.0"),
    "twelve whole ones": [str(n % 12) for n in range(N)],
    "ids": [f"{n:03x}{'abc'[n % 3]}" for n in range(N)],
    "dates": [f"2024-01-{1 + n % 28:02}" for n in range(N)],
    "three parts": [f"1.{n}.2" for n in range(N)],
    "units": [f"{n} px" for n in range(N)],
    "names, a third of them with letters": [f"{n}x"[: 3 + n % 3 // 2] for n in range(100, 200)],
    "lists": ["0.1;0.2"] * 5,
    "infinite": cycled("inf", "-inf", "0.5", "x"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_told_from_their_values(tmp_path, case):
    assert numbers(tmp_path, NUMBERS[case]) == [float(cell) for cell in NUMBERS[case]]


@pytest.mark.parametrize("case", CLASSES)
def test_classes_are_told_from_their_values(tmp_path, case):
    found = classes(tmp_path, CLASSES[case])
    assert found == [tuple(cell.split(";")) for cell in CLASSES[case]]


@pytest.mark.parametrize("case", NUMBERS | CLASSES)
def test_json_says_the_same_by_numbers_as_by_texts(tmp_path, case):
    def parsed(cell):
        try:
            return json.loads(cell)
        except ValueError:
            return cell

    cells = {**NUMBERS, **CLASSES}[case]
    rows = [{"model": f"m{n}", "x": parsed(cell)} for n, cell in enumerate(cells)]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    said = read(tmp_path, cells)
    there = read_labels(tmp_path / "l.json")
    assert there.numbers == said.numbers
    if case != "lists":
        assert there.columns == said.columns


SPELLINGS = [
    (",", ["1e-4", "2.5E-04", "+0.5", " .25 ", "1.", "1_000"], [1e-4, 2.5e-4, 0.5, 0.25, 1, 1000]),
    (",", ["\u22120.5", "- 0.25", "\u00a00.125\u00a0"], [-0.5, -0.25, 0.125]),
    (",", ["0,001", "0,5", "12,75"], [0.001, 0.5, 12.75]),
    (";", ["0,001", "1,234", "5"], [0.001, 1.234, 5]),
    (",", ["0.5", "1,234", "12,345.5"], [0.5, 1234, 12345.5]),
    (",", ["1.234.567,5", "0,5", "1.000"], [1234567.5, 0.5, 1000]),
    (";", ["0.5", "1.234", "2"], [0.5, 1.234, 2]),
    (",", ["1 234.5", "1\u202f234 567", "1'234.5", "1\u2019234"], [1234.5, 1234567, 1234.5, 1234]),
    (",", ["93 %", "12.5%", "100\u00a0%"], [0.93, 0.125, 1]),
    (";", ["93,5 %", "7%"], [0.935, 0.07]),
    ("\t", ["0.5", "1e3"], [0.5, 1000]),
]


@pytest.mark.parametrize(("delimiter", "cells", "expected"), SPELLINGS)
def test_numbers_are_read_as_they_are_spelled(tmp_path, delimiter, cells, expected):
    assert numbers(tmp_path, cells, delimiter) == pytest.approx(expected, rel=1e-15)


THOUSANDS = [f"{1 + n},{n + 100}" for n in range(20)]


def test_what_can_be_read_in_two_ways_is_read_as_the_rest_of_the_table(tmp_path):
    def x(other, delimiter, cells=THOUSANDS):
        text = written(cells, delimiter).splitlines()
        rows = [
            line + delimiter + more for line, more in zip(text, ["y", *[other] * 20], strict=True)
        ]
        (tmp_path / "l.csv").write_text("\n".join(rows))
        return read_labels(tmp_path / "l.csv").numbers["x"]["m0"]

    swapped = [cell.replace(",", ".") for cell in THOUSANDS]
    assert x("", ";") == x('"0,5"', ",") == x("0,5", ";") == 1.1
    assert x("", ",") == x("0.5", ",") == x("0.5", ";") == 1100
    assert x("", ";", swapped) == x("0.5", ";", swapped) == x("", ",", swapped) == 1.1
    assert x("0,5", ";", swapped) == 1100


def test_a_number_of_json_is_itself_whatever_the_texts_beside_it(tmp_path):
    rows = [{"model": f"m{n}", "x": 1.125 + n, "y": f"0,{n + 1}"} for n in range(20)]
    rows[3]["x"] = "1.234.567,5"
    (tmp_path / "l.json").write_text(json.dumps(rows))
    found = read_labels(tmp_path / "l.json").numbers
    assert [found["x"][f"m{n}"] for n in (0, 2, 3)] == [1.125, 3.125, 1234567.5]
    assert found["y"]["m4"] == 0.5
    rows[3]["x"] = 10**400
    (tmp_path / "l.json").write_text(json.dumps(rows))
    with pytest.raises(ProbexError, match="row 4: x: "):
        read_labels(tmp_path / "l.json")


MISSING = ["", " ", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "-", "?"]


def test_what_is_missing_is_in_no_column(tmp_path):
    rest = ["0.5", "0.25", "0.125"]
    assert numbers(tmp_path, [*MISSING, *rest]) == [None] * len(MISSING) + [0.5, 0.25, 0.125]
    assert classes(tmp_path, [*MISSING, "Na", "amp"])[-3:] == [None, ("Na",), ("amp",)]
    rows = [{"model": f"m{n}", "x": value} for n, value in enumerate([None, float("nan"), "NA", 7])]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    assert read_labels(tmp_path / "l.json").columns == {"x": {"m3": ("7",)}}


def test_none_is_a_class_but_where_others_are_numbers(tmp_path):
    assert classes(tmp_path, ["none", "adam"]) == [("none",), ("adam",)]
    assert classes(tmp_path, ["none", "2"]) == [("none",), ("2",)]
    assert numbers(tmp_path, ["none", "0.5", "None"]) == [None, 0.5, None]


@pytest.mark.parametrize(
    ("yes", "no"), [("Yes", "no"), ("TRUE", "False"), ("y", "N"), ("t", "f"), ("On", "off")]
)
def test_truth_has_two_classes_however_it_is_spelled(tmp_path, yes, no):
    assert classes(tmp_path, [yes, "NA", no]) == [("yes",), None, ("no",)]
    assert classes(tmp_path, [yes, no, "maybe"]) == [(yes,), (no,), ("maybe",)]


def test_truth_of_json_is_truth(tmp_path):
    said = {"a": {"x": True}, "b": {"x": False}, "c": {"x": None}, "d": {"x": "TRUE"}}
    (tmp_path / "l.json").write_text(json.dumps(said))
    assert read_labels(tmp_path / "l.json").columns == {
        "x": {"a": ("yes",), "b": ("no",), "d": ("yes",)}
    }


TEXT = "Modell,Größe,Typ\nä,0.5,groß\nb,0.25,\u2013\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_every_encoding_delimiter_and_end_of_line_says_the_same(tmp_path, encoding, delimiter, end):
    text = TEXT.replace(",", delimiter).replace("\n", end)
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    labels = read_labels(tmp_path / "l.csv")
    assert labels.numbers == {"Größe": {"ä": 0.5, "b": 0.25}}
    assert labels.columns == {"Typ": {"ä": ("groß",)}}
    assert len(labels.notes) == (encoding == "cp1252")
    assert all(str(tmp_path / "l.csv") in note for note in labels.notes)


def test_json_may_have_the_same_encodings(tmp_path):
    rows = json.dumps([{"model": "a", "x": "groß"}, {"model": "b", "x": 1}], ensure_ascii=False)
    for encoding in ("utf-16", "utf-8-sig", "cp1252"):
        (tmp_path / "l.json").write_bytes(rows.encode(encoding))
        assert read_labels(tmp_path / "l.json").columns == {"x": {"a": ("groß",), "b": ("1",)}}


def test_a_cell_has_several_classes_in_a_file_with_semicolons_if_it_is_quoted(tmp_path):
    (tmp_path / "l.csv").write_text('model;style\na;"rock;blues"\nb;rock\n')
    assert read_labels(tmp_path / "l.csv").columns == {
        "style": {"a": ("rock", "blues"), "b": ("rock",)}
    }


RATES = [f"{0.001 * (n + 1):.3f}" for n in range(N)]


def wrong(**cells):
    """Rates, but of some models something else; a model's line is its number and two."""
    return [cells.get(f"m{n}", rate) for n, rate in enumerate(RATES)]


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (wrong(m5="abc"), ["line 7: x: ", "'0.001'", "'abc'"]),
        (wrong(m5="abc", m9="fast"), ["line 7: x: ", "'abc'", "1 more", "line 11"]),
        (wrong(**{f"m{n}": "?!" for n in range(10)}), ["line 2: ", "9 more", "line 6, …"]),
        (wrong(m0="inf"), ["line 2: x: ", "'inf'"]),
        (wrong(m0="1e999"), ["line 2: x: ", "'1e999'"]),
        (wrong(m7="0,5"), ["line 9: x: ", "'0,5'"]),
        (wrong(m7="5 %"), ["line 9: x: ", "'5 %'"]),
        (wrong(m7="0.1;0.2"), ["line 9: x: ", "['0.1', '0.2']"]),
        (wrong(m7="[]"), ["line 9: x: "]),
        (wrong(m7="#DIV/0!"), ["line 9: x: ", "'#DIV/0!'"]),
        (wrong(m7="12:30"), ["line 9: x: "]),
        (wrong(m7="1.2.3"), ["line 9: x: "]),
        (wrong(m7="\x1b[2J"), ["line 9: x: ", r"'\x1b[2J'"]),
        (wrong(m7="9" * 5000), ["line 9: x: ", "…"]),
        (["93 %", "12 %", "7 %", "0.5"], ["line 5: x: ", "'93 %'", "'0.5'"]),
        ([str(n) for n in range(50)] + ["5b"], ["line 52: x: ", "'5b'"]),
    ],
)
def test_what_is_no_number_among_numbers_is_named_in_one_line(tmp_path, cells, says):
    with pytest.raises(ProbexError) as error:
        read(tmp_path, cells)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "l.csv"))
    assert message.isprintable()
    assert len(message) < 400
    assert all(part in message for part in says), message


def test_lines_are_those_that_a_spreadsheet_shows(tmp_path):
    text = 'model,note,x\n"a","two\nlines",0.1\n\nb,,0.2\nc,,0.3\nd,,oops\n'
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(ProbexError, match="line 6: x: "):
        read_labels(tmp_path / "l.csv")


def test_of_json_the_row_is_named(tmp_path):
    rows = [{"model": f"m{n}", "x": n / 7} for n in range(9)] + [{"model": "z", "x": "abc"}]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    with pytest.raises(ProbexError, match=r"row 10: x: .*'abc'"):
        read_labels(tmp_path / "l.json")
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ProbexError, match=r"line 10: x: .*'abc'"):
        read_labels(tmp_path / "l.jsonl")
    (tmp_path / "l.json").write_text(json.dumps({row["model"]: {"x": row["x"]} for row in rows}))
    with pytest.raises(ProbexError, match=r"'z': x: .*'abc'"):
        read_labels(tmp_path / "l.json")


def test_what_is_known_of_a_column_counts_more_than_its_values(tmp_path):
    assert numbers(tmp_path, ["1", "2", "1"], kinds={"x": "numbers"}) == [1, 2, 1]
    assert classes(tmp_path, RATES, kinds={"x": "classes"}) == [(rate,) for rate in RATES]
    with pytest.raises(ProbexError, match=r"line 2: x: .*'a'"):
        read(tmp_path, ["a", "b"], kinds={"x": "numbers"})


def test_empty_columns_at_the_end_are_none(tmp_path):
    """As spreadsheets write them; what stands in one has to have a name."""
    path = tmp_path / "labels.csv"
    path.write_text("model,kind,,\na,amp,,\nb,pedal, ,\n")
    assert read_labels(path).columns == {"kind": {"a": ("amp",), "b": ("pedal",)}}
    path.write_text("model,kind,\na,amp,\nb,pedal,loud\n")
    with pytest.raises(ProbexError, match="line 3"):
        read_labels(path)
