"""The index: embedding folders of models, searching them, and what goes wrong."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import sleep

import jax
import lancedb
import numpy as np
import pyarrow
import pytest
from safetensors.numpy import save_file

from experiments import steps
from probex_jax import Expert, LowRank, ProbexError, open_model
from probex_jax.engine import HERE, flattened, in_parts
from probex_jax.experts import batching
from probex_jax.language import HashingEncoder
from probex_jax.search import Index, Snapshot, checksums, embedding, find_models, index, table
from probex_jax.search.identity import show
from tests.end_to_end.warm import run
from tests.search.conftest import LAYER, TEXT_DIM, make_expert, write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path, models, expert):
    """An index of the five models."""
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(models))
    return made


def contents(index, where=None):
    """Everything that stands in an index, by id."""
    hits = index.near(np.ones(8), 10_000, where)
    assert len({hit.path for hit in hits}) == len(hits)
    return {hit.id: hit for hit in hits}


def counts(done):
    return done.added, done.updated, done.unchanged, len(done.failed)


def test_what_is_written_beside_a_model_is_its_new_text(tmp_path, expert):
    alone = write_model(tmp_path / "models" / "alone" / "alone.safetensors", 1)
    among = write_model(tmp_path / "models" / "two" / "a.safetensors", 2)
    write_model(tmp_path / "models" / "two" / "b.safetensors", 3)
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(tmp_path / "models"))
    among.with_suffix(".json").write_text('{"activation text": "sks"}')
    (alone.parent / "README.md").write_text("---\ninstance_prompt: a cat\n---\n")
    assert counts(made.add_models(find_models(tmp_path / "models"))) == (0, 2, 1, 0)
    assert {id: hit.text for id, hit in contents(made).items()} == {
        "alone": "a cat",
        "two/a": "sks",
        "two/b": "",
    }
    assert counts(made.add_models(find_models(tmp_path / "models"))) == (0, 0, 3, 0)


def test_like_ranks_by_the_cosine_of_the_experts_representations(made, models, expert):
    x = np.stack([open_model(models / f"m{n}.safetensors").matrix(LAYER) for n in range(5)])
    e = np.asarray(expert.encode(x), float)
    cosines = e @ e[2] / np.linalg.norm(e, axis=1) / np.linalg.norm(e[2])
    hits = made.search(like=models / "m2.safetensors", k=3)
    expected = [f"m{n}" for n in np.argsort(-cosines) if n != 2][:3]  # never itself
    assert [hit.id for hit in hits] == expected
    np.testing.assert_allclose([h.similarity for h in hits], np.sort(cosines)[-2:-5:-1], atol=1e-6)
    copy = shutil.copy(models / "m2.safetensors", models.parent / "copy.safetensors")
    assert made.search(like=copy, k=1)[0].id == "m2"


def test_what_is_known_of_a_model_is_stored(made, models):
    hit = contents(made)["m2"]
    assert hit.path == str(models.resolve() / "m2.safetensors")
    assert (hit.labels, hit.text, hit.split, hit.tree) == (("ant", "bee"), "ant, bee", "", "")
    assert contents(made)["m3"].labels == ()  # nothing says what it was trained on


def test_a_zoos_tree_splits_labels_and_words_are_stored(tmp_path, expert):
    write_model(tmp_path / "Z" / "test" / "m" / "model.safetensors", 0, ["ant", "bee"])
    (tmp_path / "Z" / "labels.json").write_text('{"m": ["n1"]}')
    (tmp_path / "Z" / "zoo.json").write_text('{"tree": "Zed", "texts": {"n1": "a wren"}}')
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(tmp_path / "Z"))
    hit = contents(made)["m"]
    assert (hit.tree, hit.split, hit.labels, hit.text) == ("Zed", "test", ("n1",), "a wren")
    (tmp_path / "Z" / "labels.json").write_text('{"m": ["n2"]}')
    assert counts(made.add_models(find_models(tmp_path / "Z"))) == (0, 1, 0, 0)
    assert contents(made)["m"].text == "n2"


def test_without_labels_the_tags_of_the_images_are_stored(tmp_path, expert):
    said = {"ss_tag_frequency": json.dumps({"10_sks": {"cat": 9, "sofa": 8, "once": 1}})}
    save_file({LAYER: np.ones((6, 5), "f4")}, tmp_path / "m.safetensors", said)
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(tmp_path))
    assert contents(made)["m"].labels == ("cat", "sofa", "sks")


def test_adding_again_reads_nothing_and_changes_update(made, models, monkeypatch):
    reads = []
    real = embedding.open_model
    monkeypatch.setattr(
        embedding, "open_model", lambda path, **how: reads.append(path) or real(path)
    )
    before = contents(made)
    assert counts(made.add_models(find_models(models))) == (0, 0, 5, 0)
    assert not reads
    write_model(models / "m1.safetensors", 77, ["bee"])
    write_model(models / "m5.safetensors", 5, ["bee"])
    assert counts(made.add_models(find_models(models))) == (1, 1, 4, 0)
    after = contents(made)
    assert len(made) == len(after) == 6
    assert after["m1"].similarity != before["m1"].similarity
    assert after["m2"] == before["m2"]


def test_models_that_cannot_be_read_are_listed_and_the_rest_go_on(tmp_path, models, expert):
    (models / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    write_model(models / "other.safetensors", 1, layer="nope.weight")
    write_model(models / "wide.safetensors", 1, shape=(6, 9))
    (models / "pickled").mkdir()
    (models / "pickled" / "model.bin").touch()
    told = []
    made = Index.create_or_open(tmp_path / "index", expert)
    done = made.add_models(find_models(models), on_model=told.append)
    assert counts(done) == (5, 0, 0, 4)
    reasons = {"broken": "header", "other": LAYER, "wide": "(6, 9)", "pickled": "pickle"}
    assert done.failed.keys() == reasons.keys()
    assert all(part in done.failed[name] for name, part in reasons.items())
    assert len(told) == 9
    for name, reason in done.failed.items():
        [line] = [line for line in told if reason in line]
        assert line.count(name) == 1
    with pytest.raises(ProbexError, match=r"\(6, 9\), the expert reads \(6, 5\)"):
        made.search(like=models / "wide.safetensors")


def test_a_model_without_a_direction_fails(tmp_path, models):
    blind = make_expert()
    blind = Expert(jax.tree.map(np.zeros_like, blind.variables), blind.card)
    done = Index.create_or_open(tmp_path / "index", blind).add_models(find_models(models))
    assert counts(done) == (0, 0, 0, 5)
    assert "zero" in done.failed["m0"]


def test_hostile_names_and_labels(tmp_path, expert):
    names = ["it's", "'; drop table models; --", "new\nline", "b\\", "ü '€'"]
    folder = tmp_path / "a 'quoted' folder"
    for seed, name in enumerate(names):
        write_model(folder / name / "model.safetensors", seed, [name])
    made = Index.create_or_open(tmp_path / "index", expert)
    for expected in ((5, 0, 0, 0), (0, 0, 5, 0)):
        assert counts(made.add_models(find_models(folder))) == expected
    assert {hit.id: hit.labels for hit in contents(made).values()} == {n: (n,) for n in names}
    shutil.rmtree(folder / names[1])
    assert made.prune() == 1
    assert set(contents(made)) == set(names) - {names[1]}


def test_a_name_that_is_no_text_fails_alone(models, made):
    write_model(models / os.fsdecode(b"bad\xff.safetensors"), 9)
    done = made.add_models(find_models(models))
    assert counts(done) == (0, 0, 5, 1)
    assert "Unicode" in next(iter(done.failed.values()))


def test_a_folder_of_one_file_that_gets_a_second_is_there_once(tmp_path, expert):
    folder = tmp_path / "models" / "lora"
    first = write_model(folder / "pytorch_lora_weights.safetensors", 0)
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(tmp_path / "models"))
    write_model(folder / "second.safetensors", 1)
    assert counts(made.add_models(find_models(tmp_path / "models"))) == (1, 1, 0, 0)
    assert set(contents(made)) == {"lora/pytorch_lora_weights", "lora/second"}
    assert [hit.id for hit in made.search(like=first)] == ["lora/second"]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_lora_weights.safetensors"])
def test_like_leaves_the_model_out_however_it_is_given(tmp_path, expert, name):
    for seed in range(2):
        write_model(tmp_path / "Z" / "train" / f"m{seed}" / name, seed)
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(tmp_path / "Z"))
    assert counts(made.add_models(find_models(tmp_path / "Z" / "train"))) == (0, 0, 2, 0)
    folder = tmp_path / "Z" / "train" / "m0"
    for like in (folder, folder / name):
        assert [hit.id for hit in made.search(like=like)] == ["m1"]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_lora_weights.safetensors"])
def test_like_leaves_a_model_of_a_hub_cache_out(tmp_path, expert, name):
    for seed in range(2):
        hub = tmp_path / "models" / f"models--m{seed}"
        write_model(hub / "snapshots" / "0" / name, seed)
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text("0")
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(tmp_path / "models"))
    snapshot = hub / "snapshots" / "0"
    assert counts(made.add_models(find_models(snapshot))) == (0, 1, 0, 0)  # by another id
    for like in (hub, snapshot, snapshot / name):
        assert [hit.id for hit in made.search(like=like)] == ["models--m0"]


def test_prune_removes_what_is_gone_and_nothing_else(made, models):
    assert made.prune() == 0
    (models / "m0.safetensors").unlink()
    (models / "m4.safetensors").rename(models / "moved.safetensors")
    assert counts(made.add_models(find_models(models))) == (1, 0, 3, 0)
    assert made.prune() == 2
    assert set(contents(made)) == {"m1", "m2", "m3", "moved"}


def test_filters_reach_every_field(made, models):
    path = str(models.resolve() / "m1.safetensors")
    for where, ids in {
        "id = 'm0'": {"m0"},
        f"path = '{path}'": {"m1"},
        "tree = '' AND split = ''": {"m0", "m1", "m2", "m3", "m4"},
        "array_has(labels, 'bee')": {"m1", "m2"},
        "text LIKE '%ant%'": {"m0", "m2", "m4"},
        "id = 'none'": set(),
    }.items():
        assert set(contents(made, where)) == ids
    like = models / "m0.safetensors"
    assert {h.id for h in made.search(like=like, where="text LIKE '%ant%'")} == {"m2", "m4"}
    with pytest.raises(ProbexError, match=r"^filter 'labels ='"):
        made.search(like=like, where="labels =")


def test_factors_of_any_rank_are_embedded_as_their_product(tmp_path, expert, models, monkeypatch):
    rng = np.random.default_rng(0)
    factors = {
        f"m{n}": LowRank(*(rng.normal(size=s).astype("f4") for s in ((6, n), (n, 5))))
        for n in (1, 2, 3)
    }
    real = type(expert).read

    def weights(self, file):  # m1, m2 and m3 are LoRAs; m0 and m4 are dense
        made = factors.get(Path(file.path).stem)
        return {LAYER: made} if made else real(self, file)

    monkeypatch.setattr(type(expert), "read", weights)
    asked = embedding.each_asked(find_models(models), lambda paths: {}, at_a_time=9)
    work = partial(embedding.embedding, expert, 8, None)
    for one, (_, vector_T) in flattened(HERE.map(work, in_parts(asked, 8))):
        with open_model(one.model.path) as file:
            x = expert.read(file)[LAYER]
        dense = x.dense() if isinstance(x, LowRank) else x
        expected = np.asarray(expert.encode(dense[None]))[0]
        np.testing.assert_allclose(vector_T, expected / np.linalg.norm(expected), atol=1e-5)


def test_of_two_models_at_one_path_the_first_counts(tmp_path, expert, models):
    found = find_models(models)
    index = Index.create_or_open(tmp_path / "index", expert)
    twice = [*found, *(dataclasses.replace(model, id=f"{model.id}-2") for model in found)]
    for added in (5, 0):
        assert index.add_models(twice).added == added
        assert {row["id"] for row in index.everything()[0]} == {model.id for model in found}


def test_every_batch_has_one_shape(tmp_path, expert, models, monkeypatch):
    shapes = []
    real = type(expert).encode
    monkeypatch.setattr(
        type(expert), "encode", lambda self, x: shapes.append(x[LAYER].shape) or real(self, x)
    )
    monkeypatch.setattr(batching, "_MODELS", 2)
    monkeypatch.setattr(index, "_COMMIT_MODELS", 2)
    made = Index.create_or_open(tmp_path / "index", expert)
    assert counts(made.add_models(find_models(models))) == (5, 0, 0, 0)
    assert shapes == [(2, 6, 5)] * 3
    assert set(contents(made)) == {"m0", "m1", "m2", "m3", "m4"}


def test_the_longer_a_commit_takes_the_more_models_the_next_one_has(tmp_path, expert, monkeypatch):
    committed, add = [], table.ModelTable.add

    def slowly(self, rows, vectors):
        committed.append(len(rows))
        sleep(0.2 if len(committed) == 1 else 0)
        add(self, rows, vectors)

    for seed in range(40):
        write_model(tmp_path / "models" / f"m{seed}.safetensors", seed)
    monkeypatch.setattr(table.ModelTable, "add", slowly)
    monkeypatch.setattr(batching, "_MODELS", 2)
    monkeypatch.setattr(index, "_COMMIT_MODELS", 4)
    monkeypatch.setattr(index, "_MOST_COMMITTED", 16)
    made = Index.create_or_open(tmp_path / "index", expert)
    assert made.add_models(find_models(tmp_path / "models")).added == len(made) == 40
    assert committed[:2] == [4, 16]
    assert sum(committed) == 40


def test_an_expert_on_several_layers_is_said_to_read_so_many():
    about = {"tree": "Mini", "layer": "5 layers", "hash": "0" * 64}
    assert show(about) == "tree Mini, 5 layers (hash 000000000000)"


def test_another_expert_is_refused_and_both_are_named(made, tmp_path):
    with pytest.raises(ProbexError) as error:
        Index.create_or_open(made.path, make_expert(1, tree="Other"))
    first, second = re.findall(r"\(hash (\w{12})\)", str(error.value))
    assert first == made.about["expert"]["hash"][:12] != second
    assert f"tree Mini, layer {LAYER}" in str(error.value)
    assert f"tree Other, layer {LAYER}" in str(error.value)
    with pytest.raises(ProbexError, match=made.about["expert"]["hash"][:12]):
        Index.create_or_open(made.path, make_expert(1))
    assert len(Index.create_or_open(made.path, make_expert(0))) == 5


def test_a_swapped_expert_is_found_out(made, models):
    make_expert(1).save(made.path / "expert")
    with pytest.raises(ProbexError, match="index"):
        Index.open(made.path).search(like=models / "m0.safetensors")


def test_a_folder_of_other_things_is_left_alone(tmp_path, expert):
    (tmp_path / "expert").mkdir()
    (tmp_path / "metrics.json").touch()
    with pytest.raises(ProbexError, match=r"metrics\.json"):
        Index.create_or_open(tmp_path, expert)
    assert list((tmp_path / "expert").iterdir()) == []


@pytest.mark.parametrize("name", ["expert.new", "expert.new.orbax-checkpoint-tmp"])
def test_an_interrupted_beginning_is_begun_again(made, models, name):
    (made.path / "index.json").unlink()
    (made.path / "expert").rename(made.path / name)
    again = Index.create_or_open(made.path, make_expert(1))
    assert counts(again.add_models(find_models(models))) == (5, 0, 0, 0)
    assert len(again) == 5


def make_old(path, *, times=1):
    """Makes an index what the first version wrote, its rows so many times, the last ones marked."""
    database = lancedb.connect(path)
    rows = database.open_table("models").to_arrow()
    fields = [field.with_nullable(True).remove_metadata() for field in rows.schema]
    rows = rows.cast(pyarrow.schema(fields))
    database.drop_table("models")
    table = database.create_table("models", schema=rows.schema)
    for time in range(times):
        marked = pyarrow.array([f"row {time}"] * len(rows))
        table.add(rows.set_column(rows.schema.get_field_index("text"), "text", marked))
    about = json.loads((path / "index.json").read_text())
    about = {name: about[name] for name in ("format", "expert", "ann")} | {"version": 1}
    (path / "index.json").write_text(json.dumps(about))
    (path / "models.sums.json").unlink()


def check_healed(index, models, n_models):
    found = Index.open(index.path)
    assert len(found) == n_models
    assert {hit.text for hit in contents(found).values()} == {"row 1"}
    # The path is the key now: of two that add one at once the later one counts.
    pair = [table.ModelTable(index.path, 8) for _ in range(2)]
    for one in pair:
        one.add([{"path": "/new"}], np.ones([1, 8]))
    assert len(table.ModelTable(index.path, 8)) == n_models + 1
    damaged = next((index.path / "models.lance").rglob("*.manifest"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ProbexError, match=damaged.name):
        Index.open(index.path)


def test_a_doubled_index_of_an_earlier_version_heals(made, models, expert):
    make_old(made.path, times=2)
    old = Index.open(made.path)
    assert len(old.near(np.ones(8), 100)) == len(old) == 10
    again = Index.create_or_open(made.path, expert)
    assert counts(again.add_models(find_models(models))) == (0, 0, 5, 0)
    assert len(again) == 5
    assert len(old.near(np.ones(8), 100)) == 10, "who reads goes on with what was there"
    check_healed(made, models, 5)


def test_healing_is_done_whole_or_not_at_all(made, models, expert, monkeypatch):
    make_old(made.path, times=2)

    class Killed(BaseException):
        pass

    def kill(*arguments):
        raise Killed

    again = Index.create_or_open(made.path, expert)
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "keep", kill)
        with pytest.raises(Killed):
            again.add_models(find_models(models))
    assert len(Index.open(made.path)) == 5
    Index.create_or_open(made.path, expert).add_models(find_models(models))
    check_healed(made, models, 5)


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(made, models, expert):
    made.add_models(find_models(models)[:0])
    write_model(models / "m5.safetensors", 5, ["bee"])
    made.add_models(find_models(models))
    (models / "m0.safetensors").unlink()
    assert made.prune() == 1
    made.optimise()

    def state():
        snapshot = Snapshot(Index.open(made.path))
        return snapshot.models, snapshot.vectors_NT.tolist(), snapshot.index.near(np.ones(8), 9)

    expected, kinds = state(), set()
    for path in made.path.rglob("*"):
        if not path.is_file() or made.path / "expert" in path.parents:
            continue
        kinds.add(path.suffix)
        data = path.read_bytes()
        for place in sorted({*range(0, len(data), 1 + len(data) // 40), len(data) - 1}):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            with contextlib.suppress(ProbexError):
                assert state() == expected, (path, place)
        path.write_bytes(data)
    assert kinds >= {".lance", ".manifest", ".json", ".txn"}
    assert state() == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "no index here"),
        (lambda path: (path / "index.json").write_text("{"), "index.json"),
        (lambda path: (path / "index.json").write_text("[]"), "version None"),
        (lambda path: edit(path, version=3), "version 3"),
        (lambda path: edit(path, expert={}), "damaged"),
        (lambda path: edit(path, ann={"models": "x"}), "damaged"),
        (lambda path: shutil.rmtree(path / "models.lance"), "damaged"),
        (lambda path: shutil.rmtree(path / "expert"), "no such expert"),
    ],
)
def test_an_absent_or_damaged_index_is_said(made, models, damage, message):
    damage(made.path)
    with pytest.raises(ProbexError, match=message) as error:
        Index.open(made.path).search(like=models / "m0.safetensors")
    assert str(made.path) in str(error.value)


def edit(path, **fields):
    about = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(about | fields))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": " \n"}, "empty"),
        ({"query": "an ant"}, "aligned with text"),
        ({}, "query"),
        ({"query": "a", "like": "b"}, "query"),
        ({"like": "/nowhere"}, "/nowhere"),
        ({"like": "/nowhere", "k": 0}, "k is 0"),
        ({"like": "/nowhere", "k": 10**11}, "k is 100000000000"),
    ],
)
def test_a_search_for_nothing_is_said(made, arguments, message):
    with pytest.raises(ProbexError, match=message):
        made.search(**arguments)


def test_a_query_in_words_ranks_by_cosine_to_the_texts_place(tmp_path, models):
    expert = make_expert(head="text")
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(models))
    x = np.stack([open_model(models / f"m{n}.safetensors").matrix(LAYER) for n in range(5)])
    e = np.asarray(expert.encode(x), float)
    cosines = e @ np.asarray(expert.place(["an ant"]))[0] / np.linalg.norm(e, axis=1)
    hits = Index.open(made.path).search(query="an ant", k=4)
    assert [hit.id for hit in hits] == [f"m{n}" for n in np.argsort(-cosines)[:4]]
    np.testing.assert_allclose([h.similarity for h in hits], np.sort(cosines)[:0:-1], atol=1e-6)
    assert made.about["expert"]["text_encoder"] == f"hashing-v1-{TEXT_DIM}"
    with pytest.raises(ProbexError, match="128 dimensions"):
        made.search(query="an ant", encoder=HashingEncoder(128))


def test_from_a_threshold_on_an_ann_index_is_built_measured_and_kept(tmp_path, expert, monkeypatch):
    monkeypatch.setattr(index, "ANN_MODELS", 300)
    monkeypatch.setattr(table, "_RECALL_QUERIES", 20)
    rng = np.random.default_rng(0)
    made = Index.create_or_open(tmp_path / "index", expert)
    builds = []
    real = made._table.build_ann
    monkeypatch.setattr(made._table, "build_ann", lambda: builds.append(len(made)) or real())

    def add(first, last):
        rows = [{"id": f"m{n}", "path": f"/m{n}"} for n in range(first, last)]
        made._table.add(rows, rng.normal(size=(len(rows), 8)))

    add(0, 299)
    assert made.optimise() is None
    assert made.about["ann"] is None
    add(299, 500)
    recall = made.optimise()
    assert recall > 0.9
    assert Index.open(made.path).about["ann"] == {"models": 500, "recall_at_10": recall}
    add(500, 999)
    made.optimise()  # the 499 are taken in; built anew at twice the number
    add(999, 1000)
    assert made.optimise() > 0.9
    assert builds == [500, 1000]
    assert made.about["ann"]["models"] == 1000


@pytest.mark.parametrize("left", [0, 1, 2])
def test_an_index_that_has_shrunk_forgets_its_ann_index(made, models, monkeypatch, left):
    monkeypatch.setattr(index, "ANN_MODELS", 3)
    assert made.optimise() == 1
    assert made._table._table.list_indices()
    for n in range(left, 5):
        (models / f"m{n}.safetensors").unlink()
    assert made.prune() == 5 - left
    assert made.optimise() is None
    assert Index.open(made.path).about["ann"] is None
    assert not made._table._table.list_indices()
    assert set(contents(made)) == {f"m{n}" for n in range(left)}


def test_a_first_run_in_which_all_fails_leaves_nothing(tmp_path, expert, models):
    write_model(tmp_path / "others" / "x.safetensors", 1, layer="nope.weight")
    others = find_models(tmp_path / "others")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(ProbexError, match="no model could be indexed"):
            steps.index(expert, others, path)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []
    # One that was there stays.
    steps.index(expert, find_models(models), tmp_path / "index")
    shutil.rmtree(models)
    assert steps.index(expert, others, tmp_path / "index", prune=True)[1]["pruned"] == 5
    with pytest.raises(ProbexError, match="no model could be indexed"):
        steps.index(expert, others, tmp_path / "index")
    assert len(Index.open(tmp_path / "index")) == 0


def test_prune_of_an_emptied_folder(tmp_path, expert, models):
    expert.save(tmp_path / "expert")
    flags = [f"--experts={tmp_path}/expert", f"--models={models}", f"--index={tmp_path}/index"]
    assert run("index", *flags).returncode == 0
    for file in models.iterdir():
        file.unlink()
    assert "no models in it" in run("index", *flags).stderr
    assert "no models in it" in run("index", *flags[:2], f"--index={tmp_path}/no", "--prune").stderr
    for _ in range(2):
        assert run("index", *flags, "--prune").stderr == ""
        assert len(Index.open(tmp_path / "index")) == 0
    models.rmdir()
    assert "no such folder" in run("index", *flags, "--prune").stderr


def test_the_expert_that_was_best_on_held_out_classes_indexes(tmp_path, models):
    for seed, name in enumerate(("expert", "expert_val_holdout")):
        make_expert(seed).save(tmp_path / "w" / name)
    done = run("index", f"--experts={tmp_path}/w", f"--models={models}", f"--index={tmp_path}/i")
    assert done.returncode == 0, done.stderr
    assert Index.open(tmp_path / "i").about["expert"]["hash"] == make_expert(1).hash


@pytest.mark.parametrize("k", [0, 10**11])
def test_k_out_of_range_is_one_line(made, models, k):
    done = run("search", f"--index={made.path}", f"--like={models}/m0.safetensors", f"--k={k}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--k" in done.stderr


READER = """
import sys, time
import numpy as np
from probex_jax.search import ModelTable
seen, until = [-1], time.time() + 60
while time.time() < until:
    table = ModelTable(sys.argv[1], 8)
    n = len(table)
    rows = table.nearest(np.ones(8), 100_000)
    assert len(rows) == n == len({row["path"] for row in rows}), (n, len(rows))
    assert len({row["text"] for row in rows if row["path"].startswith("/same")}) <= 1
    assert n >= seen[-1]
    if n > seen[-1]:
        print(n, flush=True)
    seen.append(n)
    if n >= 310:
        break
    time.sleep(0.02)
