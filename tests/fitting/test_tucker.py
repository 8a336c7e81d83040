"""Probes and projections in closed form, against eigenvectors in float64; strips of a layer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import probex_jax as px
from probex_jax.fitting.strips import Strips
from probex_jax.fitting.tucker import Bases, bases, responses
from tests.numeric import error

ROOT = Path(__file__).parents[2]
N, Y, U, V = 30, 5, 4, 3
# Of long sides no Gram matrix is made.
SHAPES = {"tall": (12, 7), "wide": (7, 12), "long": (5000, 7)}
# Five rows of all models: of twelve, two are left for the last strip.
STRIP = 5 * 4 * N * 7


def sample(shape, kind="dense"):
    """Models in which few directions of rows and columns stand out, each less than the last."""
    rng, rank = np.random.default_rng(1), 6
    fall = 3.0 ** -np.arange(rank)
    sides = [np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in shape]
    core = rng.normal(size=(N, rank, rank)) * fall[:, None] * fall
    up, down = (sides[0] @ core).astype(np.float32), np.tile(sides[1].T, (N, 1, 1))
    factors = px.LowRank(up, down.astype(np.float32))
    return factors if kind == "factors" else up @ factors.down


def strips_of(x, **settings):
    blocks = [x[:20], x[20:]]
    factors = isinstance(x, px.LowRank)
    return Strips(lambda: blocks, N, x.shape[1:], factors=factors, **settings)


def wide(x):
    x = x.up @ x.down if isinstance(x, px.LowRank) else x
    return np.asarray(x, np.float64)


def leading(gram, rank):
    return np.linalg.eigh(gram)[1][:, ::-1][:, :rank]


def leading_of_columns(a_YHK, rank):
    """Of the sum of A Aᵀ, whose rows may be too many for a square of them."""
    columns = np.concatenate([*a_YHK], axis=1)
    return np.linalg.svd(columns, full_matrices=False)[0][:, :rank]


def by_eigenvectors(x, solution, shape):
    """The side with fewer dimensions first; the other in what that one leaves."""
    weights_YHW = np.einsum("ny,nhw->yhw", solution, wide(x))
    if shape[1] <= shape[0]:
        u = leading(np.einsum("yhw,yhv->wv", weights_YHW, weights_YHW), U)
        return u, leading_of_columns(weights_YHW @ u, V)
    v = leading(np.einsum("yhw,ygw->hg", weights_YHW, weights_YHW), V)
    return leading_of_columns(np.einsum("yhw,hv->ywv", weights_YHW, v), U), v


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize("size", [{}, {"strip_bytes": STRIP}], ids=["one strip", "strips"])
@pytest.mark.parametrize("which", SHAPES)
def test_bases_are_leading_eigenvectors(which, kind, size):
    shape = SHAPES[which]
    x = sample(shape, kind)
    strips = strips_of(x, **({"strip_bytes": 100 * STRIP} if size and which == "long" else size))
    rng = np.random.default_rng(2)
    solutions = [rng.normal(size=(N, Y)) for _ in range(2)]
    found = bases(strips, solutions, U, V)
    for each, solution in zip(found, solutions, strict=True):
        u, v = by_eigenvectors(x, solution, shape)
        assert (each.probes.shape, each.projection.shape) == ((shape[1], U), (shape[0], V))
        np.testing.assert_allclose(np.abs(np.sum(each.probes * u, axis=0)), 1, atol=1e-4)
        np.testing.assert_allclose(np.abs(np.sum(each.projection * v, axis=0)), 1, atol=1e-4)
    answers = responses(strips, found)
    for each, answer in zip(found, answers, strict=True):
        expected = np.einsum("hv,nhw,wu->nuv", each.projection, wide(x), each.probes)
        assert error(answer, expected) <= 1e-5
    kernel = np.einsum("nhw,mhw->nm", wide(x), wide(x))
    assert error(strips.kernel(), kernel) <= 1e-5


def test_where_eigenvalues_are_nearly_alike_almost_all_is_found():
    """Of what the best directions hold; many more of them than are searched at once."""
    shape = (410, 400)
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(N, *shape)) * 0.99 ** np.arange(400)).astype(np.float32)
    solution = rng.normal(size=(N, Y))
    (found,) = bases(Strips(lambda: [x], N, shape), [solution], U, V)
    weights_YHW = np.einsum("ny,nhw->yhw", solution, wide(x))
    gram_WW = np.einsum("yhw,yhv->wv", weights_YHW, weights_YHW)
    held = np.trace(found.probes.T @ gram_WW @ found.probes)
    assert held >= 0.9999 * np.linalg.eigvalsh(gram_WW)[-U:].sum()


def test_more_outputs_than_models_and_more_bases_than_columns():
    x = sample(SHAPES["tall"])
    solution = np.random.default_rng(3).normal(size=(N, 300))
    (found,) = bases(strips_of(x), [solution], 100, V)
    _, v = by_eigenvectors(x, solution, SHAPES["tall"])
    assert found.probes.shape == (7, 7)
    np.testing.assert_allclose(
        np.abs(np.sum(found.projection[:, :2] * v[:, :2], axis=0)), 1, atol=1e-3
    )


@pytest.mark.parametrize("which", ["tall", "wide"])
def test_strips_that_have_no_room_are_read_again(which):
    """With the same bits, in a pass for each where there is room for one."""
    shape, passes = SHAPES[which], []
    x = sample(shape)

    def blocks():
        passes.append(1)
        yield from (x[:20], x[20:])

    streamed = Strips(blocks, N, shape, strip_bytes=STRIP, room=1)
    kept, solution = strips_of(x, strip_bytes=STRIP), np.random.default_rng(2).normal(size=(N, Y))
    assert not passes, "read before it is asked for"
    np.testing.assert_array_equal(streamed.kernel(), kept.kernel())
    assert len(passes) == 3, "one for each strip"
    for one, other in zip(
        bases(streamed, [solution], U, V)[0], bases(kept, [solution], U, V)[0], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    cut = [Bases(np.eye(shape[1], U), np.eye(shape[0], V))]
    np.testing.assert_array_equal(responses(streamed, cut), responses(kept, cut))
    assert error(responses(kept, cut)[0], x[:, :V, :U].mT) <= 1e-6


def test_any_number_of_devices_gives_the_same_bits():
    program = [sys.executable, "-W", "error", "-m", "tests.fitting.closed_form_on_devices"]
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout)
    assert found["devices with strips"] == [1, 3, 8]
    assert len(set(found["digests"])) == 1
