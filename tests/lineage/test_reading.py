"""lineage.json: what is written is read, and anything else is one clear line."""

import copy
import json

import pytest

from probex_jax.errors import ProbexError
from probex_jax.lineage import Lineage, family_trees, load_lineage, save_lineage, verify_lineage
from probex_jax.lineage.reading import lineage_of
from tests.reports.test_family_tree import edge, lineage, node


def test_what_is_written_is_read(tmp_path):
    save_lineage(lineage(), tmp_path)
    assert load_lineage(tmp_path) == lineage()
    assert load_lineage(tmp_path / "lineage.json") == lineage()


def test_a_changed_file_is_noticed(tmp_path):
    save_lineage(lineage(), tmp_path)
    path = tmp_path / "lineage.json"
    path.write_text(path.read_text().replace('"alone"', '"lonely"'))
    with pytest.raises(ProbexError, match=r"lineage\.json"):
        load_lineage(tmp_path)
    with pytest.raises(ProbexError, match="nowhere"):
        load_lineage(tmp_path / "nowhere")


def test_verify_names_the_damaged_file(tmp_path):
    save_lineage(lineage(), tmp_path)
    read = []
    assert list(verify_lineage(tmp_path, on_total=read.append, on_bytes=read.append)) == []
    path = tmp_path / "lineage.json"
    assert read == [path.stat().st_size] * 2
    path.write_text(path.read_text().replace("0.25", "0.26", 1))
    (damage,) = verify_lineage(tmp_path)
    assert damage.startswith(str(path))


def changed(*keys, to=None):
    """A lineage's JSON in which one value is another, or is gone."""
    value = json.loads(json.dumps(lineage().as_json()))
    place = value
    for key in keys[:-1]:
        place = place[key]
    if to is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = copy.deepcopy(to)
    return value


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "where"),
        (changed("format", to="probex_jax lineage 9"), "format"),
        (changed("nodes"), "nodes"),
        (changed("more", to=1), "more"),
        (changed("nodes", to={}), "nodes"),
        (changed("nodes", 0, "path"), "path"),
        (changed("nodes", 0, "id", to=7), "id"),
        (changed("nodes", 0, "id", to="one"), "nodes"),
        (changed("nodes", 0, "id", to="\x1b[2J"), "id"),
        (changed("nodes", 0, "origin", to="heaven"), "origin"),
        (changed("nodes", 4, "copy_of", to="nobody"), "copy_of"),
        (changed("edges", 0, "kind", to="theft"), "kind"),
        (changed("edges", 0, "p_value", to="small"), "p_value"),
        (changed("edges", 0, "p_value", to=float("nan")), "p_value"),
        (changed("edges", 0, "confidence", to=True), "confidence"),
        (changed("edges", 0, "parent", to="nobody"), "nobody"),
        (changed("edges", 0, "layers", to="a.weight"), "layers"),
        (changed("edges", 0, "parent", to="both"), "itself"),
        (changed("edges", 3, "parent", to="one"), "edges"),
        (changed("copies", 0, "models", to=["one"]), "copies"),
        (changed("failed", to=["broken"]), "failed"),
    ],
)
def test_what_is_no_lineage_is_refused_by_field(value, field):
    with pytest.raises(ProbexError, match=field):
        lineage_of(value, "where")


def test_families_are_joined_models_the_largest_first():
    first, second = family_trees(lineage())
    assert first.models[0] == "root"
    assert first.models[-1] == "both"
    assert (first.roots, first.generations, first.merges) == (("root",), 3, 1)
    assert first.parent["both"] == "two"
    assert second.models == ("odd",)


def test_generations_count_the_longest_way():
    edges = (edge("a", "b"), edge("b", "c"), edge("a", "c", "merge", coefficient=0.9))
    (family,) = family_trees(Lineage(tuple(map(node, "cba")), edges))
    assert family.generation == {"a": 0, "b": 1, "c": 2}
    assert family.parent["c"] == "a"
