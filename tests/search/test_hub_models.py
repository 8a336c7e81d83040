"""An index of models on the hub."""

from pathlib import Path

import pytest

from probex_jax.buckets import stores
from probex_jax.search import FoundModel, Index, find_models
from tests.hub import IMPATIENT, Hub, write_repo
from tests.search.conftest import write_model


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """The five models, each in a repository."""
    monkeypatch.setattr(stores, "PATIENCE", IMPATIENT)
    for path in models.iterdir():
        files = {"model.safetensors": path.read_bytes()}
        write_repo(tmp_path / "hub", "models", f"org/{path.stem}", files)
    hub = Hub(tmp_path / "hub")
    with hub.running() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


def listed(count):
    return [FoundModel(f"m{n}", "", Path(f"hf://org/m{n}")) for n in range(count)]


def counts(done):
    return done.added, done.updated, done.unchanged, len(done.failed)


def test_is_as_that_of_a_folder(hub, models, tmp_path, expert):
    there = Index.create_or_open(tmp_path / "there", expert)
    local = Index.create_or_open(tmp_path / "local", expert)
    assert counts(there.add_models(listed(6))) == (5, 0, 0, 1)
    local.add_models(find_models(models))
    found = there.search(like="hf://org/m2", k=5)
    expected = local.search(like=models / "m2.safetensors", k=5)
    assert [(hit.id, hit.text) for hit in found] == [(hit.id, hit.text) for hit in expected]
    assert {hit.path for hit in found} == {f"hf://org/m{n}" for n in (0, 1, 3, 4)}


def test_a_new_commit_is_read_and_an_old_one_is_not_read_again(hub, tmp_path, expert):
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(listed(5))
    read = hub.bytes_sent(".safetensors")
    assert counts(made.add_models(listed(5))) == (0, 0, 5, 0)
    assert hub.bytes_sent(".safetensors") == read
    new = write_model(tmp_path / "new" / "model.safetensors", 9, ["bee"]).parent
    hub.move("org/m1", new)
    assert counts(made.add_models(listed(5))) == (0, 1, 4, 0)
