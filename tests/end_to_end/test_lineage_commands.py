"""The family tree of a folder, as a user draws it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.lineage import load_lineage
from tests.end_to_end.warm import run
from tests.reports.pages import check_harmless

pytestmark = pytest.mark.xdist_group("lineage_commands")


def write(path, body, dtype="f4"):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"body.weight": body.astype(dtype)}, path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A root, a child with a copy, a grandchild, a stranger, and a broken file."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)

    def noise():
        return rng.normal(size=(64, 48))

    root = noise()
    child = root + 0.1 * noise()
    bodies = {"root": root, "child": child, "grandchild": child + 0.1 * noise(), "alone": noise()}
    for name, body in bodies.items():
        write(folder / f"{name}.safetensors", body)
    write(folder / "twin.safetensors", child.astype("f4"), "f8")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    return folder


@pytest.fixture(scope="module")
def drawn(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "lineage"
    return out, run("lineage", f"--models={models}", f"--out={out}")


def test_the_files_say_who_descends_from_whom(drawn):
    out, done = drawn
    assert done.returncode == 1, done.stderr
    found = load_lineage(out)
    same = {"twin": "child"}
    edges = {
        frozenset(same.get(id, id) for id in (edge.parent, edge.child)) for edge in found.edges
    }
    assert edges == {frozenset({"root", "child"}), frozenset({"child", "grandchild"})}
    (copies,) = found.copies
    assert set(copies.models) == {"child", "twin"}
    assert list(found.failed) == ["broken"]
    assert {"alone"} == {node.id for node in found.nodes if node.origin == "alone"}
    text = (out / "lineage.html").read_text()
    check_harmless(text)
    assert "grandchild" in text
    for name in ("lineage.mmd", "lineage.nwk"):
        assert "grandchild" in (out / name).read_text()
    json.loads((out / "lineage.json").read_text())


def test_the_table_has_a_row_a_family_and_failures_a_line_each(drawn):
    _, done = drawn
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("failed broken: ")
    header, _, row, last = done.stdout.splitlines()
    cells = dict(
        zip(
            *([cell.strip() for cell in line.split("|")[1:-1]] for line in (header, row)),
            strict=True,
        )
    )
    assert (cells["models"], cells["generations"], cells["copies"]) == ("3", "3", "1")
    assert "5 models" in last


def test_what_was_written_is_whole(drawn):
    out, _ = drawn
    assert run("verify", out).returncode == 0


def test_what_cannot_be_compared_is_one_line(models, tmp_path):
    for arguments, what in (
        ([], "give"),
        ([models / "root.safetensors"], "one model"),
        ([models / "broken.safetensors"], "broken"),
        ([tmp_path / "nowhere"], "nowhere"),
    ):
        done = run("lineage", f"--out={tmp_path / 'out'}", *arguments)
        assert done.returncode == 2
        assert what in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_arguments_lists_and_folders_go_together(models, tmp_path):
    (tmp_path / "list").write_text(f"{models / 'child.safetensors'}\n")
    done = run(
        "lineage", models / "root.safetensors", f"--list={tmp_path / 'list'}", f"--out={tmp_path}/o"
    )
    assert done.returncode == 0, done.stderr
    assert {node.id for node in load_lineage(tmp_path / "o").nodes} == {"root", "child"}


def test_a_model_that_is_given_twice_counts_once(models, tmp_path):
    paths = [models / "root.safetensors", models / "child.safetensors", models / "root.safetensors"]
    done = run("lineage", *paths, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert len(load_lineage(tmp_path).nodes) == 2
