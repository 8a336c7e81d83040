"""Stores, work directories, forests and indexes in a bucket: what a disk has, whatever fails."""

import contextlib
import json
import os
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.bucket_paths import as_path, fetched
from probex_jax.experts import checkpoints
from probex_jax.files import WRITER_LOCK
from probex_jax.fitting import ClosedForm
from probex_jax.forest import Forest, grow
from probex_jax.search import Index, find_models
from probex_jax.sweeps import sweep
from tests import s3
from tests.conftest import write_toy_zoo
from tests.end_to_end import warm
from tests.forest.conftest import class_expert, pack_tree, write_member, write_tree
from tests.writer import SETTINGS

BUCKET = f"s3://{s3.BUCKET}"
# Of a zoo: more than a block, in three layers and a vector.
MODELS = 80


def everything(root, zoo):
    """A zoo packed, trained on, described and searched."""
    store = px.pack(px.scan(zoo), root / "store").store
    settings = {"encoder": {"name": "dense"}, "head": "none", "normalise": "centre"}
    trained = sweep(store, root / "trained", recipe=ClosedForm(), **settings)
    expert = px.Expert.load(root / "trained")
    grow(root / "forest", store)
    _, done = grow(root / "forest", store, expert)
    assert (done, grow(root / "forest", store, expert)[1]) == ("replaced", "unchanged")
    model = zoo / "test" / "m20"
    index = Index.create_or_open(root / "index", class_expert("Toy", 1))
    added = index.add_models(find_models(zoo))
    index.optimise()
    return {
        "store": store.hash,
        "matrices": {name: np.asarray(store.matrices(name)).tobytes() for name in store.layers},
        "metrics": trained.metrics,
        "expert": expert.hash,
        "description": Forest.load(root / "forest").describe(model).as_json(),
        "added": added,
        "hits": Index.open(root / "index").search(like=model, k=5),
    }