"""

WRITER = """
import sys
from tests.search.conftest import make_expert
from probex_jax.experts import batching
from probex_jax.search import Index, find_models, index
batching._MODELS = index._COMMIT_MODELS = index._MOST_COMMITTED = 8
made = Index.create_or_open(sys.argv[2], make_expert())
made.add_models(find_models(sys.argv[1]), on_model=lambda reason: print("one", flush=True))
"""


def start(script, *arguments):
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parity
def test_several_processes_read_while_one_writes(made):
    rng = np.random.default_rng(0)
    readers = [start(READER, made.path) for _ in range(2)]
    try:
        for step in range(60):
            if step % 20 == 0:  # all have seen what is there so far
                for reader in readers:
                    while int(reader.stdout.readline()) < len(made):
                        pass
                made.optimise()
            # Five rows that all say the same are rewritten, five are new, with every commit.
            rows = [{"path": f"/same{n}", "text": str(step)} for n in range(5)]
            rows += [{"path": f"/{step}-{n}"} for n in range(5)]
            made._table.add(rows, rng.normal(size=(10, 8)))
        results = [reader.communicate(timeout=60)[0].split() for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
    assert [reader.returncode for reader in readers] == [0, 0]
    assert [result[-1] for result in results] == ["310", "310"]


def test_a_killed_run_leaves_a_whole_index_that_goes_on(tmp_path, expert):
    for seed in range(80):
        write_model(tmp_path / "models" / f"m{seed:03d}.safetensors", seed, ["ant"])
    writer = start(WRITER, tmp_path / "models", tmp_path / "index")
    for _ in range(40):
        assert writer.stdout.readline() == "one\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    again = Index.create_or_open(tmp_path / "index", expert)
    kept = len(again)
    assert 32 <= kept < 80
    done = again.add_models(find_models(tmp_path / "models"))
    assert counts(done) == (80 - kept, 0, kept, 0)
    whole = Index.create_or_open(tmp_path / "whole", expert)
    whole.add_models(find_models(tmp_path / "models"))
    assert contents(again) == contents(whole)
