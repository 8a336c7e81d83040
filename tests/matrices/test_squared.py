"""Products of matrices with themselves, kept: the same answers, and only where they fit."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.encoders import MVProbe
from probex_jax.encoders.mvprobe import BRANCHES
from probex_jax.fitting import Adam, SeveralClasses, Split, build_network
from probex_jax.fitting.group import Group
from probex_jax.matrices import LowRank, Squared, centred, squared
from tests.numeric import draw, error, start, value_and_gradient

# H, W, and whether X Xᵀ and Xᵀ X are kept.
SHAPES = {
    "tall": (13, 6, False, True),
    "wide": (6, 13, True, False),
    "square": (7, 7, True, True),
    "nearly square": (9, 6, True, True),
    "twice as tall": (12, 6, False, True),
}
N = 4
# `probex_jax.matrices.squared` is the function, too.
MODULE = importlib.import_module("probex_jax.matrices.squared")
SMALL = {"n_probes": 3, "proj_dim": 4, "rep_dim": 2}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_spares_work_is_kept(shape):
    h, w, rows, columns = SHAPES[shape]
    x = draw(0, N, h, w)
    found = squared(x)
    assert isinstance(found, Squared)
    assert (found.rows is not None, found.columns is not None) == (rows, columns)
    np.testing.assert_array_equal(found.matrices, x)
    assert found.shape == x.shape
    wide = np.asarray(x, np.float64)
    if rows:
        assert error(found.rows, wide @ wide.swapaxes(1, 2)) <= 1e-6
    if columns:
        assert error(found.columns, wide.swapaxes(1, 2) @ wide) <= 1e-6
    some = found[np.array([2, 0])]
    assert some.shape == (2, h, w)
    for part, whole in zip(jax.tree.leaves(some.read()), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(part, whole[np.array([2, 0])])


@pytest.fixture
def as_on_accelerators(monkeypatch):
    """Programs take the form that they have on other platforms than this one."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, default, **_: default(*x))
    jax.clear_caches()
    yield
    jax.clear_caches()


def check_picked():
    x, encoder, index = draw(0, N, 7, 7), MVProbe(**SMALL), np.array([2, 0, 2])
    params, kept = start(encoder, x), squared(x)
    expected, expected_gradient = value_and_gradient(encoder, params, kept[index].read())
    value, gradient = value_and_gradient(encoder, params, kept[index])
    assert error(value, expected) <= 1e-6
    for leaf, wanted in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        assert error(leaf, wanted) <= 1e-5


def test_picked_matrices_have_the_values_and_gradients_of_copies():
    check_picked()


def test_picked_matrices_do_on_accelerators_too(as_on_accelerators):
    check_picked()


@pytest.mark.parametrize(
    ("shape", "branches"),
    [("tall", ("xxtu", "xtxu")), ("wide", ("xxtu", "xtxu")), ("square", BRANCHES)],
)
def test_prepared_matrices_have_the_same_values_and_gradients(shape, branches):
    h, w, _, _ = SHAPES[shape]
    x, encoder = draw(0, N, h, w), MVProbe(**SMALL, branches=branches)
    params = start(encoder, x)
    prepared_x = encoder.prepare(x)
    assert isinstance(prepared_x, Squared)
    value, gradient = value_and_gradient(encoder, params, prepared_x)
    expected, expected_gradient = value_and_gradient(encoder, params, x)
    assert error(value, expected) <= 1e-5
    paths = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, leaf), wanted in zip(paths, jax.tree.leaves(expected_gradient), strict=True):
        assert error(leaf, wanted) <= 1e-5, path


@pytest.mark.parity
def test_the_form_for_accelerators_keeps_the_same(request):
    x, encoder = draw(0, N, 9, 6), MVProbe(**SMALL)
    params = start(encoder, x)
    expected = squared(x), value_and_gradient(encoder, params, x)
    request.getfixturevalue("as_on_accelerators")
    found = squared(x), value_and_gradient(encoder, params, x)
    for actual, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert error(actual, wanted) <= 1e-5


def test_what_is_kept_is_what_is_read():
    """The products stand for those with X: from others come other values."""
    x, encoder = draw(0, N, 7, 7), MVProbe(**SMALL)
    params, kept = start(encoder, x), squared(x)
    value, _ = value_and_gradient(encoder, params, kept)
    for other in (
        Squared(x, kept.rows[::-1], kept.columns),
        Squared(x, kept.rows, kept.columns[::-1]),
    ):
        assert error(value_and_gradient(encoder, params, other)[0], value) > 1e-2


@pytest.mark.parametrize("room", [-1, 0])
def test_nothing_is_kept_beyond_the_memory(room, monkeypatch):
    size = 4 * N * (9**2 + 6**2)  # float32, both products of all models
    monkeypatch.setattr(MODULE, "_MOST_BYTES", size + room)
    x = draw(0, N, 9, 6)
    assert isinstance(squared(x), Squared) == (room >= 0)
    assert room >= 0 or squared(x) is x


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        (("xu",), False),
        (("xu", "xtu"), False),
        (("xxtu",), True),
        (("xtu", "xtxu"), True),
    ],
)
def test_only_branches_that_need_squares_prepare_them(branches, expected):
    x, encoder = draw(0, N, 7, 7), MVProbe(**SMALL, branches=branches)
    assert isinstance(encoder.prepare(x), Squared) == expected


def test_what_no_branch_asks_for_is_not_made():
    x = draw(0, N, 7, 7)
    for branch, kept in (("xxtu", (True, False)), ("xtxu", (False, True))):
        found = MVProbe(**SMALL, branches=("xu", branch)).prepare(x)
        assert (found.rows is not None, found.columns is not None) == kept
    # Of a tall matrix X Xᵀ spares nothing.
    tall = draw(0, N, 13, 6)
    assert MVProbe(**SMALL, branches=("xxtu",)).prepare(tall) is tall


def test_factors_and_centred_factors_are_not_squared():
    encoder = MVProbe(**SMALL)
    factors = LowRank(draw(0, N, 9, 2), draw(1, N, 2, 6))
    for x in (factors, centred(factors, draw(2, 9, 6))):
        assert encoder.prepare(x) is x


def test_training_prepares_mvprobe_alone():
    train = Split(draw(0, 1, N, 7, 7), jnp.ones([N, 2]))
    networks = {
        "mvprobe": build_network({"name": "mvprobe", **SMALL}, "class", 2),
        "probex": build_network({"name": "probex", **SMALL}, "class", 2),
        "dense": build_network({"name": "dense"}, "none", 2),
        # It squares what it has taken the centre off; these matrices are as they were.
        "centred": build_network({"name": "mvprobe", **SMALL}, "class", 2, normalise="centre"),
    }
    counts = {"train": N, "val": N}
    groups = {n: Group(net, SeveralClasses(), (Adam(),), 1, counts) for n, net in networks.items()}
    found = {name: isinstance(g.prepared(train).x, Squared) for name, g in groups.items()}
    assert found == {"mvprobe": True, "probex": False, "dense": False, "centred": False}
