"""Growing a forest and describing with it, as a user does."""

import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from experiments import copy_steps, forest_steps
from experiments.models import Models
from probex_jax import Forest, ProbexError
from probex_jax.lineage import Copies, Edge, Lineage, Node, save_lineage
from probex_jax.search import Index, find_models
from tests.conftest import CLASSES
from tests.end_to_end.warm import run
from tests.forest.conftest import class_expert, labels_of, pack_tree, write_member

pytestmark = pytest.mark.xdist_group("forest_commands")

ONE, OTHER = CLASSES[:3], CLASSES[3:]
BROKEN = ("cut", "text", "nan")
UNREAD = ("cut", "text")  # the others have a card, which says that weights are not finite


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    return {name: pack_tree(folder, name, of) for of, name in enumerate(("Ant", "Bee"), start=1)}


@pytest.fixture(scope="module")
def grown(stores, tmp_path_factory):
    """A forest of Ant with an expert and Bee without, grown by the command."""
    folder = tmp_path_factory.mktemp("commands")
    class_expert("Ant", 1).save(folder / "expert")
    done = run(
        "grow_forest",
        f"--stores={stores['Ant'].path},{stores['Bee'].path}",
        f"--experts={folder / 'expert'}",
        f"--forest={folder / 'forest'}",
        "--roots=Ant=me/ant-root",
    )
    return folder / "forest", done


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of Ant of which two say each other's classes, and others, and broken ones."""
    folder = tmp_path_factory.mktemp("models")
    for number in range(8):
        write_member(folder / f"m{number}", number, labels_of(number), of=1)
    for name, labels, said in (("swapped1", ONE, OTHER), ("swapped2", OTHER, ONE)):
        metadata = {"dataset_chosen_targets": str(list(said))}
        write_member(folder / name, len(name), labels, of=1, metadata=metadata)
    zebra = {"dataset_chosen_targets": "['zebra']"}  # no class of the expert's
    write_member(folder / "zebra", 1, ONE, of=1, metadata=zebra)
    write_member(folder / "bee", 1, ONE, of=2)
    write_member(folder / "stranger", 1, ONE, of=9)
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "text.safetensors").write_text("no weights")
    write_member(folder / "nan", 1, of=1, **{"body.0.weight": np.full((12, 16), np.nan)})
    return folder


def test_grow_forest_prints_a_row_a_tree(grown):
    path, done = grown
    assert (done.returncode, done.stderr) == (0, "")
    header, _, *rows = done.stdout.splitlines()
    found = [dict(zip(cells(header), cells(row), strict=True)) for row in rows]
    assert [row["tree"] for row in found] == ["Ant", "Bee"]
    assert [row["root"] for row in found] == ["me/ant-root", "not known"]
    assert [row["expert reads"] for row in found] == ["body.0.weight", "no expert"]
    forest = Forest.load(path)
    calibration = forest.trees["Ant"].expert.card.calibration
    for when in ("before", "after"):
        assert found[0][f"calibration error {when}"] == f"{getattr(calibration, when)['test']:.3f}"
        assert found[1][f"calibration error {when}"] == ""


@pytest.mark.parametrize("settings", ["same store", "same expert", "no store", "no store of root"])
def test_growing_with_what_does_not_belong_together_is_a_mistake(tmp_path, stores, settings):
    ant, bee = stores["Ant"], stores["Bee"]
    expert = class_expert("Ant", 1)
    given, message = {
        "same store": (([ant, ant], [], {}), "tree Ant: 2 stores"),
        "same expert": (([ant], [expert, expert], {}), "tree Ant: two experts"),
        "no store": (([bee], [expert], {}), "tree Ant: no store of it is given"),
        "no store of root": (([bee], [], {"Cow": "me/c"}), "tree Cow: no store of it"),
    }[settings]
    with pytest.raises(ProbexError, match=message):
        forest_steps.grow_forest(tmp_path / "f", *given)
    assert not (tmp_path / "f").exists()


