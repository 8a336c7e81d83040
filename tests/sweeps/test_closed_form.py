"""What a sweep fits in closed form, and what it refuses to."""

import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.fitting import Adam, ClosedForm, SeveralClasses, build_network, fit_closed_form
from probex_jax.fitting.centre import normalised, tree_of
from probex_jax.fitting.data import Split
from probex_jax.fitting.moments import moments
from probex_jax.matrices import dense
from probex_jax.sweeps import sweep
from tests.numeric import error
from tests.sweeps.test_sweeps import check_same_files, killed, same

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
    with pytest.raises(px.ProbexError, match=r"s: a: .*same"):
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


def fitted_to(store, layer):
    """Training and validation models, multiplied out, in float64, and their targets."""
    x = [np.asarray(dense(store.matrices(layer, s)), np.float64) for s in ("train", "val")]
    return np.concatenate(x), np.concatenate([store.targets(s) for s in ("train", "val")])


@pytest.mark.parametrize("which", ["dense", "factors"])
def test_one_layer_is_fitted_to_training_and_validation_models(
    which, toy_store, toy_lora_store, tmp_path
):
    """The same logits as of the network that is fitted here to what is centred here."""
    store, layer = (toy_store, "a.weight") if which == "dense" else (toy_lora_store, "a")
    encoder = {"name": "dense", "standardise": True}
    settings = {"encoder": encoder, "head": "none", "normalise": "centre", "layers": [layer]}
    settings["task"] = SeveralClasses()

    def run(recipe):
        told = []
        settings["on_progress"] = lambda *progress: told.append(progress)
        return sweep(store, tmp_path, recipe=recipe, **settings), told

    result, told = run(ClosedForm([0.1, 1.0]))
    assert told == [(layer, 1)]
    x, y = fitted_to(store, layer)
    tree = tree_of(moments([x]), "centre", factors=False)
    network = build_network(encoder, "none", len(store.classes))
    data = Split(np.asarray(normalised(x, tree), np.float32), y)
    fitted = fit_closed_form(network, SeveralClasses(), ClosedForm((0.1, 1.0)), data)
    tested = np.asarray(dense(store.matrices(layer, "test")))
    expected = network.apply({"params": fitted.params}, normalised(tested, tree))
    expert = px.Expert.load(tmp_path)
    found = expert.logits(store.matrices(layer, "test"))
    assert error(found, np.asarray(expected, np.float64)) <= 2e-3
    card = expert.card
    assert (card.selected_on, card.n_train) == ("cross-validation", len(y))
    assert card.figures["penalty"] == fitted.penalty
    assert card.figures["val_loss"] == pytest.approx(fitted.loss, rel=1e-3)
    assert card.figures["committee_accuracy"] == pytest.approx(np.mean((fitted.logits > 0) == y))
    assert card.temperature == pytest.approx(
        SeveralClasses().best_temperature(fitted.logits, y), rel=1e-2
    )
    assert result.metrics["recipe"] == card.members[0].recipe
    if which == "dense":
        assert result.test.value > 0.85
    # Found finished, with the settings as they are; other ones are another training.
    assert run(ClosedForm((0.1, 1)))[1] == told
    for other in (ClosedForm((0.1,)), Adam()):
        with pytest.raises(px.ProbexError, match=r"recipe\.penalties is \[0\.1, 1\.0\] there"):
            run(other)


SETTINGS = {"encoder": {"name": "dense"}, "head": "none", "recipe": ClosedForm((0.1, 1.0))}


