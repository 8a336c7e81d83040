"""The seeds of the fuzzer and what it found: each is read or refused as it should be, once more."""

import tracemalloc
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.model_files import fuzz_target
from tests.model_files.fuzz_target import GOOD, KINDS, PEAK_BYTES, SECONDS, Target, kind_of, run

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return Target(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_inputs_of_the_fuzzer_are_read_or_refused(target, path):
    data = path.read_bytes()
    _, seconds = run(target, data)
    tracemalloc.start()  # which takes time
    try:
        run(target, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < PEAK_BYTES


def test_seeds_are_small_and_of_every_kind():
    assert {kind_of(path.read_bytes()) for path in CORPUS} == set(KINDS)
    assert sum(path.stat().st_size for path in CORPUS) < 200_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_good_model_of_each_kind_opens(target, kind):
    """So that what the fuzzer damages is what it means to damage."""
    path = (
        Path(__file__).parent
        / "corpus"
        / {"file": "dense", "header": "dense-header"}.get(kind, kind)
    )
    assert run(target, path.read_bytes())[0] == "opened"


def test_a_piece_is_repeated(target):
    folder = target.write(b"4b\x80\x01" + b"[]")
    assert (folder / "config.json").read_bytes() == b"[" + b"]" * 5
    assert (target.write(b"4...[]") / "config.json").read_bytes() == b"[]"
    longest = (target.write(b"4p\0\x01" + b"[]") / "config.json").stat().st_size
    assert 100_000 < longest <= 1_000_000


@pytest.mark.parametrize("bad", [KeyError("x"), RecursionError(), ValueError("x")])
def test_any_other_exception_is_a_failure(target, monkeypatch, bad):
    def broken(model):
        raise bad

    monkeypatch.setattr(fuzz_target, "fingerprint", broken)
    with pytest.raises(type(bad)):
        run(target, b"4...{}")


def test_a_reader_that_is_laxer_than_the_reference_is_a_failure(target, monkeypatch):
    def refuse(data):
        raise SafetensorError("x")

    monkeypatch.setattr(fuzz_target, "deserialize", refuse)
    with pytest.raises(AssertionError, match="the reference refuses it"):
        run(target, b"0..." + GOOD)
    monkeypatch.setattr(fuzz_target, "deserialize", lambda data: [])
    with pytest.raises(AssertionError):
        run(target, b"0..." + GOOD)