def test_of_many_the_broken_ones_are_reported_and_the_mislabelled_come_first(
    grown, models, tmp_path
):
    out = tmp_path / "cards"
    done = run("describe", f"--forest={grown[0]}", models, "--compare", f"--out={out}")
    assert done.returncode == 1, done.stderr
    failed = done.stderr.splitlines()
    assert sorted(line.split(": ")[0] for line in failed) == [f"failed {n}" for n in UNREAD]
    assert all(f"{models}/{line.split(': ')[0].split()[1]}" in line for line in failed)
    header, _, *rows, count = done.stdout.splitlines()
    found = [dict(zip(cells(header), cells(row), strict=True)) for row in rows]
    assert {row["model"] for row in found[:2]} == {"swapped1", "swapped2"}
    assert [row["agree"] for row in found] == ["0 of 6"] * 2 + ["6 of 6"] * 8
    assert [float(row["surprise"]) > 3 for row in found] == [True] * 2 + [False] * 8
    assert count == "10 of 16 models compared"
    names = {path.name.removesuffix(".safetensors") for path in models.iterdir()} - set(UNREAD)
    assert {path.name for path in out.iterdir()} == {
        f"{name}{suffix}" for name in names for suffix in (".md", ".json")
    }
    for name in names:
        card = (out / f"{name}.md").read_text()
        about = json.loads((out / f"{name}.json").read_text())
        matter = yaml.safe_load(card.split("---")[1])
        tree = {"bee": "Bee", "stranger": "", "nan": ""}.get(name, "Ant")
        assert about["tree"] == tree
        assert about["id"] == name
        assert (f"model-tree:{tree}" in matter["tags"]) == bool(tree)
        assert ("base_model" in matter) == (tree == "Ant")
        if name.startswith("m"):
            assert sorted(about["predicted"]) == sorted(labels_of(int(name[1:])))


def test_one_model_s_card_is_printed(grown, models):
    done = run("describe", f"--forest={grown[0]}", models / "m3" / "model.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    matter = yaml.safe_load(done.stdout.split("---")[1])
    assert matter["base_model"] == "me/ant-root"
    assert "\n# `m3`\n" in done.stdout
    for label in labels_of(3):
        assert f"| `{label}` | " in done.stdout
    assert "6 of 6 classes." in done.stdout


def test_one_broken_model_is_a_mistake_with_its_reason(grown, models):
    done = run("describe", f"--forest={grown[0]}", "--json", models / "cut.safetensors")
    assert done.returncode == 2
    assert done.stderr.startswith("failed cut: ")
    assert done.stderr.count("\n") == 1
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["id"], found["path"]) == ("cut", str(models / "cut.safetensors"))
    assert found["error"] in done.stderr


def test_cards_name_the_relatives_that_a_lineage_knows_by_their_path(grown, models, tmp_path):
    path = models / "m3" / "model.safetensors"
    nodes = (
        Node("elsewhere", "elsewhere.safetensors", "f0", "root"),
        Node("of another name", str(path), "f0", "derived"),
    )
    edges = (Edge("elsewhere", "of another name", "pruned", 1e-9, 0.97, 0.1),)
    save_lineage(Lineage(nodes, edges), tmp_path)
    told = run("describe", f"--forest={grown[0]}", f"--lineage={tmp_path}", path)
    assert told.returncode == 0, told.stderr
    (line,) = (line for line in told.stdout.splitlines() if "Parent" in line)
    assert "`elsewhere`" in line
    assert "pruned" in line
    both = [path, models / "m4" / "model.safetensors"]
    done = run("describe", f"--forest={grown[0]}", f"--lineage={tmp_path}", "--json", *both)
    known, unknown = (json.loads(line)["relatives"] for line in done.stdout.splitlines())
    assert known["parents"][0]["parent"] == "elsewhere"
    assert unknown is None


def test_discover_lists_the_trees(models, tmp_path):
    done = run("discover", f"--models={models}", f"--out={tmp_path / 'trees.json'}")
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 3
    header, _, *rows, count = done.stdout.splitlines()
    found = [dict(zip(cells(header), cells(row), strict=True)) for row in rows]
    assert [row["models"] for row in found] == ["11", "1", "1"]
    assert {row["such as"] for row in found} == {"m0", "bee", "stranger"}
    assert count == "3 trees of 13 models"
    written = json.loads((tmp_path / "trees.json").read_text())
    assert [len(tree["models"]) for tree in written["trees"]] == [11, 1, 1]
    assert written["failed"].keys() == set(BROKEN)
    assert written["trees"][0]["kind"] == "whole models"


