import os
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import open_model, plain
from probex_jax.model_files.finite import count_unfit
from probex_jax.model_files.plain import Buffer
from tests.conftest import write_toy_lora

PIECE = 16384  # bytes; of a layer that is read here there are several


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(plain, "_PIECE_BYTES", PIECE)


def settle():
    time.sleep(0.06)


def write(path, n_values=3 * PIECE // 4 + 5, before=0, change=lambda values: None):
    values = np.random.default_rng(n_values).standard_normal((1, n_values, 2), np.float32)
    change(values.reshape(-1))
    save_file({"a": np.zeros(before, np.uint8), "w": values}, path / "model.safetensors")
    settle()
    return values.reshape(-1)


def found(path):
    with open_model(path) as model:
        return model.plain()


def copied(path, target=0):
    with found(path).open() as opened:
        pieces = [*map(np.copy, opened.pieces("w", target, Buffer()))]
        opened.check_unchanged()
    return pieces


@pytest.mark.parametrize("n_values", [1, 2, PIECE // 8, PIECE // 8 + 1, PIECE])
@pytest.mark.parametrize("before", [0, 1, 4, 1000, 4095])
@pytest.mark.parametrize("target", [0, 4, 36, 4000, 123456])
def test_pieces_are_the_values_of_the_matrix(tmp_path, monkeypatch, n_values, before, target):
    monkeypatch.setattr("tests.model_files.test_plain.settle", lambda: None)
    monkeypatch.setattr("probex_jax.model_files.byte_ranges._CLOCK_TICK_NS", -1)
    values = write(tmp_path, 2 * n_values, before)
    pieces = copied(tmp_path, target)
    np.testing.assert_array_equal(np.concatenate(pieces), values)
    at = target
    for piece in pieces[:-1]:
        at += piece.nbytes
        assert at % 4096 == 0


def test_no_bytes_are_copied_to_just_behind_where_they_were():
    buffer = Buffer()
    first = buffer._bytes.__array_interface__["data"][0]
    assert first % 4096 == 0
    for source in (*range(0, 200, 3), *range(3900, 4096)):
        for target in range(0, 4096, 4):
            part = buffer.between(source, target, PIECE)
            assert len(part) == PIECE
            begin = part.__array_interface__["data"][0] - first
            assert begin % 4 == 0
            assert not 0 < (begin - source) % 4096 < 32
            assert not 0 < (target - begin) % 4096 < 32


@pytest.mark.parametrize("places", [[0], [-1], [PIECE // 4], [0, 7, PIECE // 2, -1]])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_over_all_pieces(tmp_path, places, bad):
    def change(values):
        values[places] = bad

    size = len(write(tmp_path, change=change))
    with pytest.raises(ProbexError, match=f"layer 'w': {len(places)} of {size} values are NaN"):
        copied(tmp_path)
    with open_model(tmp_path) as model, pytest.raises(ProbexError, match=f"{len(places)} of"):
        model.matrix("w")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 20000])
def test_counting_is_exact(size):
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size).astype(np.float32)
    assert count_unfit(values) == 0
    assert count_unfit(values * np.float32(1e37)) == 0  # whose squares overflow
    for bad in (np.nan, np.inf, -np.inf):
        for place in {0, size // 2, size - 1} if size else ():
            spoilt = values.copy()
            spoilt[place] = bad
            assert count_unfit(spoilt) == 1


def test_a_file_that_was_written_just_now_does_not_count(tmp_path):
    write(tmp_path)
    os.utime(tmp_path / "model.safetensors", (0, 0))  # the content's time says nothing
    assert found(tmp_path) is None
    settle()
    assert found(tmp_path) is not None


def overwrite(file):
    status = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"abcd")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(file):
    file.with_name("copy").write_bytes(file.read_bytes())
    os.replace(file.with_name("copy"), file)


@pytest.mark.parametrize(
    "change", [overwrite, replace, os.unlink, lambda file: os.truncate(file, 100)]
)
def test_another_file_by_now_is_not_opened(tmp_path, change):
    write(tmp_path)
    before = found(tmp_path)
    change(tmp_path / "model.safetensors")
    count = len(os.listdir("/dev/fd"))
    assert before.open() is None
    assert len(os.listdir("/dev/fd")) == count


def test_a_file_cut_short_while_it_is_copied_is_an_error(tmp_path):
    write(tmp_path)
    with found(tmp_path).open() as opened:
        pieces = opened.pieces("w", 0, Buffer())
        next(pieces)
        os.truncate(tmp_path / "model.safetensors", PIECE)
        with pytest.raises(ProbexError, match="became shorter"):
            list(pieces)


def test_only_dense_float32_is_plain(tmp_path):
    tensors = {
        "half": np.ones((2, 3), np.float16),
        "double": np.ones((2, 3)),
        "whole": np.ones((2, 3), np.int32),
        "conv": np.ones((2, 3, 3, 3), np.float32),
        "vector": np.ones(2, np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    write_toy_lora(tmp_path / "lora", "red cat", np.random.default_rng(0))
    settle()
    assert [*found(tmp_path).places] == ["conv"]
    assert not found(tmp_path / "lora").places
