"""Whole models, in the layout that the hub's own client downloads to."""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

import probex_jax as px
from probex_jax.buckets import stores
from probex_jax.errors import ProbexError
from probex_jax.files import WRITER_LOCK, one_writer
from probex_jax.model_files import Remote
from probex_jax.zoo import SPLITS
from probex_jax.zoo import download as downloading
from probex_jax.zoo.download import Lists, bytes_of, download
from probex_jax.zoo.model_j_table import ListedModel, Table, read_table
from tests import model_j
from tests.hub import IMPATIENT, Faults, write_repo

WANTED = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with model_j.served(model_j.write_hub(tmp_path_factory.mktemp("hub"))) as hub:
        yield hub


@pytest.fixture
def hub(shared, monkeypatch):
    """The hub of the module, as it was at first."""
    monkeypatch.setattr(stores, "PATIENCE", IMPATIENT)
    shared.behave()
    return shared


def get(table, out, **options):
    return download(table, out, Remote(), **options)


def repo_of(hub, name="org/a", **files):
    """A repository of a test's own, and a table that lists it alone."""
    root = hub.repositories.root
    write_repo(root, "models", name, {"config.json": "{}", "model.safetensors": b"x" * 99} | files)
    return Table("SupViT", (ListedModel(model_j.folder_of(name), "train", name),), {})


def tree(folder):
    """Every file, and every link with where it leads."""
    paths = sorted(Path(folder).rglob("*"))
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in paths
        if p.is_symlink() or p.is_file()
    }


@pytest.fixture(scope="module")
def classifiers(shared, tmp_path_factory):
    """All of SupViT, downloaded; not to be changed by a test."""
    out = tmp_path_factory.mktemp("whole")
    shared.log.clear()
    table = read_table("SupViT", (), Remote())
    counts, seen = [], []
    remote = Remote(on_bytes=counts.append)
    summary = download(table, out, remote, jobs=3, on_model=seen.append)
    assert (summary.folder, summary.models, summary.added) == (out / "SupViT", 8, 8)
    assert (summary.failed, seen) == ({}, [""] * 8)
    return table, out, sum(counts), [request.file for request in shared.log if request.file]


def test_the_layout_is_that_of_the_hubs_client(hub, classifiers, tmp_path):
    table, out, _, _ = classifiers
    for model in table.models:
        huggingface_hub.snapshot_download(
            model.repo,
            cache_dir=tmp_path / model.split,
            endpoint=hub.url,
            allow_patterns=[*WANTED],
            ignore_patterns=["*/*"],
        )
    theirs = {
        path: content
        for path, content in tree(tmp_path).items()
        if not {".locks", ".no_exist", "CACHEDIR.TAG", "trees"} & {*Path(path).parts}
    }
    ours = tree(out / "SupViT")
    del ours["labels.json"], ours[".lock"]
    assert ours == theirs


def test_the_hubs_client_and_our_readers_read_it(hub, classifiers):
    table, out, _, _ = classifiers
    hub.log.clear()
    for model in table.models:
        folder = Path(
            huggingface_hub.snapshot_download(
                model.repo, cache_dir=out / "SupViT" / model.split, local_files_only=True
            )
        )
        assert {path.name for path in folder.iterdir()} == WANTED
        for path in folder.iterdir():
            assert path.resolve().is_relative_to(out / "SupViT" / model.split / model.id)
    zoo = px.scan(out / "SupViT")
    assert [(m.id, m.split) for m in zoo.models] == [(m.id, m.split) for m in table.models]
    for model in zoo.models:
        number = int(model.id[-4:])
        original = hub.repositories.root / "models" / model_j.classifier_id(number)
        with model.open() as ours, px.open_model(original) as theirs:
            assert ours.config["number"] == number
            assert model.labels_in(ours)
            np.testing.assert_array_equal(ours.matrix("a.weight"), theirs.matrix("a.weight"))
    assert hub.log == []