def test_discover_and_index_tell_of_copies(grown, tmp_path):
    for number, name in enumerate(("one", "two")):
        write_member(tmp_path / "models" / name, number, of=1)
    tensors = load_file(tmp_path / "models" / "one" / "model.safetensors")
    half = {f"module.{name}": value.astype(np.float16) for name, value in tensors.items()}
    save_file(half, tmp_path / "models" / "half.safetensors")
    done = run("discover", f"--models={tmp_path / 'models'}", f"--out={tmp_path / 'trees.json'}")
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    assert "one, half" in last
    (copies,) = json.loads((tmp_path / "trees.json").read_text())["copies"]
    assert copies["models"] == ["one", "half"]
    assert 0 < copies["largest_difference"] < 0.01
    index = f"--index={tmp_path / 'index'}"
    done = run(
        "index", f"--forest={grown[0]}", "--tree=Ant", f"--models={tmp_path / 'models'}", index
    )
    assert done.returncode == 0, done.stderr
    assert "one, half" in done.stdout.splitlines()[-1]


# The steps, in this process.


def test_ten_groups_of_copies_are_told_of(capsys):
    groups = [Copies((f"a{n}", *(f"b{n}-{k}" for k in range(8))), 0.0) for n in range(13)]
    copy_steps.tell(groups[:10])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(f"a{n}," in line and "b" in line for n, line in enumerate(lines))
    assert "4 more" in lines[0]
    copy_steps.tell(groups)
    *_, last = capsys.readouterr().out.splitlines()
    assert "3 more" in last


def described(forest_path, models, nearest=None):
    found = forest_steps.describe(Forest.load(forest_path), models, nearest)
    return {model.id: (model, description) for model, description in found}


def test_rows_and_json_lines_of_several(grown, models, capsys):
    some = [m for m in find_models(models) if m.id in ("m0", "bee", "stranger", "cut")]
    found = described(grown[0], some)
    assert list(found) == [model.id for model in some]
    rows = {name: forest_steps.described_row(*one) for name, one in found.items()}
    assert {name: row["tree"] for name, row in rows.items()} == {
        "m0": "Ant",
        "bee": "Bee",
        "stranger": "unknown",
        "cut": "failed",
    }
    said = {name: row["trained on (probability)"] for name, row in rows.items()}
    assert {part.split()[0] for part in said["m0"].split(", ")} == set(labels_of(0))
    assert said["bee"] == "no expert of this tree"
    assert "times as far from" in said["stranger"]
    assert capsys.readouterr().err.startswith("failed cut: ")
    lines = {n: json.loads(json.dumps(forest_steps.as_json(*one))) for n, one in found.items()}
    assert sorted(lines["m0"]["predicted"]) == sorted(labels_of(0))
    assert lines["stranger"]["tree"] == ""
    assert lines["cut"].keys() == {"id", "path", "error"}


def test_paths_are_files_folders_and_folders_of_models(models, tmp_path):
    given = [models / "m0", models / "cut.safetensors", tmp_path / "nope"]
    (tmp_path / "list").write_text(f"{models}\n\n")
    found = Models(list(map(str, given)), str(tmp_path / "list"))
    ids = [model.id for model in found]
    assert [model.id for model in found] == ids
    assert len(set(ids)) == len(ids) == 3 + 16
    assert ids[1:3] == ["cut", "nope"]
    assert {"cut-2", "m0-2"} & set(ids[3:])


def test_no_two_models_get_one_card(tmp_path):
    given = [str(tmp_path / str(n) / name) for n, name in enumerate(("a", "a", "a-2", "a", "a-2"))]
    ids = [model.id for model in Models(given)]
    assert len(set(ids)) == 5
    assert ids[0] == "a"


