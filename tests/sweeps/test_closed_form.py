"""What a sweep fits in closed form, and what it refuses to."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.fitting import Adam, ClosedForm, SeveralClasses, build_network, fit_closed_form
from probex_jax.fitting.centre import normalised, tree_of
from probex_jax.fitting.data import Split
from probex_jax.fitting.moments import moments
from probex_jax.matrices import dense
from probex_jax.sweeps import sweep
from tests.numeric import error

pytestmark = pytest.mark.xdist_group("sweeps")

SMALL = {"n_probes": 3, "proj_dim": 4}


def test_a_layer_that_cannot_be_fitted_is_named(tmp_path):
    for split in ("train", "val", "test"):
        for number in range(2):
            folder = tmp_path / "Zeros" / split / f"{split}{number}"
            folder.mkdir(parents=True)
            zeros = {"a": np.zeros((4, 3), np.float32)}
            labels = {"dataset_chosen_targets": f"['{'xy'[number]}']"}
            save_file(zeros, folder / "model.safetensors", labels)
    store = px.pack(px.scan(tmp_path / "Zeros"), tmp_path / "s").store
    settings = {"encoder": {"name": "dense"}, "head": "none", "recipe": ClosedForm()}
    with pytest.raises(px.ProbexError, match=r"s: a: .*zero"):
        sweep(store, tmp_path / "w", **settings)


@pytest.mark.parametrize(
    ("encoder", "head"),
    [
        ({"name": "probex", **SMALL, "rep_dim": 2}, "class"),
        ({"name": "mvprobe", **SMALL, "rep_dim": 6}, "none"),
        ({"name": "dense", "rep_dim": 8}, "class"),
    ],
)
def test_other_networks_are_refused(encoder, head, toy_store, tmp_path):
    with pytest.raises(px.ProbexError, match='"none"'):
        sweep(toy_store, tmp_path / "w", encoder=encoder, head=head, recipe=ClosedForm())
    assert not (tmp_path / "w").exists(), "a refused training must not claim its folder"


@pytest.mark.parametrize("which", ["dense", "factors"])
def test_a_sweep_keeps_what_was_fitted(which, toy_store, toy_lora_store, tmp_path):
    """Fitted here to what is centred dense: the same logits as of the expert that is loaded."""
    store, layer = (toy_store, "a.weight") if which == "dense" else (toy_lora_store, "a")
    encoder = {"name": "dense", "standardise": True}
    settings = {"encoder": encoder, "head": "none", "normalise": "centre", "layers": [layer]}

    def run(recipe):
        told = []
        settings["on_progress"] = lambda *progress: told.append(progress)
        return sweep(store, tmp_path, recipe=recipe, **settings), told

    result, told = run(ClosedForm([0.1, 1.0]))
    assert told == [(layer, 1)]
    x = {
        split: np.asarray(dense(store.matrices(layer, split))) for split in ("train", "val", "test")
    }
    tree = tree_of(moments([x["train"]]), "centre", factors=False)
    train, val = (
        Split(np.asarray(normalised(x[split], tree)), store.targets(split))
        for split in ("train", "val")
    )
    network = build_network(encoder, "none", len(store.classes))
    fitted = fit_closed_form(network, SeveralClasses(), ClosedForm((0.1, 1.0)), train, val)
    expected = network.apply({"params": fitted.params}, normalised(x["test"], tree))
    expert = px.Expert.load(tmp_path)
    found = expert.logits(store.matrices(layer, "test"))
    assert error(found, np.asarray(expected, np.float64)) <= 2e-3
    figures, (member,) = expert.card.figures, expert.card.members
    assert figures["penalty"] == fitted.penalty
    assert figures["val_loss"] == pytest.approx(fitted.loss, rel=1e-3)
    logits = np.asarray(expert.logits(store.matrices(layer, "val")))
    right = (logits > 0) == (store.targets("val") > 0.5)
    assert figures["val_accuracy"] == pytest.approx(right.mean())
    assert list(member.recipe["penalties"]) == [0.1, 1.0]
    assert json.loads((tmp_path / "metrics.json").read_text())["recipe"] == member.recipe
    if which == "dense":
        assert result.test.value > 0.85
    # Found finished, with the settings as they are; other ones are another training.
    assert run(ClosedForm((0.1, 1)))[1] == told
    for other in (ClosedForm((0.1,)), Adam()):
        with pytest.raises(px.ProbexError, match=r"recipe\.penalties is \[0\.1, 1\.0\] there"):
            run(other)