@pytest.fixture(scope="module")
def together(toy_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    return workdir, sweep(toy_store, workdir, committee=None, normalise="centre", **SETTINGS)


def reference(store, expert):
    """Logits of the test models: one ridge regression on all that the members read, by NumPy."""
    known, asked = [], []
    y = fitted_to(store, "a.weight")[1]
    statistics = [m for m in expert.card.members if m.encoder["name"] == "statistics"]
    for member in expert.card.members:
        x = fitted_to(store, member.layer)[0].reshape(len(y), -1)
        of_test = np.asarray(store.matrices(member.layer, "test"), np.float64)
        of_test = of_test.reshape(len(of_test), -1)
        if member in statistics:
            x, of_test = (
                np.column_stack([z.mean(1), z.var(1), np.quantile(z, QUARTERS, axis=1).T])
                for z in (x, of_test)
            )
            mean, spread = x.mean(axis=0), x.std(axis=0)
            x, of_test = (x - mean) / spread, (of_test - mean) / spread
            unit = len(statistics) * 7 / len(statistics)
        else:
            x, of_test = x - x.mean(axis=0), of_test - x.mean(axis=0)
            unit = np.mean(np.sum(x**2, axis=1))
        known.append(x * (member.weight / unit) ** 0.5)
        asked.append(of_test * (member.weight / unit) ** 0.5)
    x, targets = np.concatenate(known, axis=1), 2 * y - 1
    unit = np.mean(np.sum(x**2, axis=1))
    normal = x.T @ x + expert.card.figures["penalty"] * unit * np.eye(x.shape[1])
    weight = np.linalg.solve(normal, x.T @ (targets - targets.mean(axis=0)))
    outputs = np.concatenate(asked, axis=1) @ weight + targets.mean(axis=0)
    return expert.card.figures["factor"] * outputs


QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def test_all_layers_and_their_statistics_are_one_regression(together, toy_store):
    _, result = together
    expert = result.expert
    assert sum(m.weight for m in expert.card.members) == pytest.approx(1)
    assert {m.encoder["name"] for m in expert.card.members} == {"dense", "statistics"}
    assert set(expert.layers) == set(toy_store.layers)
    found = expert.logits(toy_store.by_layer("test"))
    assert error(found, reference(toy_store, expert)) <= 1e-3
    # Representations are the members' outputs, whose weighted sum the logits are.
    vectors = np.asarray(expert.encode(toy_store.by_layer("test")))
    roots = np.array([m.weight**0.5 for m in expert.card.members])
    parts = vectors.reshape(len(found), len(roots), -1)
    np.testing.assert_allclose(np.einsum("nky,k->ny", parts, roots), found, rtol=1e-3, atol=1e-3)
    weights = {m.layer: m.weight for m in expert.card.members if m.encoder["name"] == "dense"}
    assert max(weights, key=weights.get) == "a.weight", "the layer that carries the classes"
    assert result.test.value > 0.85
    assert set(result.layers) == {*toy_store.layers, "statistics of all layers"}
    assert result.layers["a.weight"] > 0.85 > result.layers["b.weight"]


def test_the_choice_never_sees_the_test_split(together, toy_zoo, tmp_path):
    """Other test models: the same expert, to the bit."""
    shutil.copytree(toy_zoo, tmp_path / "Toy")
    for model in sorted((tmp_path / "Toy" / "test").iterdir())[:10]:
        shutil.rmtree(model)
    store = px.pack(px.scan(tmp_path / "Toy"), tmp_path / "s").store
    result = sweep(store, tmp_path / "w", committee=None, normalise="centre", **SETTINGS)
    same(result.expert, together[1].expert)
    assert result.test.n_models == 10


def test_a_killed_sweep_goes_on_to_the_same_bits(together, toy_store, tmp_path):
    """Killed when the kernel of the second layer was kept: the first two are not read again."""
    told = killed(toy_store, tmp_path, 2, committee=None, normalise="centre", **SETTINGS)
    assert len(told) == 2
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "training").rglob("*.npz")}
    assert len(kept) == 2

    def on_progress(layer, epochs):
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    settings = {**SETTINGS, "committee": None, "normalise": "centre"}
    sweep(toy_store, tmp_path, on_progress=on_progress, **settings)
    check_same_files(tmp_path, together[0])


def test_the_most_layers_and_parameters_are_respected(toy_store, tmp_path):
    alone = sweep(toy_store, tmp_path / "1", normalise="centre", **SETTINGS)
    assert list(alone.expert.layers) == ["a.weight"]
    settings = {**SETTINGS, "recipe": ClosedForm((0.1, 1.0), most_parameters=12 * 16 * 6 + 1)}
    small = sweep(toy_store, tmp_path / "2", normalise="centre", committee=2, **settings)
    assert list(small.expert.layers) == ["a.weight"]
    both = sweep(toy_store, tmp_path / "3", normalise="centre", committee=2, **SETTINGS)
    assert len(both.expert.layers) == 2


def test_validation_models_are_not_needed(toy_zoo, tmp_path):
    shutil.copytree(toy_zoo, tmp_path / "Toy", ignore=shutil.ignore_patterns("val"))
    store = px.pack(px.scan(tmp_path / "Toy"), tmp_path / "s").store
    result = sweep(store, tmp_path / "w", normalise="centre", **SETTINGS)
    assert result.expert.card.n_train == len(store.split("train"))
    assert result.test.value > 0.8