def test_nothing_else_is_fetched_and_nothing_twice(hub, classifiers):
    table, out, count, asked = classifiers
    files = [f"{model.repo}/{name}" for model in table.models for name in WANTED]
    assert sorted(file for file in asked if not file.startswith("datasets/")) == sorted(files)
    sizes = [(hub.repositories.root / "models" / file).stat().st_size for file in files]
    assert count == sum(sizes) == sum(bytes_of(model, Lists(Remote())) for model in table.models)
    before = tree(out)
    hub.log.clear()
    summary = get(table, out)
    assert (summary.added, summary.failed, tree(out), hub.log) == (0, {}, before, [])


def test_loras_lie_as_files_and_their_repository_is_listed_once(hub, tmp_path):
    table = read_table("SD_200", (), Remote())
    n_models = len(table.models)
    hub.log.clear()
    lists = Lists(Remote())
    planned = [bytes_of(model, lists) for model in table.models]
    assert get(table, tmp_path, jobs=3).added == n_models
    requests = [request.file or "list" for request in hub.log]
    files = [f"{model.repo}/{model.path}" for model in table.models]
    assert sorted(requests) == sorted(["list", "list", *files])
    originals = hub.repositories.root / "models" / model_j.LORA_REPO
    found = tree(tmp_path / "SD_200")
    del found["labels.json"], found[".lock"]
    assert found == {model.path: (originals / model.path).read_bytes() for model in table.models}
    assert sum(planned) == sum(map(len, found.values()))
    assert {model.split for model in px.scan(tmp_path / "SD_200").models} == set(SPLITS)
    hub.log.clear()
    assert (get(table, tmp_path).added, hub.log) == (0, [])


def test_a_folder_stands_for_the_lora_in_it(hub, tmp_path):
    model = ListedModel("model_idx_0000", "val", model_j.LORA_REPO, "train/model_idx_0000")
    assert get(Table("SD_200", (model,), {}), tmp_path).added == 1
    [path] = tree(tmp_path)
    assert path == "SD_200/val/model_idx_0000/pytorch_lora_weights.safetensors"


def test_words_go_to_the_zoo(hub, tmp_path):
    table = Table("SupViT", repo_of(hub).models, {"n01": "crane"})
    get(table, tmp_path)
    zoo = px.scan(tmp_path / "SupViT")
    assert (zoo.tree, zoo.texts, zoo.classes) == ("SupViT", {"n01": "crane"}, None)
    # They join what zoo.json says.
    about = {"tree": "mine", "classes": ["n01"], "texts": {"n01": "old"}}
    (tmp_path / "SupViT" / "zoo.json").write_text(json.dumps(about))
    get(table, tmp_path)
    zoo = px.scan(tmp_path / "SupViT")
    assert (zoo.tree, zoo.texts, zoo.classes) == ("mine", {"n01": "crane"}, ("n01",))


def rows_of(folder):
    return {row["model"]: row for row in json.loads((folder / "labels.json").read_text())}


def test_columns_of_the_table_go_beside_the_models(hub, classifiers):
    _, out, _, _ = classifiers
    zoo = px.scan(out / "SupViT")
    assert zoo.tables.numbers["lr"] == dict.fromkeys((model.id for model in zoo.models), 1e-4)
    assert zoo.unmatched == {}


def test_later_downloads_keep_the_columns_of_earlier_ones(hub, tmp_path):
    first, second = (read_table("SupViT", (split,), Remote()) for split in ("train", "val"))
    gone = replace(first.models[0], id="models--org--gone", repo="org/gone")
    notes = {"note": {first.models[0].id: "fine", gone.id: "never downloaded"}}
    first = replace(first, models=(*first.models, gone), columns=first.columns | notes)
    folder = get(first, tmp_path).folder
    assert rows_of(folder).keys() == {model.id for model in first.models} - {gone.id}
    get(second, tmp_path)
    again = replace(first, columns={"lr": {model.id: 0.5 for model in first.models}})
    get(again, tmp_path)
    rows = rows_of(folder)
    assert rows.keys() == {m.id for m in (*first.models, *second.models)} - {gone.id}
    assert rows[first.models[0].id] == {"model": first.models[0].id, "lr": 0.5, "note": "fine"}
    assert rows[second.models[0].id]["lr"] == 1e-4


