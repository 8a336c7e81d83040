"""`verify`: what is whole is found whole, and every damage is a line that names the file."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import verify_experts
from probex_jax.fitting import ClosedForm
from probex_jax.forest import grow, verify_forest
from probex_jax.integrity import sealed
from probex_jax.layer_store import verify_store
from probex_jax.search import Index, ModelTable, checksums, find_models, verify_index
from probex_jax.sweeps import sweep
from tests import s3
from tests.conftest import write_toy_zoo
from tests.end_to_end import warm
from tests.forest.conftest import class_expert, pack_tree
from tests.search.conftest import make_expert, write_model

# One worker makes the folders.
pytestmark = pytest.mark.xdist_group("verify")

VERIFY = {
    "store": verify_store,
    "trained": verify_experts,
    "forest": verify_forest,
    "index": verify_index,
}
CLOSED = {"encoder": {"name": "dense"}, "head": "none", "normalise": "centre"}
LAYER = "layers/body.0.weight/matrices"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, a training on it, a forest of both, and an index."""
    folder = tmp_path_factory.mktemp("made")
    store = pack_tree(folder, "Toy", 1)
    shutil.move(store.path, folder / "store")
    store = px.LayerStore.open(folder / "store")
    trained = sweep(store, folder / "trained", recipe=ClosedForm(), **CLOSED)
    grow(folder / "forest", store, trained.expert)
    for seed in range(5):
        write_model(folder / "models" / f"m{seed}.safetensors", seed, ["ant"])
    index = Index.create_or_open(folder / "index", make_expert())
    index.add_models(find_models(folder / "models"))
    (folder / "models" / "m0.safetensors").unlink()
    index.prune()
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """Copies one of them, to be damaged."""

    def copied(kind):
        return shutil.copytree(made / kind, tmp_path / kind)

    return copied


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket."""
    with s3.serving():
        yield f"s3://{s3.BUCKET}"


def flip(path, bit=None):
    """Flips a bit of a file: by default one in its middle."""
    data = bytearray(path.read_bytes())
    bit = 4 * len(data) if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 10)


def remove(path):
    path.unlink()


def write_nonsense(path):
    path.write_text('{"version": ')


def change_lines(change):
    """Damages the objects in a file of lines, or of one."""

    def changed(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(sealed(line)) + "\n" for line in lines))

    return changed


def change_json(**fields):
    def changed(path):
        path.write_text(json.dumps(sealed(json.loads(path.read_text()) | fields)))

    return changed


def lines_named(**fields):
    return change_lines(lambda lines: lines[3].update(fields))


DAMAGES = [
    ("store", f"{LAYER}/c/0/0/0", flip),
    ("store", f"{LAYER}/c/0/0/0", truncate),
    ("store", f"{LAYER}/c/0/0/0", remove),
    ("store", f"{LAYER}/zarr.json", flip),
    ("store", f"{LAYER}/zarr.json", remove),
    ("store", "vectors/0/c/0/0/0", flip),
    ("store", "store.json", write_nonsense),
    ("store", "store.json", remove),
    ("store", "models.jsonl", truncate),
    ("store", "models.jsonl", lambda path: path.write_bytes(b"{\n" + path.read_bytes())),
    ("store", "models.jsonl", lambda path: path.write_bytes(b"[1]\n" + path.read_bytes())),
    ("store", "models.jsonl", change_lines(lambda lines: lines.append(lines[3]))),
    ("store", "models.jsonl", change_lines(lambda lines: lines.pop(3))),
    ("store", "models.jsonl", change_lines(lambda lines: lines[3].pop("base"))),
    ("store", "models.jsonl", change_lines(lambda lines: lines[3].update(id=lines[4]["id"]))),
    ("store", "models.jsonl", lines_named(row=4)),
    ("store", "models.jsonl", lines_named(row=-1)),
    ("store", "models.jsonl", lines_named(content_hash="0" * 64)),
    ("store", "models.jsonl", lines_named(split="trains")),
    ("store", "models.jsonl", lines_named(labels=["nothing"])),
    ("store", "models.jsonl", lines_named(status="pocked")),
    ("store", "models.jsonl", lines_named(tree="Toys")),
    ("trained", "expert/_CHECKPOINT_METADATA", flip),
    ("trained", "expert/_CHECKPOINT_METADATA", remove),
    ("trained", "expert/state/manifest.ocdbt", flip),
    ("trained", "expert/state/manifest.ocdbt", remove),
    ("trained", "expert/sums.json", flip),
    ("trained", "metrics.json", write_nonsense),
    ("trained", "metrics.json", change_json(test_accuracy={"value": 1.0})),
    ("trained", "metrics.json", change_json(layers={"expert": []})),
    ("trained", "metrics.json", change_json(store_hash="0")),
    ("trained", "config.json", write_nonsense),
    ("trained", "config.json", change_json(head="class")),
    ("trained", "predictions.safetensors", flip),
    ("trained", "predictions.safetensors", truncate),
    ("forest", "forest.json", write_nonsense),
    ("forest", "forest.json", remove),
    ("forest", "trees/Toy/tree.json", flip),
    ("forest", "trees/Toy/tree.json", write_nonsense),
    ("forest", "trees/Toy/tree.json", remove),
    ("forest", "trees/Toy/arrays.safetensors", flip),
    ("forest", "trees/Toy/arrays.safetensors", remove),
    ("forest", "trees/Toy/expert/state/manifest.ocdbt", flip),
    ("index", "index.json", flip),
    ("index", "index.json", remove),
    ("index", "models.sums.json", flip),
    ("index", "models.sums.json", remove),
    ("index", "expert/state/manifest.ocdbt", flip),
]


@pytest.mark.parametrize(("kind", "name", "damage"), DAMAGES)
def test_damage_is_a_line_that_names_the_file(copy, kind, name, damage):
    folder = copy(kind)
    damage(folder / name)
    found = list(VERIFY[kind](folder))
    assert any(line.startswith(f"{folder / name}") for line in found), found
    assert all(line.isprintable() for line in found)


@pytest.mark.parametrize("what", ["*.lance", "*.manifest", "*.txn", "*.arrow"])
def test_any_file_of_an_indexs_table_is_named(copy, what):
    for path in sorted((folder := copy("index")).glob(f"*/*/{what}")):
        kept = path.read_bytes()
        flip(path)
        assert [line.startswith(f"{path}:") for line in verify_index(folder)] == [True]
        path.write_bytes(kept)
    assert not list(verify_index(folder))


def test_all_damages_are_listed_and_the_models_that_a_shard_holds(copy):
    folder = copy("store")
    flip(folder / LAYER / "c" / "0" / "0" / "0", bit=80)  # of the first model
    remove(folder / "layers" / "classifier.weight" / "matrices" / "zarr.json")
    lines_named(content_hash="0")(folder / "models.jsonl")
    store = px.LayerStore.open(folder)
    shard, metadata = list(verify_store(folder))[::-1]
    assert store.models[0].id in shard
    assert not any(model.id in shard for model in store.models[1:])
    assert "classifier.weight" in metadata


def test_a_model_in_anothers_place_is_found(copy):
    """What two that packed at once left: every checksum is right, and the models are not."""
    folder = copy("store")

    def swap(lines):
        lines[3]["row"], lines[4]["row"] = lines[4]["row"], lines[3]["row"]

    change_lines(swap)(folder / "models.jsonl")
    assert len(list(verify_store(folder))) == 2


def test_the_hash_of_early_lines_is_of_another_kind(copy):
    folder = copy("store")
    lines_named(layers={"body.0.weight": "packed"}, content_hash="0")(folder / "models.jsonl")
    assert not list(verify_store(folder))


def test_another_expert_of_a_forest_or_an_index_is_found(copy):
    for folder, expert in ((copy("forest") / "trees" / "Toy", "expert"), (copy("index"), "expert")):
        class_expert("Toy", 3).save(folder / expert)
    for kind in ("forest", "index"):
        (line,) = VERIFY[kind](folder.parent / kind)
        assert "another expert" in line


def test_odd_rows_of_an_index_are_found(tmp_path):
    index = Index.create_or_open(tmp_path / "index", make_expert())
    table = index._table
    table.add([{"path": f"/{n}", "id": "x"} for n in range(4)], np.eye(8)[:4])
    rows = table._table.to_arrow()
    twice = rows.slice(0, 1)
    long = rows.slice(1, 1).set_column(
        rows.schema.names.index("vector"),
        rows.schema.field("vector"),
        table._arrow.FixedSizeListArray.from_arrays(table._arrow.array(np.ones(8, "f4")), 8),
    )
    table._table.add(table._arrow.concat_tables([twice, long]))
    table.keep_sums()
    found = sorted(verify_index(tmp_path / "index"))
    assert sum("'/0'" in line and "2 rows" in line for line in found) == 1
    assert sum("'/1'" in line and "length" in line for line in found) == 1
    assert all(line.startswith(str(tmp_path / "index" / "models.lance")) for line in found)


def test_what_a_killed_indexing_left_unlisted_is_not_read(copy, made, monkeypatch):
    """Its checksums are not known: a bit may flip before anybody lists them."""
    folder = copy("index")
    listed = {path for path in folder.rglob("*.lance") if path.is_file()}
    index = Index.open(folder)
    write_model(made / "more" / "new.safetensors", 9)

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "keep", kill)
        with pytest.raises(KeyboardInterrupt):
            index.add_models(find_models(made / "more"))
    (unlisted,) = {path for path in folder.rglob("*.lance") if path.is_file()} - listed
    flip(unlisted)
    assert not list(verify_index(folder))
    assert {hit.id for hit in Index.open(folder).near(np.ones(8), 9)} == {"m1", "m2", "m3", "m4"}
    again = Index.open(folder)
    assert again.add_models(find_models(made / "more")).added == 1
    assert not list(verify_index(folder))
    assert {hit.id for hit in Index.open(folder).near(np.ones(8), 9)} >= {"m1", "m4", "more"}


def test_a_table_is_read_at_the_version_that_is_listed(tmp_path):
    table = ModelTable(tmp_path, 4, create=True)
    table.add([{"path": "/a"}], np.eye(4)[:1])
    ahead = ModelTable(tmp_path, 4)
    ahead.keep_sums = lambda: None
    ahead.add([{"path": "/b"}], np.eye(4)[1:2])
    assert len(ModelTable(tmp_path, 4, checked=True)) == 1


@pytest.mark.parity
def test_the_command_tells_the_kinds_and_the_result(made, copy):
    whole = warm.run("verify", *(made / kind for kind in VERIFY), made / "trained" / "expert")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.count("whole") == 5
    damaged = copy("store")
    flip(damaged / LAYER / "c" / "0" / "0" / "0")
    remove(damaged / "vectors" / "0" / "zarr.json")
    done = warm.run("verify", made / "index", damaged, made / "models", made / "none")
    assert done.returncode == 1
    assert [str(made / name) in done.stderr for name in ("models", "none")] == [True, True]
    assert done.stderr.count("\n") == 2
    lines = done.stdout.splitlines()
    assert sum(line.startswith(str(damaged)) for line in lines) == 2
    assert sum("| damaged" in line for line in lines) == 1
    together = warm.run("verify", made)  # all that is in a folder
    assert (together.returncode, together.stderr) == (0, "")
    assert together.stdout.count("| whole") == len(VERIFY)
    nothing = warm.run("verify", made / "none", made / "index")
    assert nothing.returncode == 2
    assert warm.run("verify").returncode == 2


def test_a_store_is_verified_while_it_is_packed(tmp_path):
    zoo = write_toy_zoo(tmp_path / "Toy", 70)
    writer = warm.start("tests.writer", "pack_a_block", True, zoo, tmp_path / "store")
    assert writer.wait() is None  # it has stopped after a block
    read = []
    assert not list(verify_store(tmp_path / "store", on_total=read.append))
    writer.send(signal.SIGCONT)
    assert writer.wait().returncode == 0
    assert not list(verify_store(tmp_path / "store", on_total=read.append))
    assert 0 < read[0] < read[1]


def test_a_store_without_models_is_not_called_whole(copy):
    folder = copy("store")
    remove(folder / "models.jsonl")
    with pytest.raises(px.ProbexError, match="store"):
        list(verify_store(folder))


@pytest.mark.parametrize("kind", VERIFY)
def test_progress_adds_up_to_the_total(made, kind):
    totals, read = [], []
    assert not list(VERIFY[kind](made / kind, on_total=totals.append, on_bytes=read.append))
    assert totals == [sum(read)]
    assert sum(read) > 0


@pytest.mark.parametrize("kind", VERIFY)
def test_a_folder_in_a_bucket(made, copy, bucket, kind):
    assert not list(VERIFY[kind](s3.put(made / kind, f"{bucket}/{kind}")))
    folder = copy(kind)
    name = {"store": f"{LAYER}/c/0/0/0", "forest": "trees/Toy/arrays.safetensors"}.get(kind)
    flip(folder / (name or "expert/state/manifest.ocdbt"))
    (line,) = VERIFY[kind](s3.put(folder, f"{bucket}/damaged-{kind}"))
    assert line.startswith(f"{bucket}/damaged-{kind}/")


@pytest.mark.parity
@pytest.mark.parametrize("kind", VERIFY)
def test_a_flipped_bit_anywhere_is_found(copy, kind):
    folder, rng = copy(kind), random.Random(kind)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name == "latest_version_hint.json":  # of Lance, which looks itself
            continue
        kept = path.read_bytes()
        for _ in range(20 if kept else 0):
            bit = rng.randrange(8 * len(kept))
            flip(path, bit)
            found = list(VERIFY[kind](folder))
            assert found, (path, bit)
            path.write_bytes(kept)
