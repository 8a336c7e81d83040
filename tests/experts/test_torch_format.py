"""Experts of the PyTorch implementations: the same answers, and nothing read or lost in silence."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import probex_jax as px
from probex_jax.experts import Alignment, committee, from_torch, to_torch
from probex_jax.language import HashingEncoder
from tests.end_to_end import warm
from tests.experts import toys
from tests.experts.toys import draw, one_line
from tests.numeric import error

H, W, U, V, T, Y, D = 6, 5, 3, 4, 8, 2, 64
CLASSES = ["ant", "bee"]
ABOUT = {"layer": "a", "tree": "Mini", "classes": CLASSES}
TEXT = Alignment(HashingEncoder(D), f"hashing:{D}", "a {class}", logit_scale=7.0)
NAMES = ("probex", "mvprobe")
TREES = {"none": {}, "scale": {"normalise": "scale"}, "centre": {"normalise": "centre"}}
TREES["factors"] = {"normalise": "centre", "centre_rank": 2}


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
        if "probex_jax.standardise" in p:
            x_HW = (x_HW - x_HW.mean()) / (x_HW.std(ddof=1) + 1e-8)
        least = -np.inf if "probex_jax.linear" in p else 0
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
            np.maximum(p[f"{name}.weight"] @ s[:, probe], least)
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
    texts = draw(5, 4, D) if expert.card.head == "text" else None
    e_NT, logits_NY = reference(state, x if read is None else read, texts)
    assert error(expert.encode(x), e_NT) <= 1e-5
    assert error(expert.logits(x, texts), logits_NY * (1 if texts is None else 7)) <= 1e-5


def make_expert(name, head, encoder=None, **about):
    """An expert of ours with random weights."""
    rep_dim = Y if head == "none" else T
    encoder = {"name": name, "n_probes": U, "proj_dim": V, "rep_dim": rep_dim} | (encoder or {})
    about = {"classes": CLASSES, "metrics": {"losses": [0.1, 1 / 3]}} | about
    about["calibration"] = {"temperature": 1.7, "after": {"val": 0.01}}
    return toys.make_expert(encoder=encoder, head=head, **about)


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


CLOSED_FORM = {"relu": False, "standardise": True}


@pytest.mark.parametrize(
    ("encoder", "head", "tree"),
    [
        ({}, "none", "none"),
        ({"relu": False}, "text", "none"),
        ({"standardise": True}, "class", "factors"),
        (CLOSED_FORM, "none", "centre"),
    ],
)
def test_what_the_reference_does_otherwise_is_a_tensor(tmp_path, encoder, head, tree):
    """So none of its modules runs an expert without its ReLU by mistake."""
    path = tmp_path / "expert.safetensors"
    expert = make_expert("probex", head, encoder, **TREES[tree])
    to_torch(expert, path)
    state = load_file(path)
    of_theirs = theirs("probex", "text" if head == "text" else "class").keys()
    others = {"relu": "probex_jax.linear", "standardise": "probex_jax.standardise"}
    unknown = {key for key in state.keys() - of_theirs if "tree" not in key}
    assert unknown == {others[field] for field in encoder}
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
        assert expert.text.texts == {"ant": "a small ant"}
    expert.save(tmp_path / "expert")
    to_torch(px.Expert.load(tmp_path / "expert"), tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, strict=True)


def test_a_state_dict_without_a_card_may_be_linear(tmp_path):
    state = theirs("probex", "class") | {"probex_jax.linear": np.ones([], "f4")}
    save_file(state, tmp_path / "theirs.safetensors")
    expert = from_torch(tmp_path / "theirs.safetensors", **ABOUT)
    check_agrees(expert, state, draw(1, 4, H, W))


def test_equal_experts_are_equal_files(tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for path in (one, two):
        to_torch(make_expert("probex", "class"), path)
    assert one.read_bytes() == two.read_bytes()


def without(*keys):
    return lambda state: [state.pop(key) for key in keys]


def put(key, value):
    return lambda state: state.update({key: value(state) if callable(value) else value})


def turned(key):
    return put(key, lambda state: state[key].T)


PROBES, LAST, HEAD = "probes.weight", "per_probe_encoders.weight", "classification_head.weight"
PROJECTED, NO_HEAD = "shared_probe_proj_col.weight", (HEAD, "classification_head.bias")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("probex", without("shared_probe_proj.weight"), "missing .*'shared_probe_proj.weight'"),
        ("mvprobe", without("probes_xtxu.weight"), "missing .*'probes_xtxu.weight'"),
        ("probex", without(NO_HEAD[1]), "missing .*'classification_head.bias'"),
        ("probex", without(PROBES, "shared_probe_proj.weight"), "missing"),
        ("probex", put("temperature", draw(0, 1)), "unexpected .*'temperature'"),
        ("probex", put("evil\n\x1b[31m", draw(0, 1)), r"unexpected .*'evil\\n\\x1b\[31m'"),
        ("probex", put("module.probes.weight", draw(0, W, U)), "unexpected .*'module.probes"),
        ("probex", put("probes_xu.weight", draw(0, W, U)), "one encoder, .*two"),
        ("probex", put("regression_head.bias", draw(0, T)), "one head, .*two"),
        ("probex", without(*NO_HEAD), "one head, .*none"),
        ("probex", put("probex_jax.linear", np.zeros([], "f4")), "probex_jax.linear"),
        ("probex", put("probex_jax.linear", draw(0, 1)), "probex_jax.linear"),
        ("mvprobe", put("probex_jax.linear", np.ones([], "f4")), "unexpected .*probex_jax.linear"),
        ("probex", turned(LAST), rf"{LAST} is \[12, 8\].*\[T, UV\] = \[12, 12\]"),
        ("probex", turned(PROBES), rf"{LAST} is \[8, 12\].*\[T, UV\] = \[8, 20\]"),
        ("mvprobe", put(PROJECTED, draw(0, V, H)), rf"{PROJECTED} is \[4, 6\].*\[V, W\]"),
        ("mvprobe", put("probes_xxtu.weight", draw(0, W, U)), "probes_xxtu.weight"),
        ("probex", put(PROBES, draw(0, W, U, 1)), rf"{PROBES} is \[5, 3, 1\].*\[W, U\]"),
        ("probex", put(PROBES, draw(0, 0, U)), rf"{PROBES} is \[0, 3\]"),
        ("probex", put(PROBES, np.float16(draw(0, W, U))), f"{PROBES} .*F16"),
        ("probex", put(PROBES, np.float64(draw(0, W, U))), f"{PROBES} .*F64"),
        ("probex", put(PROBES, np.full((W, U), np.nan, "f4")), "NaN"),
        ("probex", put("probex_jax.tree.centre", draw(0, H, W)), "missing .*tree.scale'"),
        ("probex", put("probex_jax.tree.mean", draw(0, H, W)), "unexpected .*tree.mean'"),
        ("probex", put("probex_jax.tree.scale", np.float32(-1)), r"tree.scale is -1\.0"),
        ("probex", put("probex_jax.tree.scale", draw(0, 1)), r"tree.scale is \[1\]"),
    ],
)
def test_every_tensor_is_used_once_or_named(tmp_path, name, change, message):
    state, path = theirs(name, "class"), tmp_path / "theirs.safetensors"
    change(state)
    save_file({key: np.array(value, order="C") for key, value in state.items()}, path)
    with pytest.raises(px.ProbexError, match=f"^{path}: .*{message}") as told:
        from_torch(path, **ABOUT)
    one_line(told)


@pytest.mark.parametrize(
    ("head", "given", "message"),
    [
        ("class", {"layer": None, "tree": None}, "layer, tree"),
        ("class", {"layer": "59"}, "layer 59"),
        ("class", {"layer": ""}, "layer ''"),
        ("class", {"classes": ["ant"]}, "2 outputs, .*1 classes"),
        ("class", {"classes": ["ant", "ant"]}, "classes"),
        ("class", {"classes": "ab"}, "classes 'ab'"),
        ("class", {"text": TEXT}, "text"),
        ("class", {"layout": "other"}, "layout: 'other'"),
        ("text", {}, "text encoder"),
        ("text", {"text": Alignment(HashingEncoder(32))}, "64 dimensions, .*32"),
        ("text", {"text": TEXT, "texts": {"cow": "a cow"}}, "'cow'"),
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
    """Nor where the metadata hides it, or is lost."""
    path, x = tmp_path / "expert.safetensors", draw(1, 4, H, W)
    scale, centre = "probex_jax.tree.scale", "probex_jax.tree.centre"
    for change, message in (
        ({"tensors": without(scale)}, f"missing .*'{scale}'"),
        ({"tensors": without(centre)}, f"missing .*'{centre}'"),
        ({"tensors": without(scale, centre)}, f"missing .*'{scale}', '{centre}'"),
        ({"about": put("tree", [])}, f"unexpected .*'{centre}'"),
        ({"tensors": without(scale, centre), "about": put("tree", [])}, "do not fit"),
    ):
        path.unlink(missing_ok=True)
        to_torch(make_expert("mvprobe", "class", normalise="centre"), path)
        rewritten(path, **change)
        with pytest.raises(px.ProbexError, match=message):
            from_torch(path)
    for tree in ("centre", "factors"):
        path.unlink()
        to_torch(make_expert("mvprobe", "class", **TREES[tree]), path)
        rewritten(path, metadata=False)
        read, state = from_torch(path, **ABOUT), load_file(path)
        assert read.card.members[0].normalise == "centre"
        assert (read.card.members[0].centre_rank or 0) == (2 if tree == "factors" else 0)
        check_agrees(read, state, x)
        alone = {key: value for key, value in state.items() if "tree" not in key}
        assert error(reference(alone, x)[1], reference(state, x)[1]) > 0.1


def on_card(**changes):
    return lambda about: about["card"].update(changes)


DEEP = json.loads("[" * 200 + "]" * 200)
LESS = {"name": "mvprobe", "n_probes": U, "proj_dim": V, "rep_dim": T, "relu": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("version", 2), "version 2"),
        (put("tree", "scale"), "tree 'scale'"),
        (put("tree", [[]]), "tree"),
        (put("tree", DEEP), "too deeply"),
        (put("card", [1]), "card"),
        (put("member", 3), "member"),
        (put("member", {"number": 0, "of": 1, "card": {}}), "member of a committee of 1"),
        (put("hash", None), "hash"),
        (on_card(members=[]), "card"),
        (on_card(encoder={"name": "dense"}), "encoder dense"),
        (on_card(encoder={"name": "dense", "rep_dim": T}), "do not fit"),
        (on_card(encoder={"name": "mvprobe", "n_probes": 10**30}), "do not fit"),
        (on_card(encoder=LESS), "MVProbe"),  # more than the form has
        (on_card(normalise="centre", centre_rank=2**80), "do not fit"),
        (on_card(shape=[10**12, 10**12]), "do not fit"),
        (on_card(layout="reference"), "do not fit"),
        (on_card(classes=CLASSES[:1]), "do not fit"),
        (on_card(classes=[1, 2]), "classes"),
        (on_card(classes=["\ud800", "b"]), "classes"),
        (on_card(tree=["Mini"]), "tree"),
        (on_card(layer={}), "layer"),
        (on_card(head="text"), "text"),
        (on_card(head="none"), "classification_head"),
        (on_card(calibration={"temperature": -1.0}), "temperature"),
        (on_card(store_hash="other"), "hash"),
    ],
)
def test_metadata_is_data_of_strangers(tmp_path, change, message):
    path = tmp_path / "expert.safetensors"
    to_torch(make_expert("mvprobe", "class"), path)
    rewritten(path, about=change)
    with pytest.raises(px.ProbexError, match=f"^{path}: .*{message}"):
        from_torch(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", '{"version": 1, "version": 1}', "é"])
def test_metadata_that_is_no_object(tmp_path, text):
    path = tmp_path / "expert.safetensors"
    save_file(theirs("probex", "class"), path, {"probex_jax": text})
    with pytest.raises(px.ProbexError, match="metadata probex_jax"):
        from_torch(path)


def test_other_files_are_refused(tmp_path):
    path, pickled = tmp_path / "expert.safetensors", tmp_path / "expert.pt"
    pickled.write_bytes(b"PK\x03\x04" + bytes(64))
    for other, message in (
        (path, "no such file"),
        (tmp_path, "safetensors"),
        (pickled, "expert.pt"),
    ):
        with pytest.raises(px.ProbexError, match=message):
            from_torch(other)
    to_torch(make_expert("probex", "class"), path)
    with pytest.raises(px.ProbexError, match="layer is not to be given"):
        from_torch(path, layer="a")
    rewritten(path, tensors=lambda state: state[PROBES].__setitem__((0, 0), 9.0))
    with pytest.raises(px.ProbexError, match="does not match its hash"):
        from_torch(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(px.ProbexError, match="expert"):
        from_torch(path)


def test_what_has_no_form_there_is_refused(tmp_path):
    for encoder, head, named in (
        ({"name": "dense"}, "none", "dense"),
        *[
            (
                {"name": "mvprobe", "n_probes": U, "proj_dim": V, "rep_dim": T, **change},
                "class",
                "M",
            )
            for change in ({"branches": ["xu", "xtu"]}, {"standardise": False}, {"relu": False})
        ],
    ):
        with pytest.raises(px.ProbexError, match=named):
            to_torch(toys.make_expert(encoder=encoder, head=head), tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_committee_is_refused_for_the_first_member_without_a_form(tmp_path):
    probex, dense = {"n_probes": U, "proj_dim": V}, {"name": "dense", "standardise": True}
    members = [
        make_expert("probex", "none", probex | CLOSED_FORM, layer="a"),
        toys.make_expert("b", encoder=dense, head="none", classes=CLASSES),
        toys.make_expert("c", encoder={"name": "statistics"}, head="none", classes=CLASSES),
    ]
    members[0] = members[0].with_card(calibration=None)
    with pytest.raises(px.ProbexError, match=r"Mini, b: .*dense"):
        to_torch(committee(members), tmp_path / "all")
    with pytest.raises(px.ProbexError, match=r"Mini, c: .*statistics"):
        to_torch(committee([members[0], members[2]]), tmp_path / "all")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("probex_jax.linear"),
        put("probex_jax.standardise", np.ones([], "f4")),
        put(HEAD, lambda state: state[HEAD] + 1),
        put(NO_HEAD[1], draw(0, Y)),
    ],
)
def test_a_card_that_says_otherwise_than_the_tensors(tmp_path, spoil):
    path = tmp_path / "expert.safetensors"
    to_torch(make_expert("probex", "none", {"relu": False}), path)
    rewritten(path, tensors=spoil)
    with pytest.raises(px.ProbexError, match=f"^{path}: .*(probex_jax|classification_head)"):
        from_torch(path)


def test_nothing_that_is_there_is_touched(tmp_path):
    expert = make_expert("probex", "class")
    both = committee([expert, make_expert("probex", "class", layer="b")])
    for one, path in ((expert, tmp_path / "x.safetensors"), (both, tmp_path / "folder")):
        path.write_text("mine")
        with pytest.raises(px.ProbexError, match="is there already"):
            to_torch(one, path)
        assert path.read_text() == "mine"
    for one, path, message in (
        (both, "both.safetensors", "as a folder"),
        (expert, "expert", r"a \.safetensors file"),
        (expert, "none/x.safetensors", "o such file or directory"),
    ):
        with pytest.raises(px.ProbexError, match=message):
            to_torch(one, tmp_path / path)


def test_a_committee_is_a_folder(tmp_path):
    several = committee(
        [
            make_expert("mvprobe", "text", layer="a", normalise="centre"),
            make_expert("probex", "text", layer="b", shape=(7, 9)),
            make_expert("probex", "text", layer="c", shape=(3, 8), layout="reference"),
        ],
        weights=[3, 2, 1],
    )
    folder = tmp_path / "several"
    to_torch(several, folder)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"member_00{n}.safetensors" for n in range(3)]
    same(from_torch(folder), several)
    x = {layer: draw(n, 4, *shape) for n, (layer, shape) in enumerate(several.layers.items())}
    read, texts = [x["a"], x["b"], x["c"].reshape(4, 8, 3)], draw(5, 4, D)
    logits = [7 * reference(load_file(f), m, texts)[1] for f, m in zip(files, read, strict=True)]
    expected = (3 * logits[0] + 2 * logits[1] + logits[2]) / 6
    assert error(from_torch(folder).logits(x, texts), expected) <= 1e-5
    with pytest.raises(px.ProbexError, match="member of a committee of 3"):
        from_torch(files[0])

    second, kept = files[1], files[1].read_bytes()
    copied = folder / "again.safetensors"
    for change, message in (
        (lambda: shutil.copy(files[0], copied), "4 members here, the committee has 3"),
        (second.unlink, "2 members here, the committee has 3"),
        (lambda: save_file(theirs("probex", "text"), second), "member_001.*not a member"),
        (lambda: rewritten(second, about=put("hash", "0")), "member_001.*another committee"),
        (
            lambda: rewritten(second, about=lambda about: about["member"].update(number=0)),
            "3 members here, the committee has 3",
        ),
        (
            lambda: rewritten(second, tensors=put(PROBES, draw(0, 9, U))),
            "does not match its hash",
        ),
    ):
        change()
        with pytest.raises(px.ProbexError, match=message):
            from_torch(folder)
        copied.unlink(missing_ok=True)
        second.write_bytes(kept)
    same(from_torch(folder), several)


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_as_the_reference_reads_them(tmp_path, name):
    kernels = draw(1, 4, 6, 3, 2, 2)  # [N, O, I, kh, kw]
    as_read = np.stack([kernel.reshape(-1, kernel.shape[0]) for kernel in kernels])
    state, path = theirs(name, "class", rows=12, columns=6), tmp_path / "theirs.safetensors"
    save_file(state, path)
    expert = from_torch(path, **ABOUT, layout="reference")
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
    with pytest.raises(px.ProbexError, match="factors"):
        expert.logits(factors)
    # Without the layout the matrices of the layer do not fit.
    plain = from_torch(path, **ABOUT)
    with (
        px.open_model(tmp_path / "model_0.safetensors") as model,
        pytest.raises(px.ProbexError, match=r"\(6, 12\), the expert reads \(12, 6\)"),
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
    assert expert.card.classes == ("n01", "n02")
    assert expert.text.texts == {"n01": "a big ant", "n02": "a bee"}
    assert (expert.text.template, expert.text.encoder) == ("one {class}", f"hashing:{D}")
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
