"""Models on servers: what is held in memory, also of lists; threads that read one model."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import Remote, open_model
from probex_jax.model_files.remote import FIRST_BYTES
from tests import hub as server
from tests.model_files.remote import FAR, model


@contextmanager
def asked_again(hub):
    """What is read meanwhile is asked for: it was not kept."""
    hub.log.clear()
    yield
    assert hub.log


def test_what_was_read_is_not_kept_and_a_closed_model_reads_nothing(hub):
    model(hub, "memory/model")
    with open_model("hf://memory/model") as m:
        m.matrices("bd")
        with asked_again(hub):
            m.matrix("b")
        with pytest.raises(ProbexError, match="no layer"):
            m.matrices(["b", "x"])
        with asked_again(hub):
            m.rows("d", [1, 255])
    m.close()
    hub.log.clear()
    for read in (lambda: m.matrix("a"), lambda: m.matrices("d"), lambda: m.rows("d", [0, 9])):
        with pytest.raises(ValueError, match="closed"):
            read()
    assert not hub.log


def test_what_was_read_before_an_error_is_not_kept(hub):
    model(hub, "memory/nan", FAR | {"b": np.full((256, 256), np.nan, "f4")})
    with open_model("hf://memory/nan") as m:
        with pytest.raises(ProbexError, match=r"nan@\w{12}/model.safetensors: layer 'b': 65536"):
            m.matrices("bd")
        with asked_again(hub):
            m.matrix("d")


def test_threads_read_one_model(hub):
    model(hub, "threads/model")
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(6):
            names = rng.permutation([*"abcd"])[:2]
            for name, matrix in m.matrices(names).items():
                wrong.extend([name] * int((matrix != FAR[name]).any()))
            row = int(rng.integers(256))
            wrong.extend([row] * int((m.rows("c", [row, 3])[0] != FAR["c"][row]).any()))

    with open_model("hf://threads/model") as m, ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert not wrong


def test_huge_tensors_take_no_memory_before_they_are_read(hub, monkeypatch):
    tensor = {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, 2**40]}
    header = json.dumps({"w": tensor}).encode()
    path = model(hub, "huge/model") / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 2**40)
    monkeypatch.setattr(hub.repositories, "quick_hashes", True)
    empty = np.empty

    def limited(size, dtype):
        if size > 2**30:
            raise MemoryError
        return empty(size, dtype)

    monkeypatch.setattr(np, "empty", limited)
    with open_model("hf://huge/model") as m:
        hub.log.clear()
        for read in (lambda: m.matrix("w"), lambda: m.matrices("w")):
            with pytest.raises(ProbexError, match=r"no memory for 10995\d{8} bytes"):
                read()
        assert not hub.log
        assert not m.rows("w", [2**19 - 1]).any()


def test_a_config_that_is_too_long_is_not_read(hub):
    model(hub, "memory/config", {"w": FAR["a"]}, {"config.json": 2**24 + 1})
    with open_model("hf://memory/config") as m:
        hub.log.clear()
        with pytest.raises(
            ProbexError, match=r"config.json: 16777217 bytes, the limit is 16777216"
        ):
            _ = m.config
        assert hub.bytes_sent() == FIRST_BYTES


def test_lists_are_asked_for_once_of_a_commit(hub):
    """Also where a server's commits are shorter: branches are not taken for one another."""
    model(hub, "lists/one", {"w": FAR["a"]})
    model(hub, "lists/two", {"w": FAR["b"]})
    remote = Remote()

    def opened(address):
        hub.log.clear()
        with open_model(address, remote=remote) as m:
            return m.path, len([r for r in hub.log if r.path.startswith("/api/")])

    path, _ = opened("hf://lists/one")
    assert opened("hf://lists/one") == (path, 1)
    assert opened(path) == (path, 0)
    assert opened("hf://lists/two")[1] == 1


def test_branches_of_servers_with_short_commits(hub, monkeypatch):
    monkeypatch.setattr(server._Handler, "_info", lambda handler, repo, *_: {
        "sha": "abc1234", "siblings": [{"rfilename": f"{repo[-3:]}.safetensors", "size": 0}]
    })  # fmt: skip
    remote = Remote()
    for repo in ("short/one", "short/two"):
        model(hub, repo)
        with pytest.raises(ProbexError, match=f"{repo}@abc1234/{repo[-3:]}.safetensors: 0 bytes"):
            open_model(f"hf://{repo}", remote=remote)
