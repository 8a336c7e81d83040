"""Layers from the hub straight into a store: the same store as from whole files, from few bytes."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

import probex_jax as px
from probex_jax.buckets import stores
from probex_jax.layer_store import pack_from_hub, packing
from probex_jax.layer_store.shard_writer import LayerWriter
from probex_jax.model_files import Remote
from probex_jax.zoo import Zoo, ZooModel
from probex_jax.zoo.model_j_table import ListedModel, Table, read_table
from probex_jax.zoo.table_columns import write_columns
from tests import model_j
from tests.conftest import CLASSES, write_toy_model
from tests.hub import IMPATIENT, Faults, write_repo

LAYER, SHAPE = "encoder.layer.7.weight", (160, 160)
N_LARGE = 7


def write_large(folder, seed):
    """A sparse file of 16 MB: two layers of numbers among zeros, far from one another."""
    rng = np.random.default_rng(seed)
    layers = {"embeddings.weight": (4000, 512), "encoder.layer.3.weight": SHAPE}
    layers |= {"filler.weight": (4000, 512), LAYER: SHAPE}
    header, begins, end = (
        {"__metadata__": {"dataset_chosen_targets": str(model_j.labels_of(seed))}},
        {},
        0,
    )
    for name, shape in layers.items():
        begins[name], end = end, end + 4 * shape[0] * shape[1]
        offsets = [begins[name], end]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for name in ("encoder.layer.3.weight", LAYER):
            file.seek(8 + len(text) + begins[name])
            file.write(rng.normal(size=SHAPE).astype(np.float32).tobytes())


def large_id(number):
    return f"large/model_{number:02d}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = model_j.write_hub(tmp_path_factory.mktemp("hub"))
    for number in range(N_LARGE):
        card = "---\nbase_model: google/vit-base-patch16-224\n---\n"
        config = '{"model_type": "vit"}'
        files = {"config.json": config, "README.md": card, "model.safetensors": b""}
        write_large(write_repo(root, "models", large_id(number), files), number)
    with model_j.served(root, quick_hashes=True) as hub:
        yield hub


@pytest.fixture
def hub(shared, monkeypatch):
    """The hub of the module, as it was at first."""
    monkeypatch.setattr(stores, "PATIENCE", IMPATIENT)
    monkeypatch.setattr(packing, "_BLOCK_MODELS", 3)
    shared.behave()
    return shared


def large_table(n_models=N_LARGE):
    repos = [large_id(number) for number in range(n_models)]
    models = [
        ListedModel(model_j.folder_of(repo), "train" if n < 5 else "test", repo)
        for n, repo in enumerate(repos)
    ]
    return Table("SupViT", tuple(models), {})


def from_hub(table, out, layers, **options):
    return pack_from_hub(table, out, layers, options.pop("remote", Remote()), **options)


def from_files(hub, table, out, layers):
    """The store of the same models packed from whole files."""
    zoo = out / "zoo" / table.subset
    for model in table.models:
        original = hub.repositories.root / "models" / model.repo
        (zoo / model.split).mkdir(parents=True, exist_ok=True)
        if model.path:
            original = (original / model.path).parent
        (zoo / model.split / model.id).symlink_to(original)
    if table.texts:
        (zoo / "zoo.json").write_text(json.dumps({"texts": dict(table.texts)}))
    if table.columns:
        write_columns(zoo, table.columns, [model.id for model in table.models])
    return px.pack(px.scan(zoo), out / "from_files", layers).store


def content(store):
    """All that is in a store, but for where its models came from."""
    files = {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(Path(store).rglob("*"))
        if path.is_file()
    }
    lines = [json.loads(line) for line in files.pop("models.jsonl").splitlines()]
    return files, [{k: line[k] for k in line if k not in ("source", "crc32c")} for line in lines]


def check_same(ours, theirs):
    assert ours.hash == theirs.hash
    assert content(ours.path) == content(theirs.path)
    assert len(content(ours.path)[0]) > 2


@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize(
    ("subset", "layers"), [("SupViT", "a.weight"), ("SupViT", [0, "b.*"]), ("SD_200", "b,a")]
)
def test_the_store_is_the_one_of_whole_files(hub, tmp_path, subset, layers, faults):
    table = read_table(subset, (), Remote())
    hub.log.clear()
    if faults:
        hub.faults, hub.redirects = Faults(4, 0.1, 0.1, 0.1, 0.1), True
    total, seen = [], []
    summary = from_hub(table, tmp_path, layers, on_models=total.append, on_model=seen.append)
    assert (total, seen) == ([len(table.models)], [""] * len(table.models))
    assert (summary.added, summary.skipped) == (len(table.models), {})
    check_same(summary.store, from_files(hub, table, tmp_path, layers))
    assert {model.split for model in summary.store.models} == {m.split for m in table.models}
    assert all(model.source.startswith("hf://ProbeX/") for model in summary.store.models)
    if subset == "SupViT":
        assert {model.base for model in summary.store.models} == {"google/vit-base-patch16-224"}
    assert any(request.fault for request in hub.log) == faults


@pytest.mark.parametrize("faults", [False, True])
def test_one_layer_moves_less_than_two_percent(hub, tmp_path, faults):
    if faults:
        hub.faults = Faults(1, 0.1, 0.1, 0.1, 0.1)
    table, counts = large_table(), []
    summary = from_hub(table, tmp_path, LAYER, jobs=3, remote=Remote(on_bytes=counts.append))
    check_same(summary.store, from_files(hub, table, tmp_path, LAYER))
    root = hub.repositories.root / "models"
    whole = sum(path.stat().st_size for path in root.glob("large/*/*"))
    assert 4 * 160 * 160 * N_LARGE < sum(counts) < 0.02 * whole
    if not faults:
        assert hub.bytes_sent() < 0.02 * whole
        assert sum(counts) == hub.bytes_sent() - hub.bytes_sent("revision/main?blobs=true")
        again = [hub.served(f"{large_id(n)}/model.safetensors") for n in range(N_LARGE)]
        assert all(len(ranges) == 2 for ranges in again)


def test_nothing_is_kept_of_the_download_and_nothing_asked_for_again(hub, tmp_path):
    from_hub(large_table(), tmp_path, LAYER)
    before = content(tmp_path / "SupViT")
    assert not (tmp_path / "SupViT" / ".download").exists()
    hub.log.clear()
    totals = []
    summary = from_hub(large_table(), tmp_path, LAYER, on_models=totals.append)
    assert (summary.added, summary.skipped, hub.log, totals) == (0, {}, [], [0])
    assert content(tmp_path / "SupViT") == before
    assert not (tmp_path / "SupViT" / ".download").exists()


def test_ranges_are_kept_until_their_models_are_packed(hub, tmp_path):
    """As long as models are missing, and of those that are missing alone."""
    table, kept = large_table(), tmp_path / "SupViT" / ".download"
    private = table.models[1]
    hub.private = {private.repo}
    folders = []

    def look(_):
        folders.append({path.name for path in kept.iterdir() if path.is_dir()})

    summary = from_hub(table, tmp_path, LAYER, on_model=look)
    assert [*summary.skipped] == [private.id]
    assert "401" in summary.skipped[private.id]
    ids = [model.id for model in table.models if model != private]
    # Three models are a block, whose ranges are dropped when it is written; then it is told.
    assert folders == [{*ids[3:]}] * 4 + [set()] * 3
    assert not kept.exists()
    hub.private = set()
    hub.log.clear()
    assert from_hub(table, tmp_path, LAYER).added == 1
    assert {request.file.rpartition("/")[0] for request in hub.log if request.file} == {
        private.repo
    }
    assert not kept.exists()


def test_what_was_read_before_an_error_is_not_read_again(hub, tmp_path, monkeypatch):
    table, kept = large_table(), tmp_path / "SupViT" / ".download"

    def full(*_):
        raise px.ProbexError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LayerWriter, "finish", full)
        with pytest.raises(px.ProbexError, match="No space left"):
            from_hub(table, tmp_path, LAYER)
    # A kill may have cut the last line short.
    with (kept / "commits.jsonl").open("a") as file:
        file.write('["large/model_00", "0123')
    before = [(r.file, r.begin) for r in hub.log if r.begin is not None]
    commits = {model.repo: hub.commit_of(model.repo) for model in table.models}
    hub.log.clear()
    for model in table.models:
        hub.move(model.repo)
    summary = from_hub(table, tmp_path, LAYER)
    assert summary.added == N_LARGE
    # But for what was under way: the models after those of the first block.
    again = {(r.file, r.begin) for r in hub.log if r.begin is not None} & {*before}
    assert len({file for file, _ in again}) <= N_LARGE - 3
    assert all(begin for _, begin in again)
    # Each at the commit it was begun at.
    for model, listed in zip(summary.store.models, table.models, strict=True):
        assert model.source == f"hf://{listed.repo}@{commits[listed.repo]}"
    check_same(summary.store, from_files(hub, table, tmp_path, LAYER))


def test_a_damaged_range_is_read_again(hub, tmp_path, monkeypatch):
    table, kept = large_table(3), tmp_path / "SupViT" / ".download"
    with monkeypatch.context() as patch:
        patch.setattr(LayerWriter, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            from_hub(table, tmp_path, LAYER)
    ranges = [path for path in kept.rglob("*-*") if path.is_file()]
    assert len(ranges) >= 6
    for path in ranges:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    check_same(from_hub(table, tmp_path, LAYER).store, from_files(hub, table, tmp_path, LAYER))


def test_models_without_the_layer_or_without_labels_are_skipped_with_the_reason(hub, tmp_path):
    listed = read_table("SupViT", ("train",), Remote()).models
    models = []
    for number, name in enumerate(["other", "unlabelled", "broken", "gone"]):
        repo = f"odd/{name}"
        models.append(ListedModel(model_j.folder_of(repo), "train", repo))
        folder = write_repo(hub.repositories.root, "models", repo, {"config.json": "{}"})
        write_toy_model(folder, CLASSES[:1], np.random.default_rng(number))
    root = hub.repositories.root / "models" / "odd"
    write_large(root / "other", 0)
    shutil.copy(root / "gone" / "model.safetensors", root / "unlabelled")
    data = (root / "unlabelled" / "model.safetensors").read_bytes()
    (root / "unlabelled" / "model.safetensors").write_bytes(
        data.replace(b"dataset_chosen_targets", b"dataset_chosen_t_rgets")
    )
    (root / "broken" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    shutil.rmtree(root / "gone")
    seen = []
    summary = from_hub(
        Table("SupViT", (*models, *listed), {}), tmp_path, "a.weight", on_model=seen.append
    )
    assert [*summary.skipped] == [model.id for model in models]
    other, unlabelled, broken, gone = summary.skipped.values()
    assert other.startswith(f"hf://odd/other@{hub.commit_of('odd/other')}: layer a.weight: missing")
    assert "no label" in unlabelled
    assert broken.startswith("hf://odd/broken@")
    assert "404" in gone
    assert seen[:4] == [f"{id}: {reason}" for id, reason in summary.skipped.items()]
    assert seen[4:] == [""] * len(listed)
    assert all(len(reason.splitlines()) == 1 for reason in summary.skipped.values())
    assert not (tmp_path / "SupViT" / ".download").exists()


def test_models_that_the_table_lists_later_are_appended(hub, tmp_path):
    first = from_hub(large_table(4), tmp_path, LAYER).store
    hub.log.clear()
    summary = from_hub(large_table(), tmp_path, LAYER)
    assert (summary.added, [m.id for m in summary.store.models[:4]]) == (
        3,
        [model.id for model in first.models],
    )
    asked = {request.file.rpartition("/")[0] for request in hub.log if request.file}
    assert asked == {large_id(number) for number in (4, 5, 6)}
    assert not (tmp_path / "SupViT" / ".download").exists()


def test_other_layers_or_whole_models_there_are_refused(hub, tmp_path):
    from_hub(large_table(3), tmp_path, LAYER)
    before = content(tmp_path / "SupViT")
    # The number of the layer in a model is not its number in the store.
    for asked in ("encoder.layer.3.weight", "encoder.*", 0):
        with pytest.raises(
            px.ProbexError, match=r"SupViT: already holds 1 layers, .*, not the ones"
        ):
            from_hub(large_table(3), tmp_path, asked)
    assert from_hub(large_table(3), tmp_path, [LAYER]).added == 0
    assert content(tmp_path / "SupViT") == before
    (tmp_path / "whole" / "SupViT" / "train").mkdir(parents=True)
    hub.log.clear()
    with pytest.raises(px.ProbexError, match=r"SupViT: holds whole models; choose another --out"):
        from_hub(large_table(3), tmp_path / "whole", LAYER)
    assert os.listdir(tmp_path / "whole" / "SupViT") == ["train"]
    assert hub.log == []


def test_by_number_the_same_call_goes_on(hub, tmp_path):
    for n_models in (3, 3, 5):
        store = from_hub(large_table(n_models), tmp_path, "2").store
        assert [*store.layers] == [LAYER]
        assert len(store.models) == n_models
        assert store.selection == ["2"]


def test_a_first_run_that_finds_no_such_layer_leaves_nothing_in_the_way(hub, tmp_path):
    with pytest.raises(px.ProbexError, match=r"no layer 'nothing'"):
        from_hub(large_table(2), tmp_path, "nothing")
    hub.log.clear()
    assert from_hub(large_table(2), tmp_path, LAYER).added == 2
    assert not [request for request in hub.log if request.begin == 0]


def test_words_for_classes_are_those_of_the_zoo(hub, tmp_path):
    table = Table("SupViT", large_table(3).models, {CLASSES[0]: "an ant", "n01": "nothing"})
    store = from_hub(table, tmp_path, LAYER).store
    assert store.texts == {CLASSES[0]: "an ant"}
    check_same(store, from_files(hub, table, tmp_path, LAYER))


WORK = """
from probex_jax.layer_store import pack_from_hub, packing
from probex_jax.model_files import Remote
from probex_jax.zoo.model_j_table import ListedModel, Table

