"""What the chosen expert answers for the test models, kept beside its metrics."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import Predictions
from probex_jax.fitting import OneClass, SeveralClasses
from tests.experts.toys import make_expert

NAME = "predictions.safetensors"


def made(store):
    expert = make_expert("a.weight", store.layers["a.weight"], classes=list(store.classes))
    answers = expert.logits(store.matrices("a.weight", "test")), store.targets("test")
    return expert, Predictions.of(store, store.classes, SeveralClasses(), answers, expert)


def test_answers_are_kept(toy_store, tmp_path):
    expert, found = made(toy_store)
    assert Predictions.read(tmp_path) is None
    found.write(tmp_path)
    kept, models = Predictions.read(tmp_path), toy_store.split("test")
    x, y = toy_store.matrices("a.weight", "test"), toy_store.targets("test")
    np.testing.assert_allclose(kept.logits, expert.logits(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kept.vectors, expert.encode(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(kept.y, y)
    assert (kept.classes, kept.task) == (tuple(toy_store.classes), SeveralClasses())
    assert kept.ids == tuple(model.id for model in models)
    assert kept.labels == tuple(tuple(model.labels) for model in models)
    usual = np.mean(toy_store.targets("train"), axis=0) > 0.5
    np.testing.assert_allclose(kept.chance_by_class, np.mean(y == usual, axis=0))
    assert kept.chance == pytest.approx(np.mean(y == usual))


@pytest.mark.parametrize("task", [SeveralClasses(), OneClass()])
def test_answers_of_an_earlier_version_are_read(toy_store, tmp_path, task):
    """Under another name, without the task and a checksum."""
    made(toy_store)[1].write(tmp_path)
    with safe_open(tmp_path / NAME, "np") as file:
        arrays = {name: file.get_tensor(name) for name in ("logits", "vectors", "y")}
        about = json.loads(file.metadata()["about"])
    del about["task"], about["crc32c"]
    if task.exclusive:
        arrays["y"] = arrays["y"].argmax(axis=1)
    (tmp_path / NAME).unlink()
    save_file(arrays, tmp_path / "answered.safetensors", {"about": json.dumps(about)})
    assert Predictions.read(tmp_path).task == task


def test_what_is_damaged_is_named(toy_store, tmp_path):
    made(toy_store)[1].write(tmp_path)
    whole = (tmp_path / NAME).read_bytes()
    for data in (
        b"",
        whole[:-8],
        whole.replace(b"logits", b"logitz"),
        whole.replace(b"several_classes", b"several_glasses"),
    ):
        (tmp_path / NAME).write_bytes(data)
        with pytest.raises(px.ProbexError, match=NAME):
            Predictions.read(tmp_path)


def test_arrays_are_kept_however_they_lie_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    logits, vectors = (np.asfortranarray(rng.normal(size=(4, n)).astype("f4")) for n in (2, 3))
    made = Predictions(("a", "b"), tuple("wxyz"), ((),) * 4, logits, np.arange(4), vectors, 0.5)
    made.write(tmp_path)
    kept = Predictions.read(tmp_path)
    np.testing.assert_array_equal(kept.logits, logits)
    np.testing.assert_array_equal(kept.vectors, vectors)