def test_labels_of_ones_own_are_not_overwritten(hub, tmp_path):
    table = read_table("SupViT", ("val",), Remote())
    path = tmp_path / "SupViT" / "labels.json"
    path.parent.mkdir()
    path.write_text('{"a": "cat"}')
    with pytest.raises(ProbexError, match=r"labels\.json"):
        get(table, tmp_path)
    assert path.read_text() == '{"a": "cat"}'
    assert not (path.parent / "val").exists(), "it was downloaded first"


@pytest.mark.parametrize("redirects", [False, True])
def test_faults_change_nothing(hub, classifiers, tmp_path, redirects):
    table, out, _, _ = classifiers
    hub.faults, hub.redirects = Faults(5, 0.1, 0.1, 0.1, 0.1), redirects
    summary = get(table, tmp_path)
    assert (summary.added, summary.failed) == (8, {})
    assert sum(request.fault is not None for request in hub.log) > 8
    assert tree(tmp_path) == tree(out)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_bytes_of_another_hash_are_not_kept(hub, tmp_path, name):
    table = repo_of(hub, f"org/corrupt-{name[:5]}")
    repo = table.models[0].repo
    hub.misbehave = {f"{repo}/{name}": "corrupt"}
    summary = get(table, tmp_path)
    [reason] = summary.failed.values()
    assert f"/{name}: its hash" in reason
    assert summary.added == 0
    place = tmp_path / "SupViT" / "train" / table.models[0].id
    assert not (place / "refs").exists()
    kept = {path.name for path in (place / "blobs").iterdir()}
    assert kept == (set() if name == "config.json" else {hashlib.sha1(b"blob 2\0{}").hexdigest()})
    hub.misbehave = {}
    assert get(table, tmp_path).added == 1
    assert (
        place / "snapshots" / hub.commit_of(repo) / "model.safetensors"
    ).read_bytes() == b"x" * 99


def test_what_a_kill_left_damaged_is_fetched_again(hub, tmp_path):
    """Torn, or longer than the file, or with bytes that were never written."""
    table = repo_of(hub, "org/torn", **{"model.safetensors": bytes(range(256)) * 8})
    place = tmp_path / "SupViT" / "train" / table.models[0].id
    sha256 = hashlib.sha256(bytes(range(256)) * 8).hexdigest()
    for left, added in ((bytes(range(200)), 1), (b"\0" * 2000, 0), (b"x" * 3000, 0), (b"", 1)):
        shutil.rmtree(place, ignore_errors=True)
        (place / "blobs").mkdir(parents=True)
        (place / "blobs" / f"{sha256}.incomplete").write_bytes(left)
        hub.log.clear()
        assert get(table, tmp_path).added == added
        asked = [begin for begin, _ in hub.served("org/torn/model.safetensors")]
        assert asked == ([] if len(left) > 2048 else [len(left)])
        assert get(table, tmp_path).added == 1 - added
        assert px.scan(tmp_path / "SupViT").models
        [link] = place.glob("snapshots/*/model.safetensors")
        assert link.read_bytes() == bytes(range(256)) * 8
        assert not [*place.glob("blobs/*.incomplete")]