packing._BLOCK_MODELS = 4
MODELS = [ListedModel(f"m{n:02d}", "train", "large/all", f"train/m{n:02d}/x.safetensors")
          for n in range(10)]
MODELS += [ListedModel(f"k{n:02d}", "train", f"large/killed{n}") for n in range(10)]


def work(on_bytes):
    pack_from_hub(Table("SupViT", tuple(MODELS), {}), OUT, LAYER, Remote(on_bytes=on_bytes), jobs=2)
"""


@pytest.mark.parity
def test_kill_9_at_ten_random_moments(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_BLOCK_MODELS", 4)
    root = hub.repositories.root
    folders = [write_repo(root, "models", f"large/killed{n}", {}) for n in range(10)]
    for n in range(10):
        folders.append(root / "models" / "large" / "all" / "train" / f"m{n:02d}")
        folders[-1].mkdir(parents=True)
    for n, folder in enumerate(folders):
        write_large(folder, 100 + n)
        if n >= 10:
            (folder / "model.safetensors").rename(folder / "x.safetensors")
    work = WORK.replace("LAYER", repr(LAYER))
    kills = model_j.killed(hub, work, tmp_path, pieces=6, seed=1)
    assert kills[0] > 0
    scope = {}
    exec(work.partition("def work")[0], scope)
    table = Table("SupViT", tuple(scope["MODELS"]), {})
    summary = from_hub(table, tmp_path, LAYER)
    assert (summary.skipped, len(summary.store.models)) == ({}, 20)
    assert summary.added > 0
    model_j.check_read_once(hub, kills, jobs=2)
    at_once = from_hub(table, tmp_path / "at once", LAYER).store
    check_same(summary.store, at_once)
    assert content(summary.store.path) == content(at_once.path)
    assert not (tmp_path / "SupViT" / ".download").exists()


def test_a_model_is_packed_at_the_commit_of_its_header(hub, tmp_path, monkeypatch):
    """Whatever was pushed in between, and though nobody named a commit."""
    folder = write_repo(hub.repositories.root, "models", "moves/model", {"config.json": "{}"})
    write_toy_model(folder, CLASSES[:1], np.random.default_rng(0))
    first, create = hub.commit_of("moves/model"), packing._create
    with px.open_model(folder) as file:
        expected = file.matrix("a.weight")

    def create_after_a_push(*arguments):
        pushed = tmp_path / "pushed"
        write_toy_model(pushed, CLASSES[:1], np.random.default_rng(1))
        hub.move("moves/model", pushed)
        return create(*arguments)

    monkeypatch.setattr(packing, "_create", create_after_a_push)
    zoo = Zoo("T", (ZooModel("m", "train", Path("hf://moves/model")),), None)
    store = px.pack(zoo, tmp_path / "store", "a.weight").store
    assert hub.commit_of("moves/model") != first
    assert store.models[0].source == f"hf://moves/model@{first}"
    np.testing.assert_array_equal(store.matrices("a.weight", "train")[0], expected)


@pytest.mark.parametrize("slow", ["resolve", "revision"])
def test_an_interrupt_is_heard_while_a_server_is_slow(hub, tmp_path, slow):
    """Of weights, and of the lists of files."""
    repo = large_id(0)
    path = f"{repo}/model.safetensors" if slow == "resolve" else f"/api/models/{repo}/revision/main"
    hub.misbehave[path] = "slow"
    with model_j.interrupted_once(lambda: any(request.fault for request in [*hub.log])):
        from_hub(large_table(1), tmp_path, LAYER)
