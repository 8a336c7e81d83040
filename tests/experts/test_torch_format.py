"""Experts of the PyTorch implementations: the same answers, and nothing read or lost in silence."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import probex_jax as px
from probex_jax.experts import Alignment, build_network, committee, from_torch, to_torch
from probex_jax.language import HashingEncoder
from tests.end_to_end import warm
from tests.numeric import error

H, W, U, V, T, Y, D = 6, 5, 3, 4, 8, 2, 64
CLASSES = ["ant", "bee"]
ABOUT = {"layer": "a", "tree": "Mini", "classes": CLASSES}
TEXT = Alignment(HashingEncoder(D), f"hashing:{D}", "a {class}", logit_scale=7.0)
NAMES = ("probex", "mvprobe")
TREES = {"none": {}, "scale": {"normalise": "scale"}, "centre": {"normalise": "centre"}}
TREES["factors"] = {"normalise": "centre", "centre_rank": 2}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def theirs(name, head, rows=H, columns=W, seed=0):
    """A state dict as a PyTorch implementation has it."""
    if name == "probex":
        shapes = {"probes": (columns, U), "shared_probe_proj": (V, rows)}
        last = {"per_probe_encoders": (T, U * V)}
    else:
        shapes = {"probes_xu": (columns, U), "probes_xxtu": (rows, U)}
        shapes |= {"probes_xtu": (rows, U), "probes_xtxu": (columns, U)}
        shapes |= {"shared_probe_proj_row": (V, rows), "shared_probe_proj_row2": (V, rows)}
        shapes |= {"shared_probe_proj_col": (V, columns), "shared_probe_proj_col2": (V, columns)}
        last = {"concat_all4_encoder": (T, 4 * U * V)}
    last |= {"classification_head": (Y, T)} if head == "class" else {"regression_head": (T, D)}
    state = {f"{key}.weight": shape for key, shape in (shapes | last).items()}
    state |= {f"{key}.bias": shape[:1] for key, shape in last.items()}
    return {key: draw(100 * seed + n, *shape) for n, (key, shape) in enumerate(state.items())}


def reference(state, x, texts=None):
    """Representations and logits by the equations, in float64, one model and probe at a time."""
    p = {key: np.float64(value) for key, value in state.items()}
    tree = {key.removeprefix("probex_jax.tree."): p[key] for key in p if "tree" in key}
    if "centre_up" in tree:
        tree["centre"] = tree["centre_up"] @ tree["centre_down"]
    vectors = []
    for x_HW in np.float64(x):
        x_HW = (x_HW - tree.get("centre", 0.0)) / tree.get("scale", 1.0)
        if "probes.weight" in p:
            sides, last = [(x_HW @ p["probes.weight"], "shared_probe_proj")], "per_probe_encoders"
        else:
            last = "concat_all4_encoder"
            sides = [
                (x_HW @ p["probes_xu.weight"], "shared_probe_proj_row"),
                (x_HW @ x_HW.T @ p["probes_xxtu.weight"], "shared_probe_proj_row2"),
                (x_HW.T @ p["probes_xtu.weight"], "shared_probe_proj_col"),
                (x_HW.T @ x_HW @ p["probes_xtxu.weight"], "shared_probe_proj_col2"),
            ]
            sides = [((s - s.mean()) / (s.std(ddof=1) + 1e-8), name) for s, name in sides]
        features = [
            np.maximum(p[f"{name}.weight"] @ s[:, probe], 0)
            for s, name in sides
            for probe in range(U)
        ]
        vectors.append(p[f"{last}.weight"] @ np.concatenate(features) + p[f"{last}.bias"])
    e_NT = np.stack(vectors)
    if texts is None:
        head = "classification_head"
        return e_NT, e_NT @ p[f"{head}.weight"].T + p[f"{head}.bias"]
    placed = np.float64(texts) @ p["regression_head.weight"].T + p["regression_head.bias"]
    e_NT = e_NT / np.linalg.norm(e_NT, axis=1, keepdims=True)
    return e_NT, e_NT @ (placed / np.linalg.norm(placed, axis=1, keepdims=True)).T


def check_agrees(expert, state, x, read=None):
    """That an expert of logit scale 7, if any, answers as the reference does."""
    texts = draw(5, 4, D) if expert.card["head"] == "text" else None
    e_NT, logits_NY = reference(state, x if read is None else read, texts)
    assert error(expert.encode(x), e_NT) <= 1e-5
    assert error(expert.logits(x, texts), logits_NY * (1 if texts is None else 7)) <= 1e-5


def make_expert(name, head, layer="a", seed=0, shape=(H, W), layout=None, **tree):
    """An expert of ours with random weights."""
    encoder = {"name": name, "n_probes": U, "proj_dim": V, "rep_dim": T}
    network = build_network(encoder, head, Y, logit_scale=7.0, **tree)
    read = shape[::-1] if layout else shape
    texts = [jnp.ones([1, D])] if head == "text" else []
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.ones([1, *read]), *texts)
    seeds = iter(range(1000 * seed, 9999))
    variables = jax.tree.map(lambda leaf: draw(next(seeds), *leaf.shape), shapes)
    if tree:
        variables["tree"]["scale"] = np.float32(0.37)
    card = {
        "encoder": encoder,
        "head": head,
        "layer": layer,
        "shape": list(shape),
        "tree": "Mini",
        "classes": CLASSES,
        "store_hash": "0123",
        "calibration": {"temperature": 1.7, "after": {"val": 0.01}},
        "metrics": {"losses": [0.1, 1 / 3]},
        **tree,
    }
    if layout:
        card["layout"] = layout
    if head == "text":
        about = {"encoder": f"hashing:{D}", "name": f"hashing-v1-{D}", "dim": D}
        card["text"] = about | {"template": "a {class}", "logit_scale": 7.0, "texts": {}}
    return px.Expert(variables, card)


def same(first, second):
    assert first.hash == second.hash
    assert first.card == second.card
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("head", ["class", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_ours_is_theirs_and_ours_again(tmp_path, name, head, tree):
    path = tmp_path / "expert.safetensors"
    expert = make_expert(name, head, **TREES[tree])
    to_torch(expert, path)
    state, shapes = load_file(path), {key: v.shape for key, v in theirs(name, head).items()}
    assert {key: v.shape for key, v in state.items() if "tree" not in key} == shapes
    assert {v.dtype for v in state.values()} == {np.dtype("f4")}
    check_agrees(expert, state, draw(1, 4, H, W))
    same(from_torch(path), expert)


@pytest.mark.parametrize("head", ["class", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_theirs_is_ours_and_theirs_again(tmp_path, name, head):
    state = theirs(name, head)
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    text = {"text": TEXT, "texts": {"ant": "a small ant"}} if head == "text" else {}
    expert = from_torch(tmp_path / "theirs.safetensors", **ABOUT, **text)
    check_agrees(expert, state, draw(1, 4, H, W))
    assert expert.layers == {"a": (H, W)}
    if head == "text":
        assert expert.text_encoder().name == TEXT.encoder.name
        assert expert.text["texts"] == {"ant": "a small ant"}
    expert.save(tmp_path / "expert")
    to_torch(px.Expert.load(tmp_path / "expert"), tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, strict=True)


def test_equal_experts_are_equal_files(tmp_path):
    for name in ("one", "two"):
        to_torch(make_expert("probex", "class"), tmp_path / f"{name}.safetensors")
    one, two = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def without(*keys):
    return lambda state: [state.pop(key) for key in keys]


def put(key, value):
    return lambda state: state.update({key: value(state) if callable(value) else value})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("probex", without("shared_probe_proj.weight"), "missing .*'shared_probe_proj.weight'"),
        ("mvprobe", without("probes_xtxu.weight"), "missing .*'probes_xtxu.weight'"),
        ("probex", without("classification_head.bias"), "missing .*'classification_head.bias'"),
        ("probex", put("temperature", draw(0, 1)), "unexpected .*'temperature'"),
        ("probex", put("evil\n\x1b[31m", draw(0, 1)), r"unexpected .*'evil\\n\\x1b\[31m'"),
        ("probex", put("module.probes.weight", draw(0, W, U)), "unexpected .*'module.probes"),
        ("probex", without("probes.weight", "shared_probe_proj.weight"), "missing"),
        ("probex", put("probes_xu.weight", draw(0, W, U)), "one encoder, .*there is two"),
        ("probex", put("regression_head.bias", draw(0, T)), "one head, .*there is two"),
        (
            "probex",
            without("classification_head.weight", "classification_head.bias"),
            "one head, .*there is none",
        ),
        (
            "probex",
            put("per_probe_encoders.weight", lambda s: s["per_probe_encoders.weight"].T),
            r"per_probe_encoders.weight is \[12, 8\], expected \[T, UV\] = \[12, 12\]",
        ),
        (
            "probex",
            put("probes.weight", lambda s: s["probes.weight"].T),
            r"per_probe_encoders.weight is \[8, 12\], expected \[T, UV\] = \[8, 20\]",
        ),
        (
            "mvprobe",
            put("shared_probe_proj_col.weight", draw(0, V, H)),
            r"shared_probe_proj_col.weight is \[4, 6\], expected \[V, W\] = \[4, 5\]",
        ),
        ("mvprobe", put("probes_xxtu.weight", draw(0, W, U)), "probes_xxtu.weight is"),
        ("probex", put("probes.weight", draw(0, W, U, 1)), r"is \[5, 3, 1\], expected \[W, U\]"),
        ("probex", put("probes.weight", draw(0, 0, U)), r"probes.weight is \[0, 3\]"),
        ("probex", put("probes.weight", np.float16(draw(0, W, U))), "of F16, expected F32"),
        ("probex", put("probes.weight", np.float64(draw(0, W, U))), "of F64, expected F32"),
        ("probex", put("probes.weight", np.full((W, U), np.nan, "f4")), "NaN or"),
        ("probex", put("probex_jax.tree.centre", draw(0, H, W)), "missing .*tree.scale'"),
        ("probex", put("probex_jax.tree.mean", draw(0, H, W)), "unexpected .*tree.mean'"),
        ("probex", put("probex_jax.tree.scale", np.float32(-1)), "tree.scale is -1.0, expected"),
        ("probex", put("probex_jax.tree.scale", draw(0, 1)), r"tree.scale is \[1\], expected \[\]"),
    ],
)
def test_every_tensor_is_used_once_or_named(tmp_path, name, change, message):
    state = theirs(name, "class")
    change(state)
    path = tmp_path / "theirs.safetensors"
    save_file({key: np.array(value, order="C") for key, value in state.items()}, path)
    with pytest.raises(px.ProbexError, match=message) as raised:
        from_torch(path, **ABOUT)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("head", "given", "message"),
    [
        ("class", {"layer": None, "tree": None}, "give layer, tree"),
        ("class", {"layer": "59"}, "layer 59: give its name"),
        ("class", {"layer": ""}, "layer '' is no name"),
        ("class", {"classes": ["ant"]}, "has 2 outputs, given are 1 classes"),
        ("class", {"classes": ["ant", "ant"]}, "no list of distinct names"),
        ("class", {"classes": "ab"}, "classes 'ab' are no list"),
        ("class", {"text": TEXT}, "no text is needed"),
        ("class", {"layout": "other"}, "layout: 'other' is not one of"),
        ("text", {}, "regression_head: give the text encoder"),
        ("text", {"text": Alignment(HashingEncoder(32))}, "of 64 dimensions, .* gives 32"),
        ("text", {"text": TEXT, "texts": {"cow": "a cow"}}, "'cow', which is no class"),
        ("text", {"text": Alignment(HashingEncoder(D), logit_scale=-1.0)}, "logit_scale"),
    ],
)
def test_what_a_state_dict_does_not_say_is_given_and_fits(tmp_path, head, given, message):
    save_file(theirs("probex", head), tmp_path / "theirs.safetensors")
    with pytest.raises(px.ProbexError, match=message):
        from_torch(tmp_path / "theirs.safetensors", **{**ABOUT, **given})


def rewritten(path, *, tensors=lambda state: None, about=lambda about: None, metadata=True):
    """Changes a file that `to_torch` wrote."""
    with safe_open(path, "numpy") as file:
        said = json.loads(file.metadata()["probex_jax"])
    state = load_file(path)
    tensors(state)
    about(said)
    save_file(state, path, {"probex_jax": json.dumps(said)} if metadata else None)


def test_a_centred_expert_cannot_lose_its_centre(tmp_path):
    path = tmp_path / "expert.safetensors"
    expert = make_expert("mvprobe", "class", normalise="centre")
    x, state = draw(1, 4, H, W), None

    def written(**change):
        path.unlink(missing_ok=True)
        to_torch(expert, path)
        rewritten(path, **change)

    keys = ["probex_jax.tree.scale", "probex_jax.tree.centre"]
    for key in keys:
        written(tensors=without(key))
        with pytest.raises(px.ProbexError, match=f"missing .*'{key}'"):
            from_torch(path)
    written(tensors=without(*keys))
    with pytest.raises(px.ProbexError, match=r"missing .*'probex_jax.tree.scale', 'probex_jax"):
        from_torch(path)
    # Nor where the metadata hides it, or is lost.
    written(about=put("tree", []))
    with pytest.raises(px.ProbexError, match=r"unexpected .*'probex_jax.tree.centre'"):
        from_torch(path)
    written(tensors=without(*keys), about=put("tree", []))
    with pytest.raises(px.ProbexError, match="the parameters do not fit"):
        from_torch(path)
    written(metadata=False)
    read = from_torch(path, **ABOUT)
    state = load_file(path)
    assert read.card["normalise"] == "centre"
    check_agrees(read, state, x)
    assert error(reference(theirs_alone(state), x)[1], reference(state, x)[1]) > 0.1


def theirs_alone(state):
    return {key: value for key, value in state.items() if "tree" not in key}


DEEP = json.loads("[" * 200 + "]" * 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("version", 2), "has version 2, expected 1"),
        (put("tree", "scale"), "has tree 'scale'"),
        (put("tree", [[]]), "has tree"),
        (put("tree", DEEP), "is nested too deeply"),
        (put("card", [1]), "has no card"),
        (lambda a: a["card"].update(members=[]), "has no card"),
        (lambda a: a["card"].update(encoder={"name": "dense"}), "encoder dense"),
        (lambda a: a["card"].update(encoder={"name": "dense", "rep_dim": T}), "do not fit"),
        (lambda a: a["card"].update(encoder={"name": "probex"}), "do not fit"),
        (lambda a: a["card"].update(encoder={"name": "probex", "n_probes": 10**30}), "do not fit"),
        (lambda a: a["card"].update(normalise="centre", centre_rank=2**80), "do not fit"),
        (lambda a: a["card"].update(shape=[10**12, 10**12]), "do not fit"),
        (lambda a: a["card"].update(shape=[H]), "shape"),
        (lambda a: a["card"].update(layout="reference"), "do not fit"),
        (lambda a: a["card"].update(layout=["reference"]), "layout"),
        (lambda a: a["card"].update(classes=CLASSES[:1]), "do not fit"),
        (lambda a: a["card"].update(classes=[1, 2]), "no list of distinct names"),
        (lambda a: a["card"].update(classes=["\ud800", "b"]), "no list of distinct names"),
        (lambda a: a["card"].update(tree=["Mini"]), "tree"),
        (lambda a: a["card"].update(layer={}), "layer"),
        (lambda a: a["card"].update(head="text"), "text"),
        (lambda a: a["card"].update(calibration={"temperature": -1.0}), "temperature"),
        (lambda a: a["card"].update(calibration=[]), "calibration"),
        (lambda a: a["card"].update(store_hash="other"), "does not match its hash"),
        (put("member", 3), "no number and card"),
        (put("member", {"number": 0, "of": 1, "card": {}}), "is a member of a committee of 1"),
        (put("hash", None), "does not match its hash"),
    ],
)
def test_metadata_is_data_of_strangers(tmp_path, change, message):
    path = tmp_path / "expert.safetensors"
    to_torch(make_expert("probex", "class"), path)
    rewritten(path, about=change)
    with pytest.raises(px.ProbexError, match=message) as raised:
        from_torch(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", '{"version": 1, "version": 1}', "é"])
def test_metadata_that_is_no_object(tmp_path, text):
    path = tmp_path / "expert.safetensors"
    save_file(theirs("probex", "class"), path, {"probex_jax": text})
    with pytest.raises(px.ProbexError, match="metadata probex_jax"):
        from_torch(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "expert.safetensors"
    with pytest.raises(px.ProbexError, match="no such file"):
        from_torch(path)
    with pytest.raises(px.ProbexError, match=r"no \.safetensors file here"):
        from_torch(tmp_path)
    to_torch(make_expert("probex", "class"), path)
    with pytest.raises(px.ProbexError, match="says itself what it is; layer is not to be given"):
        from_torch(path, layer="a")
    rewritten(path, tensors=lambda state: state["probes.weight"].__setitem__((0, 0), 9.0))
    with pytest.raises(px.ProbexError, match="does not match its hash"):
        from_torch(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(px.ProbexError):
        from_torch(path)
    pickled = tmp_path / "expert.pt"
    pickled.write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(px.ProbexError, match=r"expert\.pt"):
        from_torch(pickled)


def test_what_has_no_form_there_is_refused(tmp_path):
    dense = build_network({"name": "dense"}, "none", Y)
    card = {"encoder": {"name": "dense"}, "head": "none", "shape": [H, W], **ABOUT}
    variables = dense.init(jax.random.key(0), jnp.ones([1, H, W]))
    with pytest.raises(px.ProbexError, match="its encoder is dense, which the PyTorch"):
        to_torch(px.Expert(variables, card), tmp_path / "dense.safetensors")
    for change in ({"branches": ["xu", "xtu"]}, {"standardise": False}, {"relu": False}):
        encoder = {"name": "mvprobe", "n_probes": U, "proj_dim": V, "rep_dim": T, **change}
        network = build_network(encoder, "class", Y)
        variables = network.init(jax.random.key(0), jnp.ones([1, H, W]))
        expert = px.Expert(variables, {**card, "encoder": encoder, "head": "class"})
        with pytest.raises(px.ProbexError, match="always has all four branches"):
            to_torch(expert, tmp_path / "some.safetensors")
    assert not any(tmp_path.iterdir())


def test_nothing_that_is_there_is_touched(tmp_path):
    expert = make_expert("probex", "class")
    both = committee([expert, make_expert("probex", "class", layer="b")])
    for one, path in ((expert, tmp_path / "x.safetensors"), (both, tmp_path / "folder")):
        path.write_text("mine")
        with pytest.raises(px.ProbexError, match="is there already"):
            to_torch(one, path)
        assert path.read_text() == "mine"
    with pytest.raises(px.ProbexError, match="is written as a folder"):
        to_torch(both, tmp_path / "both.safetensors")
    with pytest.raises(px.ProbexError, match=r"is written as a \.safetensors file"):
        to_torch(expert, tmp_path / "expert")
    with pytest.raises(px.ProbexError, match="o such file or directory"):
        to_torch(expert, tmp_path / "none" / "x.safetensors")


@pytest.fixture
def several():
    return committee(
        [
            make_expert("mvprobe", "text", layer="a", normalise="centre"),
            make_expert("probex", "text", layer="b", seed=1, shape=(7, 9)),
            make_expert("probex", "text", layer="c", seed=2, shape=(3, 8), layout="reference"),
        ],
        weights=[3, 2, 1],
    )


def test_a_committee_is_a_folder(tmp_path, several):
    folder = tmp_path / "several"
    to_torch(several, folder)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"member_00{n}.safetensors" for n in range(3)]
    same(from_torch(folder), several)
    x = {layer: draw(n, 4, *shape) for n, (layer, shape) in enumerate(several.layers.items())}
    texts = draw(5, 4, D)
    states = [load_file(file) for file in files]
    read = [x["a"], x["b"], x["c"].reshape(4, 8, 3)]
    logits = [7 * reference(state, m, texts)[1] for state, m in zip(states, read, strict=True)]
    expected = (3 * logits[0] + 2 * logits[1] + logits[2]) / 6
    assert error(from_torch(folder).logits(x, texts), expected) <= 1e-5

    with pytest.raises(px.ProbexError, match="is a member of a committee of 3; give their folder"):
        from_torch(files[0])
    shutil.copy(files[0], folder / "again.safetensors")
    with pytest.raises(px.ProbexError, match="4 members here, the committee has 3"):
        from_torch(folder)
    (folder / "again.safetensors").unlink()
    kept = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(px.ProbexError, match="2 members here, the committee has 3"):
        from_torch(folder)
    save_file(theirs("probex", "text"), files[1])
    with pytest.raises(px.ProbexError, match=r"member_001.*is no member of a committee"):
        from_torch(folder)
    files[1].write_bytes(kept)
    same(from_torch(folder), several)
    rewritten(files[1], about=put("hash", "0"))
    with pytest.raises(px.ProbexError, match=r"member_001.*is of another committee"):
        from_torch(folder)
    files[1].write_bytes(kept)
    rewritten(files[1], tensors=lambda state: state["probes.weight"].__setitem__((0, 0), 9.0))
    with pytest.raises(px.ProbexError, match="does not match its hash"):
        from_torch(folder)


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_as_the_reference_reads_them(tmp_path, name):
    kernels = draw(1, 4, 6, 3, 2, 2)  # [N, O, I, kh, kw]
    as_read = np.stack([kernel.reshape(-1, kernel.shape[0]) for kernel in kernels])
    state = theirs(name, "class", rows=12, columns=6)
    save_file(state, tmp_path / "theirs.safetensors")
    expert = from_torch(tmp_path / "theirs.safetensors", **ABOUT, layout="reference")
    assert expert.layers == {"a": (6, 12)}
    read = []
    for number, kernel in enumerate(kernels):
        save_file({"a": kernel}, tmp_path / f"model_{number}.safetensors")
        with px.open_model(tmp_path / f"model_{number}.safetensors") as model:
            read.append(expert.read(model)["a"])
    check_agrees(expert, state, np.stack(read), as_read)
    transposed = np.stack(read).swapaxes(1, 2)
    assert error(reference(state, transposed)[1], reference(state, as_read)[1]) > 0.1

    expert.save(tmp_path / "expert")
    same(px.Expert.load(tmp_path / "expert"), expert)
    to_torch(expert, tmp_path / "again.safetensors")
    same(from_torch(tmp_path / "again.safetensors"), expert)
    factors = px.LowRank(draw(1, 2, 6, 1), draw(2, 2, 1, 12))
    with pytest.raises(px.ProbexError, match="which no factors can be"):
        expert.logits(factors)
    # Without the layout the matrices of the layer do not fit.
    plain = from_torch(tmp_path / "theirs.safetensors", **ABOUT)
    message = r"is \(6, 12\), the expert reads \(12, 6\)"
    with (
        px.open_model(tmp_path / "model_0.safetensors") as model,
        pytest.raises(px.ProbexError, match=message),
    ):
        plain.read(model)


def test_the_command_converts_both_ways(tmp_path):
    path = tmp_path / "theirs.safetensors"
    state = theirs("probex", "text")
    save_file(state, path)
    (tmp_path / "classes.json").write_text('{"n01": "a big ant", "n02": "a bee"}')
    to, again = tmp_path / "expert", tmp_path / "again.safetensors"
    stated = ["--layer=a", "--tree=Mini", f"--classes={tmp_path}/classes.json"]
    stated += [f"--text_encoder=hashing:{D}", "--logit_scale=7", "--template=one {class}"]
    done = warm.run("convert", f"--from_torch={path}", f"--to={to}", *stated)
    assert done.returncode == 0, done.stderr
    assert "| probex" in done.stdout
    expert = px.Expert.load(to)
    check_agrees(expert, state, draw(1, 4, H, W))
    assert expert.card["classes"] == ["n01", "n02"]
    assert expert.text["texts"] == {"n01": "a big ant", "n02": "a bee"}
    assert (expert.text["template"], expert.text["encoder"]) == ("one {class}", f"hashing:{D}")
    done = warm.run("convert", f"--from_expert={to}", f"--to_torch={again}")
    assert done.returncode == 0, done.stderr
    for key, value in load_file(again).items():
        np.testing.assert_array_equal(value, state[key])

    for arguments, message in (
        ((), "give --from_torch and --to, or"),
        ((f"--from_torch={path}", f"--to={to}", *stated), "is there already"),
        ((f"--from_torch={path}", f"--to={to}2", "--logit_scale=2"), "belong to a --text_encoder"),
        ((f"--from_expert={to}", f"--to_torch={again}2", "--tree=x"), "--tree: the expert's card"),
    ):
        done = warm.run("convert", *arguments)
        assert done.returncode == 2, done.stdout
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "expert2").exists()


def test_a_card_asks_for_no_more_than_the_form_has(tmp_path):
    path = tmp_path / "expert.safetensors"
    to_torch(make_expert("mvprobe", "class"), path)
    rewritten(path, about=lambda about: about["card"]["encoder"].update(relu=False))
    with pytest.raises(px.ProbexError, match="always has all four branches"):
        from_torch(path)


def test_a_centre_of_factors_outlives_its_metadata(tmp_path):
    path = tmp_path / "expert.safetensors"
    to_torch(make_expert("probex", "class", **TREES["factors"]), path)
    rewritten(path, metadata=False)
    expert = from_torch(path, **ABOUT)
    assert expert.card["centre_rank"] == 2
    check_agrees(expert, load_file(path), draw(1, 4, H, W))


def test_two_members_of_one_number_are_refused(tmp_path, several):
    to_torch(several, tmp_path / "several")
    second = tmp_path / "several" / "member_001.safetensors"
    rewritten(second, about=lambda about: about["member"].update(number=0))
    with pytest.raises(px.ProbexError, match="3 members here, the committee has 3"):
        from_torch(tmp_path / "several")