@pytest.mark.parametrize(
    "id", ["../../out", "/etc/x", "a/../../b", "..", ".", "", "x" * 255, "a/" + "\u00fc" * 127]
)
def test_a_card_stays_in_its_folder(grown, models, tmp_path, id):
    [(_, found)] = described(grown[0], find_models(models / "m0")).values()
    folder = tmp_path / "cards"
    forest_steps.write_card(dataclasses.replace(found, id=id), folder)
    assert len(list(folder.rglob("*.md"))) == len(list(folder.rglob("*.json"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cards"]


def test_long_names_that_differ_at_their_end_have_cards_of_their_own(grown, models, tmp_path):
    [(_, found)] = described(grown[0], find_models(models / "m0")).values()
    for end in "ab":
        named = dataclasses.replace(found, id="x" * 250 + end)
        forest_steps.write_card(named, tmp_path)
    assert len(list(tmp_path.glob("*.md"))) == 2


def test_a_zoo_s_labels_count_as_stated(grown, models, tmp_path):
    shutil.copytree(models / "m0", tmp_path / "Z" / "test" / "m0")
    (tmp_path / "Z" / "labels.json").write_text(json.dumps({"m0": ["ant", "zebra"]}))
    [(_, found)] = described(grown[0], find_models(tmp_path / "Z")).values()
    assert (found.stated.labels, found.stated.source) == (("ant", "zebra"), "labels.json")
    assert found.comparison.unknown == ("zebra",)


def test_labels_that_are_no_names_are_that_model_s_failure(grown, models, tmp_path):
    shutil.copytree(models / "m0", tmp_path / "Z" / "test" / "m0")
    (tmp_path / "Z" / "labels.json").write_text(r'{"m0": ["ant", "\ud800"]}')
    [(_, found)] = described(grown[0], find_models(tmp_path / "Z")).values()
    assert isinstance(found, ProbexError)
    assert "labels.json" in str(found)


def test_a_folder_that_cannot_be_listed_fails_alone(grown, models, tmp_path):
    (tmp_path / "repo" / "train" / "m").mkdir(parents=True)
    (tmp_path / "repo" / "zoo.json").write_text("{")
    for paths in ([models / "m0", tmp_path / "repo"], [models / "m0", tmp_path]):
        found = described(grown[0], Models(list(map(str, paths))))
        failed = [str(one) for _, one in found.values() if isinstance(one, ProbexError)]
        assert len(found) == 2
        assert len(failed) == 1
        assert "zoo.json is not valid JSON" in failed[0]


def test_a_card_that_cannot_be_written_fails_alone(grown, models, tmp_path):
    (tmp_path / "m0.md").mkdir()
    some = [m for m in find_models(models) if m.id in ("m0", "bee")]
    found = list(forest_steps.describe(Forest.load(grown[0]), some, out=tmp_path))
    assert [m.id for m, one in found if isinstance(one, ProbexError)] == ["m0"]
    assert (tmp_path / "bee.json").exists()


def test_a_full_disk_ends_describing(grown, models, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProbexError, match=r"m0\.md: No space left"):
        list(forest_steps.describe(Forest.load(grown[0]), find_models(models / "m0"), out=tmp_path))


def test_nearest_documented_models_come_from_the_index_of_the_tree(grown, models, stores, tmp_path):
    index = Index.create_or_open(tmp_path / "index", Forest.load(grown[0]).trees["Ant"].expert)
    index.add_models(find_models(stores["Ant"].path.with_name("Ant") / "train"))
    some = [m for m in find_models(models) if m.id in ("m0", "bee", "stranger")]
    found = described(grown[0], some, forest_steps.nearest_in([index]))
    near = found["m0"][1].neighbours
    assert len(near) == 5
    assert [n.similarity for n in near] == sorted((n.similarity for n in near), reverse=True)
    hits = index.search(like=models / "m0", k=5)
    assert [n.id for n in near] == [hit.id for hit in hits]
    assert near[0].text == ", ".join(hits[0].labels)
    assert found["bee"][1].neighbours == ()
    assert found["stranger"][1].neighbours is None
    assert forest_steps.nearest_in([]) is None
