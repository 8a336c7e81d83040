"""An index of models that lie in a bucket."""

import pytest

from probex_jax.buckets import delete, stores, write
from probex_jax.search import Index, find_models
from tests import s3
from tests.engine.work import Pickling
from tests.hub import IMPATIENT
from tests.search.conftest import write_model

AT = f"s3://{s3.BUCKET}/indexed"


@pytest.fixture
def at(models, monkeypatch):
    """The five models in a bucket."""
    monkeypatch.setattr(stores, "PATIENCE", IMPATIENT)
    with s3.serving():
        for path in models.iterdir():
            write(f"{AT}/{path.name}", path.read_bytes())
        yield AT


def counts(done):
    return done.added, done.updated, done.unchanged, len(done.failed)


def test_is_as_that_of_a_folder(at, models, tmp_path, expert):
    there = Index.create_or_open(tmp_path / "there", expert)
    local = Index.create_or_open(tmp_path / "local", expert)
    assert counts(there.add_models(find_models(at))) == (5, 0, 0, 0)
    local.add_models(find_models(models))
    found = there.search(like=f"{at}/m2.safetensors", k=5)
    expected = local.search(like=models / "m2.safetensors", k=5)
    assert [(hit.id, hit.similarity) for hit in found] == [(h.id, h.similarity) for h in expected]
    assert len(found) == 4  # never itself
    assert {hit.path for hit in found} == {f"{at}/m{n}.safetensors" for n in (0, 1, 3, 4)}


def test_knows_what_has_changed(at, tmp_path, expert):
    made = Index.create_or_open(tmp_path / "index", expert)
    made.add_models(find_models(at), engine=Pickling())
    assert counts(made.add_models(find_models(at))) == (0, 0, 5, 0)
    new = write_model(tmp_path / "new.safetensors", 9, ["bee"])
    write(f"{at}/m1.safetensors", new.read_bytes())
    assert counts(made.add_models(find_models(at))) == (0, 1, 4, 0)
    write(f"{at}/README.md", b"---")
    assert counts(made.add_models(find_models(at))) == (0, 5, 0, 0)
    delete(f"{at}/README.md")
    assert counts(made.add_models(find_models(at))) == (0, 5, 0, 0)
    delete(f"{at}/m4.safetensors")
    assert counts(made.add_models(find_models(at))) == (0, 0, 4, 0)
    assert made.prune() == 1
    assert len(made) == 4