def names(folder):
    """The files of a store or a forest by their names in it."""
    if (below := getattr(folder, "below", None)) is not None:
        return {str(path).removeprefix(str(folder)) for path, _ in below()}
    return {str(path).removeprefix(str(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parity
def test_a_bucket_gives_what_a_disk_gives(server, tmp_path):
    zoo, there = write_tree(tmp_path / "Toy", 1), as_path(f"{BUCKET}/all")
    here = everything(tmp_path / "out", zoo)
    assert everything(there, zoo) == here
    assert names(there / "store") == names(tmp_path / "out" / "store")
    model = zoo / "test" / "m20"
    with fetched(there) as copy:  # from a bucket to a disk, and back
        assert px.LayerStore.open(copy / "store").hash == here["store"]
        assert px.Expert.load(copy / "trained").hash == here["expert"]
        assert Forest.load(copy / "forest").describe(model).as_json() == here["description"]
        assert Index.open(copy / "index").search(like=model, k=5) == here["hits"]
        again = Index.create_or_open(copy / "index", class_expert("Toy", 1))
        assert again.add_models(find_models(zoo)).unchanged == len(again)
        write_member(zoo / "test" / "new", 99, of=1)
        assert again.add_models(find_models(zoo)).added == 1
        data = next((copy / "index").rglob("*.lance/data/*"))
        data.write_bytes(data.read_bytes()[:-1] + b"!")
        with pytest.raises(px.ProbexError, match=data.name):
            Index.open(copy / "index")
    back = as_path(f"{BUCKET}/back")
    back.upload(tmp_path / "out" / "index", last="index.json")
    assert Index.open(back).search(like=model, k=5) == here["hits"]
    left = {path.name for path, _ in there.below()} & {WRITER_LOCK, ".lock"}
    assert not left
    assert not (there / "trained" / "training").exists()


@contextlib.contextmanager
def refused(server, method, end):
    """Whoever puts, or gets, what has a name that ends so is told that it is forbidden."""
    server.refuses = (method, end)
    try:
        with pytest.raises(px.ProbexError, match=end):
            yield
    finally:
        server.refuses = ("", "")


def test_an_expert_that_was_put_by_half_is_none(server):
    folder, expert = as_path(f"{BUCKET}/half"), class_expert("Toy", 1)
    expert.save(folder)
    assert px.Expert.load(folder).hash == expert.hash
    with refused(server, "PUT", "/manifest.ocdbt"):
        expert.save(folder)
    assert folder.exists()
    assert not checkpoints.is_there(folder)
    with pytest.raises(px.ProbexError, match=str(folder)):
        px.Expert.load(folder)


def test_a_tree_is_the_old_one_until_the_new_one_is_whole(server, tmp_path):
    folder, store = as_path(f"{BUCKET}/forest"), pack_tree(tmp_path, "Toy", 1)
    old, new = (class_expert("Toy", 1, gain=gain) for gain in (8.0, 4.0))
    tree, _ = grow(folder, store, old)
    for method, end in (("PUT", "/tree.json"), ("GET", "/tree.json"), ("GET", "/manifest.ocdbt")):
        with refused(server, method, end):
            grow(folder, store, new if end == "/tree.json" else old)
    assert Forest.load(folder).trees["Toy"].expert.hash == tree.expert.hash
    grown, done = grow(folder, store, new)
    assert done == "replaced"
    assert Forest.load(folder).trees["Toy"].expert.hash == grown.expert.hash != tree.expert.hash
    assert len({path.name for path in (folder / "trees" / "Toy").iterdir()}) == 3


def test_an_index_is_there_though_lists_of_its_files_break_off(server, tmp_path):
    zoo, folder = write_tree(tmp_path / "Toy", 1, ("train",) * 3), f"{BUCKET}/cut"
    server.cuts_lists = 13  # the greatest step makes twelve
    try:
        index = Index.create_or_open(folder, class_expert("Toy", 1))
        assert index.add_models(find_models(zoo)).added == 3
        index.optimise()
        assert len(Index.open(folder).search(like=zoo / "train" / "m00")) == 2
    finally:
        server.cuts_lists = 0


def start(what, *arguments, stops=False, stale_s=60):
    return warm.start("tests.writer", what, stops, *arguments, env={"STALE_S": str(stale_s)})


def test_a_pack_that_was_killed_goes_on_and_gives_the_same(server, tmp_path):
    zoo, address = write_toy_zoo(tmp_path / "Toy", MODELS), f"{BUCKET}/killed"
    first = start("pack_a_block", zoo, address, stops=True)
    assert first.wait() is None, "it stops itself"
    second = start("pack", zoo, address).wait()
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert address in second.stderr
    assert f"pid {first.pid}" in second.stderr
    first.send(signal.SIGKILL)
    assert first.wait().returncode == -signal.SIGKILL
    assert 0 < len(px.LayerStore.open(address).models) < MODELS
    summary = px.pack(px.scan(zoo), address)
    assert 0 < summary.added < MODELS
    alone = px.pack(px.scan(zoo), tmp_path / "alone").store
    assert summary.store.hash == alone.hash
    for path in sorted((tmp_path / "alone").rglob("*/c/*/0/0")):
        same = as_path(address) / path.relative_to(tmp_path / "alone")
        assert same.read_bytes() == path.read_bytes()


def test_reading_a_layer_moves_what_its_matrices_take(server, tmp_path):
    rng, zoo = np.random.default_rng(0), tmp_path / "Wide"
    for number in range(6):
        folder = zoo / "train" / f"m{number}"
        folder.mkdir(parents=True)
        tensors = {
            name: rng.normal(size=(128, 128)).astype("f4") for name in ("a.weight", "b.weight")
        }
        save_file(tensors, folder / "model.safetensors", {"dataset_chosen_targets": "['cat']"})
    px.pack(px.scan(zoo), f"{BUCKET}/wide")
    store, before = px.LayerStore.open(f"{BUCKET}/wide"), server.sent
    assert store.matrices("b.weight").nbytes <= server.sent - before
    assert server.sent - before <= 1.02 * store.matrices("b.weight").nbytes


@pytest.mark.parity
def test_a_killed_training_in_a_bucket_gives_the_same(server, tmp_path):
    store = px.pack(px.scan(write_toy_zoo(tmp_path / "Toy", 30)), f"{BUCKET}/t/s").store
    workdir = as_path(f"{BUCKET}/t/w")
    first = start("train", store.path, workdir, 3, stops=True)
    assert first.wait() is None
    saved = next(path for path in workdir.glob("training/*/*") if path.name.isdigit())
    first.send(signal.SIGKILL)
    assert first.wait().returncode == -signal.SIGKILL
    # As if it had been killed while it saved another one.
    (saved.with_name("99999999") / "pytree" / "d").write_bytes(b"half")
    done = start("train", store.path, workdir).wait()
    assert done.returncode == 0, done.stderr
    alone = sweep(store, tmp_path / "alone", **SETTINGS)
    assert sweep(store, workdir, **SETTINGS).metrics == alone.metrics
    assert px.Expert.load(workdir).hash == alone.expert.hash


@pytest.mark.parity
def test_a_writer_that_does_not_answer_loses_the_folder(server, tmp_path):
    zoo, address = write_toy_zoo(tmp_path / "Toy", MODELS), f"{BUCKET}/stale"
    first = start("pack_a_block", zoo, address, stops=True, stale_s=3)
    assert first.wait() is None
    refused = start("pack", zoo, address, stale_s=3).wait()
    time.sleep(4.5)
    second = start("pack", zoo, address, stale_s=3).wait()
    assert (refused.returncode, second.returncode) == (2, 0), second.stderr
    first.send(signal.SIGCONT)
    done = first.wait()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), "it writes no more"
    alone = px.pack(px.scan(zoo), tmp_path / "alone").store
    assert px.LayerStore.open(address).hash == alone.hash


def run(command, *arguments):
    done = warm.run(command, *arguments)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def commands(root, folder, zoo):
    """What the commands print, without where it is."""
    store = f"{root}/store"
    said = {
        "pack": run("pack", f"--zoo={zoo}", f"--store={store}"),
        "train": run("train", f"--config.store={store}", f"--workdir={root}/w"),
        "again": run("train", f"--config.store={store}", f"--workdir={root}/w"),
        "evaluate": run("evaluate", f"--experts={root}/w", f"--store={store}"),
        "grow": run(
            "grow_forest", f"--stores={store}", f"--experts={root}/w", f"--forest={root}/f"
        ),
        "index": run("index", f"--experts={root}/w", f"--models={zoo}", f"--index={root}/i"),
        "search": run("search", f"--index={root}/i", f"--like={zoo}/test/m20"),
        "describe": run(
            "describe", f"--forest={root}/f", f"--index={root}/i", f"{zoo}/test/m20", "--json"
        ),
    }
    metrics = {
        name: json.loads((as_path(root) / name / "metrics.json").read_text())
        for name in ("w", "w/evaluation")
    }
    return {name: text.replace(str(root), "") for name, text in said.items()}, metrics


@pytest.mark.parity
def test_commands_in_a_bucket_that_fails_by_chance_say_what_they_say_on_a_disk(server, tmp_path):
    zoo = write_tree(tmp_path / "Toy", 1)
    here = commands(tmp_path / "out", tmp_path, zoo)
    server.share, before = 0.1, server.failed
    try:
        assert commands(f"{BUCKET}/commands", tmp_path, zoo) == here
    finally:
        server.share = 0.0
    assert server.failed - before > 20
    report = as_path(f"{BUCKET}/commands/w/report.html").read_text()
    assert "<html" in report
    assert "s3:" not in os.listdir(warm.ROOT)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("build_zoo", ["--out={}"]),
        ("download_model_j", ["--subset=SupViT", "--out={}"]),
    ],
)
def test_what_needs_a_disk_says_so(server, command, flags):
    address = f"{BUCKET}/no"
    done = warm.run(command, *(flag.format(address) for flag in flags))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert address in done.stderr
    assert "s3:" not in os.listdir(warm.ROOT)
