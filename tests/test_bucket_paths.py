"""Paths of folders in a bucket, beside a server of S3 on localhost."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import probex_jax as px
from probex_jax.bucket_paths import as_path, fetched, remove_folder
from probex_jax.buckets import Conflict
from probex_jax.files import disk_errors, read_json, write_json
from tests import s3


@pytest.fixture
def folder(server, request):
    return as_path(f"s3://{s3.BUCKET}/{request.node.name}")


def test_an_address_keeps_both_slashes_however_it_comes():
    for given in ("s3://b/x/y", Path("s3://b/x/y"), as_path("s3://b/x/y"), "s3://b/x/y/"):
        assert str(as_path(given)) == "s3://b/x/y"
    made = as_path("gs://b/x") / "layers" / "..%2Fa"
    assert (str(made), made.name, str(made.parent)) == (
        "gs://b/x/layers/..%2Fa",
        "..%2Fa",
        "gs://b/x/layers",
    )
    assert made == as_path("gs://b/x/layers/..%2Fa")
    assert type(as_path("x/y")) is type(Path("x/y"))


@pytest.mark.parametrize("address", ["s3://", "s3://bucket", "s3://b/../x", "gs://b/x/.."])
def test_what_is_no_folder_in_a_bucket_is_refused(address):
    with pytest.raises(px.ProbexError, match=address.split("//")[0]):
        as_path(address)


def test_without_obstore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    path = as_path("s3://models/x")
    uses = (path.exists, path.is_dir, path.read_bytes, path.stat, lambda: write_json(path, 1))
    for use in (*uses, lambda: [*path.iterdir()], lambda: [*path.below()]):
        with pytest.raises(px.ProbexError, match="buckets"):
            use()


@pytest.mark.parametrize(
    "use",
    [open, os.listdir, os.stat, shutil.rmtree, lambda path: path.open("w"), np.load],
)
def test_what_only_a_disk_can_do_names_the_address(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(px.ProbexError, match="s3://models/x"):
        use(as_path("s3://models/x"))
    assert not [*tmp_path.iterdir()]


def test_objects_are_files_and_what_lies_above_them_is_folders(folder):
    paths = [folder / name for name in ("a%2Fb.json", "in/ü/c.json", "in/lr=1,seed=2/d.json")]
    assert not folder.exists()
    for number, path in enumerate(paths):
        write_json(path, number)
    assert [read_json(path) for path in paths] == [0, 1, 2]
    assert {path.name for path in folder.iterdir()} == {"a%2Fb.json", "in"}
    assert {path.name for path in folder.glob("in/*/[cd].json")} == {"c.json", "d.json"}
    for path, is_file in ((folder, False), (folder / "in", False), (paths[0], True)):
        assert (path.exists(), path.is_file(), path.is_dir()) == (True, is_file, not is_file)
    assert not (folder / "i").exists()
    paths[0].unlink()
    remove_folder(folder / "in")
    assert not folder.exists()


def test_what_is_missing_is_missing_as_on_a_disk(folder):
    with pytest.raises(FileNotFoundError, match="no-file"):
        read_json(folder / "no-file")
    with pytest.raises(px.ProbexError, match="no-file"), disk_errors(folder):
        (folder / "no-file").stat()
    with pytest.raises(px.ProbexError, match="no-such-bucket"):
        write_json(as_path("s3://no-such-bucket/x.json"), 1)


def test_an_object_is_written_over_the_version_that_is_meant_or_not_at_all(folder):
    first = folder.put_over(b"1", None)
    with pytest.raises(Conflict, match=str(folder)):
        folder.put_over(b"2", None)
    second = folder.put_over(b"2", first)
    with pytest.raises(Conflict, match=str(folder)):
        folder.put_over(b"3", first)
    assert folder.read_versioned() == (b"2", second)


def made(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_a_folder_that_is_put_replaces_another_one_and_comes_back_the_same(folder, tmp_path):
    folder.upload(made(tmp_path / "old", "card", "x", "in/y"), last="card")
    folder.upload(made(tmp_path / "new", "card", "in/z"), last="card")
    with fetched(folder) as here:
        found = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
        assert found == {"card", "in/z"}
        assert (here / "in/z").read_text() == "in/z"
    assert not here.exists()


def test_what_makes_a_folder_valid_is_put_last_and_taken_away_first(server, folder, tmp_path):
    new = made(tmp_path / "new", "card", "x")
    folder.upload(new, last="card")
    server.refuses = ("PUT", "/x")
    try:
        with pytest.raises(px.ProbexError, match="/x"):
            folder.upload(new, last="card")
    finally:
        server.refuses = ("", "")
    assert not (folder / "card").exists()
    folder.upload(new, last="card")
    assert (folder / "card").exists()


def test_faults_change_nothing(server, folder, tmp_path):
    names = [f"{number}/f" for number in range(6)]
    server.share = 0.2
    try:
        folder.upload(made(tmp_path / "made", "card", *names), last="card")
        write_json(folder / "list.json", names)
        assert len([*folder.glob("*/f")]) == len(names)
        assert read_json(folder / "list.json") == names
        with fetched(folder) as here:
            assert all((here / name).read_text() == name for name in names)
        remove_folder(folder, first="card")
        assert not folder.exists()
    finally:
        server.share = 0.0
    assert server.failed