def test_a_model_is_ended_at_the_commit_it_was_begun_at(hub, tmp_path):
    table = repo_of(hub, "org/moves")
    repo, first = "org/moves", hub.commit_of("org/moves")
    hub.misbehave = {f"{repo}/model.safetensors": "corrupt"}
    assert get(table, tmp_path).added == 0
    hub.misbehave = {}
    new = write_repo(
        tmp_path / "new", "models", repo, {"model.safetensors": b"y", "more.safetensors": b"z"}
    )
    second = hub.move(repo, new)
    assert second != first
    assert get(table, tmp_path).added == 1
    place = tmp_path / "SupViT" / "train" / table.models[0].id
    assert (place / "refs" / "main").read_text() == first
    assert [path.name for path in (place / "snapshots").iterdir()] == [first]
    assert (place / "snapshots" / first / "model.safetensors").read_bytes() == b"x" * 99
    # What is complete stays; begun anew, it is at the new one.
    assert get(table, tmp_path).added == 0
    assert get(table, tmp_path / "again").added == 1
    assert [*(tmp_path / "again").rglob(f"{second}/more.safetensors")]


def test_gone_and_private_models_are_reported_and_tried_again(hub, tmp_path):
    listed = read_table("SupViT", ("train",), Remote()).models
    gone = ListedModel("models--org--gone", "train", "org/gone")
    table = Table("SupViT", (gone, *listed), {})
    hub.private, hub.token = {listed[1].repo}, "right"
    seen = []
    summary = get(table, tmp_path, jobs=2, on_model=seen.append)
    assert (summary.added, set(summary.failed)) == (3, {gone.id, listed[1].id})
    assert "404" in summary.failed[gone.id]
    assert "401" in summary.failed[listed[1].id]
    assert seen == [
        f"{model.id}: {summary.failed[model.id]}" if model.id in summary.failed else ""
        for model in table.models
    ]
    assert all(len(reason.splitlines()) == 1 for reason in summary.failed.values())
    hub.private = set()
    repo_of(hub, "org/gone")
    hub.log.clear()
    assert get(table, tmp_path).added == 2
    paths = [request.path.removeprefix("/api/models") for request in hub.log]
    asked = {"/".join(path.split("/")[1:3]) for path in paths}
    assert asked == {"org/gone", listed[1].repo}


def test_a_file_that_is_gone_or_no_weights_at_all(hub, tmp_path):
    lora = ListedModel("model_idx_9999", "train", model_j.LORA_REPO, "train/model_idx_9999")
    summary = get(Table("SD_200", (lora,), {}), tmp_path)
    assert "nothing there" in summary.failed["model_idx_9999"]
    write_repo(hub.repositories.root, "models", "org/pickle", {"pytorch_model.bin": b"\x80"})
    model = ListedModel("models--org--pickle", "train", "org/pickle")
    summary = get(Table("SupViT", (model,), {}), tmp_path)
    assert summary.failed == {model.id: "hf://org/pickle: no .safetensors file in the repository"}
    gone = ListedModel("models--org--never", "test", "org/never")
    assert get(Table("SupViT", (gone,), {}), tmp_path).failed.keys() == {gone.id}
    assert not [*tmp_path.glob("SupViT/*/models*/refs")]
    assert hub.served("pytorch_model.bin") == []


def test_shards_and_empty_files_come_too(hub, tmp_path):
    files = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}
    files |= {"model.safetensors.index.json": "{}", "adapter_config.json": "{}", "README.md": ""}
    table = repo_of(hub, "org/shards", **files)
    assert get(table, tmp_path).added == 1
    [snapshot] = (tmp_path / "SupViT" / "train" / table.models[0].id / "snapshots").iterdir()
    assert {path.name for path in snapshot.iterdir()} == {
        *files,
        "config.json",
        "model.safetensors",
    }
    assert (snapshot / "README.md").read_bytes() == b""


@pytest.mark.parametrize("subset", ["SupViT", "SD_200"])
def test_only_one_process_downloads_a_model(hub, tmp_path, subset):
    listed = read_table(subset, ("train",), Remote()).models
    folder = tmp_path / subset / "train" / listed[0].id
    with one_writer(folder):
        summary = get(Table(subset, listed, {}), tmp_path)
    assert [*summary.failed] == [listed[0].id]
    assert f"{folder}: another process" in summary.failed[listed[0].id]
    assert summary.added == len(listed) - 1
    # The lock of a process that was killed stops nobody.
    folder.mkdir()
    (folder / WRITER_LOCK).touch()
    assert get(Table(subset, listed, {}), tmp_path).added == 1
    assert not (folder / WRITER_LOCK).exists()


