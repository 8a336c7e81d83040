"""Messages: what strangers chose is in them, and nothing that a terminal obeys."""

import pytest

import probex_jax as px
from probex_jax.files import read_json, write_json
from probex_jax.forest import Forest
from probex_jax.search import Index, find_models
from probex_jax.zoo.label_files import read_labels

ODD = "a\x1b]0;b\x07\u202e\udcff"


@pytest.mark.parametrize(
    "read",
    [
        px.LayerStore.open,
        px.Expert.load,
        Index.open,
        Forest.load,
        px.scan,
        find_models,
        px.open_model,
        read_labels,
        lambda path: write_json(path / "a.json", 1),
    ],
)
def test_control_characters_in_names_of_files_are_escaped(tmp_path, read):
    with pytest.raises(px.ProbexError, match=r"a\\x1b\]0;b\\x07\\u202e\\udcff") as error:
        read(tmp_path / ODD / "b" if read is px.open_model else tmp_path / ODD)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("odd", ["\ud800", "a\udcff"])
def test_what_is_no_unicode_is_not_written(tmp_path, odd):
    write_json(tmp_path / "a.json", {"Größe": 1})
    with pytest.raises(px.ProbexError, match=r"a\.json: .*\\ud") as error:
        write_json(tmp_path / "a.json", {"tree": [odd]})
    assert str(error.value).isprintable()
    assert read_json(tmp_path / "a.json") == {"Größe": 1}