def test_statistics_of_factors_are_not_taken(toy_lora_store, tmp_path):
    settings = {**SETTINGS, "task": SeveralClasses()}
    result = sweep(toy_lora_store, tmp_path, committee=None, normalise="centre", **settings)
    assert {m.encoder["name"] for m in result.expert.card.members} == {"dense"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_model_too_large_to_be_answered_is_named(split, toy_zoo, tmp_path):
    shutil.copytree(toy_zoo, tmp_path / "Toy")
    path = sorted((tmp_path / "Toy" / split).iterdir())[1] / "model.safetensors"
    with safe_open(path, "numpy") as file:
        arrays, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**arrays, "a.weight": 1e30 * arrays["a.weight"]}, path, about)
    store = px.pack(px.scan(tmp_path / "Toy"), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match=path.parent.name):
        sweep(store, tmp_path / "w", committee=None, normalise="centre", **SETTINGS)


REDUCED = {
    **SETTINGS,
    "encoder": {"name": "probex", "n_probes": 16, "proj_dim": 16, "relu": False},
    "normalise": "centre",
    "committee": None,
}


@pytest.fixture(scope="module")
def large_store(tmp_path_factory):
    """Of few directions in a large layer, drowned in noise, and a small one."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(size, 3)))[0] for size in (60, 80))
    for split, count in {"train": 80, "val": 20, "test": 40}.items():
        for number in range(count):
            signs = 2.0 * (rng.random(3) < 0.5) - 1
            large = np.einsum("y,hy,wy->hw", signs, left, right) + 0.3 * rng.normal(size=(60, 80))
            weights = {"large.weight": large, "small.weight": rng.normal(size=(5, 4))}
            model = folder / "Large" / split / f"{split}{number:02}"
            model.mkdir(parents=True)
            labels = {
                "dataset_chosen_targets": str(
                    [x for x, s in zip("xyz", signs, strict=True) if s > 0]
                )
            }
            arrays = {name: value.astype(np.float32) for name, value in weights.items()}
            save_file(arrays, model / "model.safetensors", labels)
    return px.pack(px.scan(folder / "Large"), folder / "s").store


@pytest.fixture(scope="module")
def reduced(large_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reduced")
    return workdir, sweep(large_store, workdir, **REDUCED)


def test_large_layers_are_read_by_probes_and_small_ones_whole(reduced, large_store, tmp_path):
    """Members are networks that cards describe; one alone is what `fit` makes of its layer."""
    members = {(m.layer, m.card.encoder["name"]): m for m in reduced[1].expert.members}
    large = members["large.weight", "probex"]
    sizes = {"n_probes": 16, "proj_dim": 16, "relu": False}
    assert large.card.encoder == {**large.card.encoder, **sizes}
    assert ("small.weight", "dense") in members
    assert reduced[1].test.value > 0.85
    settings = {**REDUCED, "committee": 1, "layers": ["large.weight"]}
    [alone] = sweep(large_store, tmp_path, **settings).expert.members
    x, y = fitted_to(large_store, "large.weight")
    encoder = px.ProbeX(16, 16, y.shape[1], relu=False)
    fitted = px.fit(encoder, np.asarray(x, np.float32), y, recipe=REDUCED["recipe"])
    assert fitted.network.encoder == alone.network.encoder == encoder
    tested = large_store.matrices("large.weight", "test")
    assert error(alone.logits(tested), np.asarray(fitted.logits(tested), np.float64)) <= 1e-3


def test_layers_that_are_not_asked_for_do_not_matter(large_store, tmp_path):
    """Without a large layer all models choose, and with it those of some parts."""
    for layers, chosen_by in (["small.weight"], 100), ([*large_store.layers], 40):
        result = sweep(large_store, tmp_path / layers[0], layers=layers, **REDUCED)
        assert result.expert.card.figures["n_chosen_by"] == chosen_by


def test_what_is_kept_of_a_layer_is_small(reduced, large_store, tmp_path):
    """Less than its matrices by much, and nothing of them once the expert is there."""
    killed(large_store, tmp_path, 1, **REDUCED)
    [kept] = (tmp_path / "training").rglob("kernel.npz")
    assert kept.stat().st_size < 4 * 100 * 60 * 80 / 4
    assert not (reduced[0] / "training").exists()


def test_a_killed_sweep_of_probes_goes_on_to_the_same_bits(reduced, large_store, tmp_path):
    killed(large_store, tmp_path, 1, **REDUCED)
    [kept] = (tmp_path / "training").rglob("kernel.npz")
    killed(large_store, tmp_path, 2, **REDUCED)
    assert kept.exists()
    sweep(large_store, tmp_path, **REDUCED)
    check_same_files(tmp_path, reduced[0])


def test_layers_without_room_give_the_same_bits(reduced, large_store, tmp_path, monkeypatch):
    """Matrices are read again in each pass, where memory is short."""
    monkeypatch.setattr("probex_jax.sweeps.kernels.free_bytes", lambda: 0.0)
    sweep(large_store, tmp_path, **REDUCED)
    check_same_files(tmp_path, reduced[0])
