"""Finding the trees among anyone's models."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.forest import discover, discovery
from tests.conftest import write_toy_lora
from tests.forest.conftest import labels_of, write_member


def partition(found):
    return {frozenset(tree.members) for tree in found.trees}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of three roots of one architecture, one of another, LoRAs, and what is no model."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    paths = []
    for number in range(24):
        path, kind = folder / f"m{number:02d}", number % 6
        if kind < 4:
            of, base = (1, 1, 2, 3)[kind], ("me/a", "", "me/b", "")[kind]
            metadata = {"base_model": base} if base else None
            write_member(path, number, labels_of(number), of=of, metadata=metadata)
        elif kind == 4:
            write_toy_lora(path, "red ant", rng, rank=2 + number % 3)
        else:
            write_member(path, number, of=1, **{"body.2.weight": np.ones((4, 4))})
    for number in range(24):
        paths.append(folder / f"m{number:02d}")
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    paths.insert(5, folder / "broken.safetensors")
    paths.append(folder / "nope")
    return paths


def test_trees_are_told_by_weights_architecture_and_kind(models):
    told = []
    found = discover(models, on_model=told.append)
    expected = {}
    for place, path in enumerate(models):
        if path.name.startswith("m"):
            kind = int(path.name[1:]) % 6
            expected.setdefault(max(kind, 1), []).append(place)
    assert partition(found) == {frozenset(members) for members in expected.values()}
    assert [len(tree.members) for tree in found.trees] == [8, 4, 4, 4, 4]
    firsts = [tree.members[0] for tree in found.trees[1:]]
    assert firsts == sorted(firsts)
    kinds = {tree.members[0]: (tree.base, tree.is_lora) for tree in found.trees}
    assert kinds == {
        0: ("me/a", False),
        2: ("me/b", False),
        3: ("", False),
        4: ("", True),
        6: ("", False),
    }
    assert len({tree.fingerprint for tree in found.trees}) == 3
    assert set(found.failed) == {5, len(models) - 1}
    assert len(told) == len(models)
    assert [place for place, reason in enumerate(told) if reason] == [5, len(models) - 1]
    assert found.failed[5] == told[5]


@pytest.mark.parametrize("settings", [{"models_at_once": 3}, {}])
def test_neither_order_nor_streaming_changes_the_trees(models, settings):
    order = np.random.default_rng(1).permutation(len(models))
    shuffled = discover([models[place] for place in order], **settings)
    renumbered = {frozenset(int(order[n]) for n in tree.members) for tree in shuffled.trees}
    assert renumbered == partition(discover(models))


def test_loras_are_told_by_the_ancestor_that_they_name(tmp_path):
    rng, paths = np.random.default_rng(0), []
    for number, base in enumerate(["me/sd", "you/SD", "me/xl", "", "me/sd"]):
        path = tmp_path / f"m{number}"
        write_toy_lora(path, ("red ant", "blue bee", "green cat")[number % 3], rng)
        (path / "README.md").write_text(f"---\nbase_model: {base}\n---\n")
        paths.append(path)
    found = discover(paths)
    assert [(tree.members, tree.base) for tree in found.trees] == [
        ((0, 1, 4), "me/sd"),
        ((2,), "me/xl"),
        ((3,), ""),
    ]


def test_loras_that_name_no_ancestor_are_of_the_only_one_that_is_named(tmp_path):
    rng = np.random.default_rng(0)

    def write(number, base):
        factors = {f"a.lora.{part}.weight": rng.normal(size=(4, 4)) for part in ("up", "down")}
        path = tmp_path / f"{number}.safetensors"
        save_file(factors, path, {"base_model": base} if base else {})
        return path

    paths = [write(n, base) for n, base in enumerate(["", "me/b", "C:\\models\\B.safetensors", ""])]
    assert [tree.members for tree in discover(paths).trees] == [(0, 1, 2, 3)]
    paths.append(write(4, "me/c"))
    assert sorted(tree.members for tree in discover(paths).trees) == [(0, 3), (1, 2), (4,)]
    assert [tree.members for tree in discover(paths, by_base=False).trees] == [(0, 1, 2, 3, 4)]


def test_a_million_paths_are_read_as_they_come(models):
    """Not all are opened before the first is told: memory is bounded."""
    asked, told, many = [], [], 20 * [*models]

    def paths():
        for path in many:
            asked.append(path)
            assert len(asked) <= len(told) + 64
            yield path

    discover(paths(), on_model=told.append)
    assert len(told) == len(many) > 128


def test_each_file_is_opened_once(models, monkeypatch):
    opened = []
    real = discovery.open_model
    monkeypatch.setattr(discovery, "open_model", lambda path: opened.append(path) or real(path))
    discover(models)
    assert sorted(opened) == sorted(models)


def test_a_copy_is_of_the_tree_of_what_it_is_a_copy_of(models, tmp_path):
    copy = shutil.copytree(models[0], tmp_path / "copy")
    found = discover([copy, models[0], models[1]])
    assert frozenset([0, 1]) in {members - {2} for members in partition(found)}
    assert found.contents[0] == found.contents[1] != found.contents[2]
    assert discover([]).trees == ()


def test_what_cannot_be_sketched_fails_alone(models, tmp_path):
    save_file({"b": np.ones(3, "f4")}, tmp_path / "b.safetensors")
    write_member(tmp_path / "nan", 1, of=1, **{"body.0.weight": np.full((12, 16), np.nan)})
    found = discover([tmp_path / "b.safetensors", tmp_path / "nan", models[0]])
    assert partition(found) == {frozenset([2])}
    assert "no layer" in found.failed[0]
    assert "NaN" in found.failed[1]
