import json

import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import Answered, Ridge, sweep
from probex_jax.experts.evaluation import Answers, answers, score

RIDGE = {
    "encoder": {"name": "dense", "standardise": True},
    "head": "none",
    "recipe": Ridge((0.1, 10.0)),
    "normalise": "centre",
}


@pytest.fixture(scope="module")
def trained(toy_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("answered") / "w"
    return workdir, sweep(toy_store, workdir, **RIDGE)


def test_the_chosen_expert_s_answers_are_kept(toy_store, trained):
    workdir, result = trained
    kept, asked = Answered.read(workdir), answers(result.expert, toy_store, ("test",))["test"]
    models = toy_store.split("test")
    np.testing.assert_allclose(kept.logits, asked.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kept.y, asked.y)
    assert score(Answers(kept.logits, kept.y)) == result.test
    assert kept.several
    assert kept.classes == tuple(toy_store.classes)
    assert kept.ids == tuple(model.id for model in models)
    assert kept.labels == tuple(tuple(model.labels) for model in models)
    assert kept.vectors.shape == (len(models), result.expert.rep_dim)
    usual = np.mean(toy_store.targets("train"), axis=0) > 0.5
    assert kept.chance == pytest.approx(np.mean(asked.y == usual))


def test_a_second_sweep_asks_nobody(toy_store, trained, monkeypatch):
    workdir, _ = trained
    before = (workdir / "answered.safetensors").read_bytes()
    monkeypatch.setattr(px.Expert, "logits", None)
    sweep(toy_store, workdir, **RIDGE)
    assert (workdir / "answered.safetensors").read_bytes() == before


def test_what_is_not_there_and_what_is_damaged(tmp_path, trained):
    assert Answered.read(tmp_path) is None
    whole = (trained[0] / "answered.safetensors").read_bytes()
    for data in (b"", whole[:-8], whole.replace(b"logits", b"logitz")):
        (tmp_path / "answered.safetensors").write_bytes(data)
        with pytest.raises(px.ProbexError, match=r"answered\.safetensors: damaged"):
            Answered.read(tmp_path)


def test_metrics_come_last(toy_store, tmp_path, monkeypatch):
    def full(*args):
        raise px.ProbexError("no space left")

    monkeypatch.setattr(Answered, "write", full)
    with pytest.raises(px.ProbexError, match="no space left"):
        sweep(toy_store, tmp_path / "w", **RIDGE)
    monkeypatch.undo()
    assert not (tmp_path / "w" / "metrics.json").exists()
    sweep(toy_store, tmp_path / "w", **RIDGE)
    assert json.loads((tmp_path / "w" / "metrics.json").read_text())["test_accuracy"]
    assert Answered.read(tmp_path / "w") is not None