def test_a_full_disk_is_one_line_and_gone_on_with(hub, tmp_path, monkeypatch):
    table = repo_of(hub, "org/full")

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(downloading.os, "fsync", fsync)
        summary = get(table, tmp_path)
    assert summary.added == 0
    [reason] = summary.failed.values()
    assert reason == f"{tmp_path / 'SupViT'}: No space left on device"
    assert get(table, tmp_path).added == 1


def test_where_nothing_can_be_written_it_says_so(hub, tmp_path, toy_store):
    table = repo_of(hub)
    (tmp_path / "file").write_text("")
    with pytest.raises(px.ProbexError, match=r"file/SupViT: Not a directory"):
        get(table, tmp_path / "file")
    with pytest.raises(px.ProbexError, match=r"Toy: is a layer store; choose another --out"):
        get(Table("Toy", table.models, {}), toy_store.path.parent)


def test_an_interrupt_ends_what_is_under_way(hub, tmp_path):
    listed = read_table("SupViT", (), Remote())

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(listed, tmp_path, jobs=1, on_model=interrupt)
    assert len([*tmp_path.rglob("refs/main")]) < 8
    summary = get(listed, tmp_path)
    assert summary.failed == {}
    assert len([*tmp_path.rglob("refs/main")]) == 8


def test_an_interrupt_is_heard_while_a_server_is_slow(hub, tmp_path):
    table = repo_of(hub, "org/slow", **{"model.safetensors": bytes(4000)})
    hub.misbehave["org/slow/model.safetensors"] = "slow"
    with model_j.interrupted_once(lambda: [*tmp_path.rglob("*.incomplete")]):
        get(table, tmp_path, jobs=2)


WORK = """
from probex_jax.model_files import Remote
from probex_jax.zoo.download import download
from probex_jax.zoo.model_j_table import ListedModel, Table


def work(on_bytes):
    models = [ListedModel(f"models--org--killed{n}", "train", f"org/killed{n}") for n in range(6)]
    download(Table("SupViT", tuple(models), {}), OUT, Remote(on_bytes=on_bytes), jobs=2)
"""


@pytest.mark.parity
def test_kill_9_at_ten_random_moments(hub, tmp_path):
    rng = np.random.default_rng(1)
    contents = {f"org/killed{n}": rng.bytes(3 * 2**20) for n in range(6)}
    tables = [repo_of(hub, name, **{"model.safetensors": data}) for name, data in contents.items()]
    hub.log.clear()
    kills = model_j.killed(hub, WORK, tmp_path, pieces=15, seed=2)
    assert kills[0] > 0
    table = Table("SupViT", tuple(model for one in tables for model in one.models), {})
    summary = get(table, tmp_path)
    assert (summary.failed, summary.added > 0) == ({}, True)
    model_j.check_read_once(hub, kills, jobs=2)
    expected = get(table, tmp_path / "at once")
    assert tree(tmp_path / "SupViT") == tree(expected.folder)
    assert not [*tmp_path.rglob("*.incomplete")]
    for model in table.models:
        [file] = (tmp_path / "SupViT" / "train" / model.id).glob("snapshots/*/model.safetensors")
        assert file.read_bytes() == contents[model.repo]


def test_a_commit_that_the_hub_has_no_more_is_given_up(hub, tmp_path):
    table = repo_of(hub, "org/rebased")
    place = tmp_path / "SupViT" / "train" / table.models[0].id
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    assert get(table, tmp_path).added == 1
    assert [path.name for path in (place / "snapshots").iterdir()] == [hub.commit_of("org/rebased")]
