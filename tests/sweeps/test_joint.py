"""One expert for all attributes of a tree's models."""

import csv
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import Predictions, verify_experts
from probex_jax.experts.predictions import attribute_folder
from probex_jax.fitting import ClosedForm, Number, OneClass
from probex_jax.sweeps import attribute_views, sweep, sweep_attributes
from probex_jax.sweeps.joint import joint_store

pytestmark = pytest.mark.xdist_group("sweeps")

N = {"train": 60, "val": 12, "test": 24}
ROOT = np.random.default_rng(7).normal(size=(3, 6, 5))
SETTINGS = {"encoder": {"name": "dense", "standardise": True}, "normalise": "centre"}


def write_zoo(folder, change=lambda row: None, counts=N):
    """Models whose size tells a rate, whose direction a kind, and nothing the noise.

    Every third has no kind. `change` may change a row of the table.
    """
    rng, rows = np.random.default_rng(0), []
    for split, count in counts.items():
        for number in range(count):
            name = f"{split}{number}"
            rate, kind = float(np.exp(rng.uniform(-3, 1))), "ab"[rng.integers(2)]
            body = 10 * ROOT[0] + rate * (ROOT[1 + (kind == "a")] + 0.5 * rng.normal(size=(6, 5)))
            path = folder / "Mini" / split / name
            path.mkdir(parents=True, exist_ok=True)
            tensors = {
                "body.weight": body,
                "head.bias": 10 * ROOT[0][0] + rate * rng.normal(size=5),
            }
            save_file({n: t.astype("f4") for n, t in tensors.items()}, path / "model.safetensors")
            row = {"model": name, "rate": f"{rate:.4f}", "kind": kind if number % 3 else "",
                   "noise": f"{rng.normal():.4f}", "note": f"note {len(rows)}"}  # fmt: skip
            change(row)
            rows.append(row)
    with (folder / "Mini" / "labels.csv").open("w") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return px.pack(px.scan(folder / "Mini"), folder / "store").store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def swept(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swept")
    stores, left_out = attribute_views(store)
    return workdir, sweep_attributes(stores, workdir, recipe=ClosedForm(), **SETTINGS), left_out


def test_every_column_that_can_be_told_apart_is_an_attribute(store):
    stores, left_out = attribute_views(store)
    assert stores.keys() == {"rate", "kind", "noise"}
    assert left_out.keys() == {"note"}
    assert "note" in left_out["note"]
    assert len(stores["kind"].models) == 64
    assert len(stores["rate"].models) == 96


def test_what_the_weights_tell_is_told_and_nothing_else(swept):
    _, found, _ = swept
    assert found.attributes["rate"].value > 0.8
    assert found.attributes["kind"].value > 0.9
    told = {each.name: each.told for each in found.expert.card.attributes}
    assert told == {"rate": True, "kind": True, "noise": False}
    assert found.metrics["attributes"]["rate"]["task"]["log"] is True
    assert found.metrics["attributes"]["kind"]["n_models"] == {"test": 16, "train": 40, "val": 8}


def test_a_part_is_an_expert_of_its_own(swept, store):
    """Its logits are columns of the joint one's, and it can be saved."""
    workdir, found, _ = swept
    expert = px.Expert.load(workdir)
    assert expert == found.expert or expert.hash == found.expert.hash
    x = {layer: store.view("rate").matrices(layer, "test") for layer in expert.layers}
    whole = np.asarray(expert.logits(x))
    assert whole.shape == (24, 4)
    start = 0
    for each in expert.card.attributes:
        part, stop = expert.part(each.name), start + len(each.classes)
        np.testing.assert_allclose(part.logits(x), whole[:, start:stop], atol=1e-4)
        assert part.card.task == each.task
        assert part.card.conformal == each.conformal
        part.save(workdir / "parts" / each.name)
        again = px.Expert.load(workdir / "parts" / each.name)
        np.testing.assert_allclose(again.probabilities(x), part.probabilities(x), atol=1e-6)
        start = stop
    with pytest.raises(px.ProbexError, match="part"):
        expert.probabilities(x)
    with pytest.raises(px.ProbexError, match="colour"):
        expert.part("colour")


def test_what_was_trained_is_whole(swept, tmp_path):
    """Though several of its members read one layer."""
    workdir, found, _ = swept
    assert len(found.expert.card.members) > len(found.expert.layers)
    assert list(verify_experts(workdir)) == []
    shutil.copytree(workdir, tmp_path / "w")
    lost = attribute_folder(tmp_path / "w", "rate") / "predictions.safetensors"
    lost.unlink()
    [line] = verify_experts(tmp_path / "w")
    assert line.startswith(str(lost))


def test_predictions_of_the_test_models_are_kept_with_their_intervals(swept, store):
    workdir, found, _ = swept
    kept = Predictions.read(attribute_folder(workdir, "rate"))
    values = store.view("rate").values("test")
    np.testing.assert_allclose(kept.y, values)
    assert isinstance(kept.task, Number)
    assert kept.task.log
    low, high = kept.region.T
    covered = np.mean((low <= values) & (values <= high))
    assert covered == found.metrics["attributes"]["rate"]["test_coverage"]["value"]
    assert 0.6 < covered <= 1
    of_kind = Predictions.read(attribute_folder(workdir, "kind"))
    assert isinstance(of_kind.task, OneClass)
    assert len(of_kind.logits) == len(of_kind.y) == 16


def test_a_value_that_is_unknown_has_no_part_in_the_others(swept, tmp_path):
    """The rate is told alike, whichever kinds are known; a test model's values decide nothing."""
    _, found, _ = swept

    def fewer(row):
        if row["model"].startswith("test"):
            row |= {"rate": "0.5" if row["model"] == "test1" else "0.7", "noise": "0.25"}
        if row["model"] in ("train1", "train2", "val1"):
            row["kind"] = ""

    other = write_zoo(tmp_path, fewer)
    stores, _ = attribute_views(other)
    again = sweep_attributes(stores, tmp_path / "w", recipe=ClosedForm(), **SETTINGS)
    x = {layer: other.view("rate").matrices(layer, "test") for layer in again.expert.layers}
    one, two = (each.part("rate") for each in (found.expert, again.expert))
    np.testing.assert_allclose(one.logits(x), two.logits(x), atol=1e-3)
    assert one.card.conformal.score == pytest.approx(two.card.conformal.score, rel=1e-4)
    kind, of_fewer = (
        np.asarray(each.part("kind").logits(x)) for each in (found.expert, again.expert)
    )
    assert np.abs(kind - of_fewer).max() > 1e-3


def test_a_killed_training_goes_on_to_the_same_expert(swept, store, tmp_path):
    _, found, _ = swept
    stores, _ = attribute_views(store)

    def stop(layer, epochs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep_attributes(stores, tmp_path, recipe=ClosedForm(), on_progress=stop, **SETTINGS)
    again = sweep_attributes(stores, tmp_path, recipe=ClosedForm(), **SETTINGS)
    assert again.expert.hash == found.expert.hash
    with pytest.raises(px.ProbexError, match="another config"):
        sweep_attributes({"rate": stores["rate"]}, tmp_path, recipe=ClosedForm(), **SETTINGS)


def test_an_attribute_that_no_validation_model_has_is_trained_on(tmp_path):
    """In closed form these are no others; one that no test model has is left out."""

    def known(row):
        row["kind"] = "" if row["model"].startswith("val") else row["kind"]
        row["noise"] = "" if row["model"].startswith("test") else row["noise"]

    stores, left_out = attribute_views(write_zoo(tmp_path, known))
    assert stores.keys() == {"rate", "kind"}
    assert left_out.keys() == {"noise", "note"}
    found = sweep_attributes(stores, tmp_path / "w", recipe=ClosedForm(), **SETTINGS)
    assert found.attributes["kind"].value > 0.9
    assert found.metrics["attributes"]["kind"]["n_models"] == {"test": 16, "train": 40}


def test_the_store_of_several_attributes_is_pickled_by_its_views(store):
    stores, _ = attribute_views(store)
    whole = joint_store(stores)
    again = pickle.loads(pickle.dumps(whole))
    assert (again.hash, again.split("val")) == (whole.hash, whole.split("val"))
    assert len(whole.models) == 96


def test_one_attribute_alone_is_an_expert_as_any_other(store, tmp_path):
    """A number, which the sizes of layers tell; by gradient descent, too."""
    view = pickle.loads(pickle.dumps(store.view("rate")))
    settings = {**SETTINGS, "committee": None}
    found = sweep(view, tmp_path / "w", head="none", recipe=ClosedForm(), **settings)
    assert found.test.value > 0.8
    assert {member.encoder["name"] for member in found.expert.card.members} >= {"size", "dense"}
    by_adam = sweep(
        view, tmp_path / "adam", encoder={"name": "dense"}, head="none", normalise="centre",
        recipe=px.Adam(epochs=60, learning_rate=1e-2),
    )  # fmt: skip
    assert by_adam.expert.card.task.name == "number"
    assert by_adam.test.value > 0.55
    x = {layer: view.matrices(layer, "train") for layer in by_adam.expert.layers}
    assert abs(np.mean(by_adam.expert.logits(x))) < 0.3  # standardised
    assert by_adam.expert.card.conformal is not None


def test_models_of_held_out_classes_have_no_part_in_numbers(tmp_path):
    store = write_zoo(tmp_path, counts={"train": 20, "test": 10, "test_holdout": 5})
    found = sweep(store.view("rate"), tmp_path / "w", head="none", recipe=ClosedForm(), **SETTINGS)
    kept = Predictions.read(tmp_path / "w")
    assert found.test.n_models == len(kept.y) == len(kept.ids) == len(kept.vectors) == 10


def test_an_attribute_may_be_called_as_no_folder_can_be(tmp_path):
    def renamed(row):
        row["学" * 30], row[".."] = row["kind"], row.pop("rate")
        del row["kind"]

    stores, _ = attribute_views(write_zoo(tmp_path, renamed, {"train": 20, "test": 10}))
    found = sweep_attributes(stores, tmp_path / "w", recipe=ClosedForm(), **SETTINGS)
    folders = {attribute_folder(tmp_path / "w", name) for name in found.attributes}
    assert len(folders) == 3
    assert all(Predictions.read(folder) is not None for folder in folders)
    assert {folder.parent for folder in folders} == {tmp_path / "w" / "attributes"}


def test_large_layers_are_read_by_probes_that_all_attributes_share(tmp_path):
    """Chosen by all targets; a value that a model lacks says nothing."""
    rng, rows = np.random.default_rng(0), ["model,rate,kind"]
    u, v = rng.normal(size=(2, 60)), rng.normal(size=(2, 50))
    for split, count in {"train": 160, "val": 20, "test": 40}.items():
        for number in range(count):
            name, rate, kind = f"{split}{number}", rng.normal(), int(rng.integers(2))
            body = np.outer(u[0], v[0]) * rate + (2 * kind - 1) * np.outer(u[1], v[1])
            body = body + 10 * rng.normal(size=(60, 50))
            path = tmp_path / "Large" / split / name
            path.mkdir(parents=True)
            save_file({"body.weight": body.astype("f4")}, path / "model.safetensors")
            rows.append(f"{name},{rate:.3f},{'' if number % 4 == 0 else 'ab'[kind]}")
    (tmp_path / "Large" / "labels.csv").write_text("\n".join(rows))
    store = px.pack(px.scan(tmp_path / "Large"), tmp_path / "store").store
    encoder = {
        "name": "probex",
        "n_probes": 16,
        "proj_dim": 16,
        "relu": False,
        "standardise": False,
    }
    found = sweep_attributes(
        attribute_views(store)[0],
        tmp_path / "w",
        encoder=encoder,
        normalise="centre",
        recipe=ClosedForm(),
    )
    assert {m.encoder["name"] for m in found.expert.card.members} >= {"probex"}
    assert found.attributes["kind"].value > 0.8
    assert found.attributes["rate"].value > 0.5
