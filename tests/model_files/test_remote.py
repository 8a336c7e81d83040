"""Models on servers: what is asked for, and that it is what lies there."""

import itertools

import huggingface_hub
import numpy as np
import pytest

import probex_jax as px
from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, Remote, open_model
from probex_jax.model_files.remote import FIRST_BYTES, merged
from tests import hub as server
from tests.hub import Faults, write_repo
from tests.model_files.remote import (
    FAR,
    SIZE,
    asked,
    lora,
    model,
    other_dtypes,
    random,
    same,
    served,
    sharded,
)


@pytest.fixture
def url(hub):
    """The address of a file as of any server's, not of the hub."""

    def address(repo, path="model.safetensors"):
        return f"{hub.url.replace('127.0.0.1', 'localhost')}/{repo}/resolve/main/{path}"

    return address


@pytest.mark.parametrize("make", [model, sharded, lora, other_dtypes])
def test_as_on_the_disk(hub, make):
    repo = f"same/{make.__name__}"
    folder = make(hub, repo)
    with open_model(folder) as local, open_model(f"hf://{repo}") as remote:
        assert (remote.layers, remote.left_out) == (local.layers, local.left_out)
        assert (remote.metadata, remote.config) == (local.metadata, local.config)
        together = remote.matrices(local.layers)
        assert list(together) == list(local.layers)
        for name in local.layers:
            same(together[name], local.matrix(name))
            same(remote.matrix(name), local.matrix(name))
            rows = [3, 0, 3, 1]
            same(remote.rows(name, rows), local.rows(name, rows))
        for name in local.tensors:
            same(remote.tensor(name), local.tensor(name))
        assert px.model_files.fingerprint(remote) == px.model_files.fingerprint(local)


def test_one_request_opens_a_model_and_one_reads_a_matrix(hub, url):
    model(hub, "one/model")
    with open_model("hf://one/model") as m:
        assert [request.path.partition("?")[0] for request in hub.log] == [
            "/api/models/one/model/revision/main",
            f"/one/model/resolve/{hub.commit_of('one/model')}/model.safetensors",
        ]
        assert asked(hub) == [(0, FIRST_BYTES - 1)]
        hub.log.clear()
        same(m.matrix("d"), FAR["d"])
        begin = m._stored.place("d")[1]
        assert asked(hub) == [(begin, begin + SIZE - 1)]
        assert hub.bytes_sent() == SIZE
    hub.log.clear()
    with open_model(url("one/model")) as m:
        assert asked(hub) == [(0, FIRST_BYTES - 1)]
        same(m.rows("d", [7, 200]), FAR["d"][[7, 200]])
        assert len(hub.log) == 3
        assert hub.bytes_sent() == FIRST_BYTES + 2 * 1024


@pytest.mark.parametrize("make", [model, sharded, lora])
def test_rows_of_several_layers_are_fetched_together(hub, make):
    repo = f"rows/{make.__name__}"
    folder = make(hub, repo)
    with open_model(folder) as local, open_model(f"hf://{repo}") as remote:
        wanted = {name: None if name == "a" else [7, 2] for name in local.layers}
        with remote.fetched(wanted):
            hub.log.clear()
            for name, rows in wanted.items():
                rows = rows or range(local.layers[name].shape[0])
                same(remote.rows(name, rows), local.rows(name, rows))
            assert not asked(hub, ".safetensors")
        hub.log.clear()
        far = [name for name in wanted if name in "bcd"][-1:]
        for name in far:
            same(remote.rows(name, [7, 2]), local.rows(name, [7, 2]))
        assert len(asked(hub)) == 2 * len(far)
        assert hub.bytes_sent() == 2 * 1024 * len(far)


def test_what_the_first_request_brought_is_not_asked_for_again(hub):
    model(hub, "first/small", {"w": random((8, 8)), "v": random((8, 8), seed=1)})
    with open_model("hf://first/small") as m:
        m.matrices("wv")
        m.matrix("w")
        m.matrices(["v"])
    assert len(hub.log) == 2
    model(hub, "first/large")
    with open_model("hf://first/large") as m:
        hub.log.clear()
        same(m.matrix("a"), FAR["a"])
    assert asked(hub)[0][0] == FIRST_BYTES


def test_close_ranges_are_one_request_and_far_ones_are_not(hub, monkeypatch):
    tensors = {"a": FAR["a"], "b": random((64, 100)), "c": random((64, 100)), "d": FAR["d"]}
    tensors |= {"e": random((64, 100), seed=2)}
    model(hub, "close/model", tensors)
    moved = []
    with open_model("hf://close/model", remote=Remote(on_bytes=moved.append)) as m:
        hub.log.clear()
        del moved[:]
        read = m.matrices(["e", "b", "c", "b"])
        for name in "bce":
            same(read[name], tensors[name])
        of = {name: m._stored.place(name)[1] for name in "bce"}
        assert sorted(asked(hub)) == [(of["b"], of["c"] + 25599), (of["e"], of["e"] + 25599)]
        assert sum(moved) == hub.bytes_sent() == 3 * 64 * 100 * 4
        hub.log.clear()
        m.matrices("ac")  # b between them is not small beside them
        assert len(asked(hub)) == 2


def test_merged():
    assert merged([]) == []
    assert merged([(5, 9), (0, 5)]) == [(0, 9)]
    assert merged([(0, 100), (10, 20), (10, 20), (30, 30)]) == [(0, 100)]
    for size, gap in ((320_000, 10_000), (2**30, 64 * 1024)):
        after = size + gap
        assert merged([(0, size), (after, after + size)]) == [(0, after + size)]
        two = [(0, size), (after + 1, after + 1 + size)]
        assert merged(two) == two


@pytest.mark.parametrize("seed", range(20))
def test_what_is_merged_holds_what_was_asked_for_and_little_else(seed):
    rng = np.random.default_rng(seed)
    begins = rng.integers(0, 10 ** rng.integers(3, 10), 50)
    ranges = [(int(b), int(b + n)) for b, n in zip(begins, rng.integers(1, 10**5, 50), strict=True)]
    found = merged(ranges)
    assert all(any(a <= begin and end <= b for a, b in found) for begin, end in ranges)
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(found))
    asked_for = sum(end - begin for begin, end in ranges)
    gaps = sum(b - a for a, b in found) - asked_for
    assert gaps <= len(ranges) * min(64 * 1024, asked_for / 64)


def test_large_ranges_are_several_requests(hub):
    large = {"a": random((8, 8)), "z": random((2048, 2560))}  # 20 MB
    model(hub, "large/model", large)
    with open_model("hf://large/model") as m:
        begin = m._stored.place("z")[1]
        hub.log.clear()
        same(m.matrix("z"), large["z"])
    ranges = sorted(asked(hub))
    assert len(ranges) == 3
    assert (ranges[0][0], ranges[-1][1]) == (FIRST_BYTES, begin + large["z"].nbytes - 1)
    assert all(b + 1 == c for (_, b), (c, _) in itertools.pairwise(ranges))


def test_a_long_header_takes_one_request_more(hub):
    model(hub, "header/long", {"w": random((4, 4))}, metadata={"text": "x" * 200_000})
    with open_model("hf://header/long") as m:
        assert len(m.metadata["text"]) == 200_000
        assert served(hub) == 2
        assert asked(hub)[1][0] == FIRST_BYTES
        same(m.matrix("w"), random((4, 4)))
    with pytest.raises(ProbexError, match="the header is 200"):
        open_model("hf://header/long", Limits(header_bytes=150_000))


def test_a_config_is_asked_for_when_it_is_needed(hub):
    other_dtypes(hub, "config/model")
    with open_model("hf://config/model") as m:
        assert not any(r.file.endswith("config.json") for r in hub.log)
        assert m.config == m.config == {"model_type": "vit"}
        assert sum(r.file.endswith("config.json") for r in hub.log) == 1
        assert m.beside("nothing.json") == {}


def test_factors_of_an_adapter_are_one_request(hub, url):
    path = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        "A": FAR["a"],  # so that what follows is not in the first request
        f"{path}.alpha": np.array(2, "f4"),
        f"{path}.lora_down.weight": random((8, 64), seed=1),
        f"{path}.lora_up.weight": random((64, 8)),
    }
    folder = model(hub, "alpha/kohya", tensors, name="kohya.safetensors")
    with open_model(folder) as local, open_model("hf://alpha/kohya") as m:
        (layer,) = (name for name in m.layers if m.layers[name].kind == "lora")
        hub.log.clear()
        same(m.matrices([layer])[layer], local.matrix(layer))
        assert len(hub.log) == 1
    lora(hub, "alpha/peft")
    with open_model(url("alpha/peft", "adapter_model.safetensors")) as m:
        (up,) = (m.matrix(name).up for name in m.layers)
        np.testing.assert_array_equal(up, 3 * random((32, 4), seed=1))


@pytest.mark.parametrize("redirects", [False, True])
def test_faults_make_no_difference(hub, redirects):
    hub.redirects = redirects
    sharded(hub, f"faults/sharded{redirects}")
    for seed in range(4):
        hub.faults = Faults(seed, 0.05, 0.05, 0.05, 0.05)
        with open_model(f"hf://faults/sharded{redirects}") as m:
            for name, matrix in m.matrices("abcd").items():
                same(matrix, FAR[name])
            for name in "abcd":
                same(m.rows(name, range(0, 256, 100)), FAR[name][::100])
    assert {r.fault for r in hub.log} == {None, "too_many", "unavailable", "dropped", "truncated"}


def test_redirects_are_followed_and_may_expire(hub):
    hub.redirects = True
    model(hub, "links/model")
    with open_model("hf://links/model") as m:
        same(m.matrix("b"), FAR["b"])
        hub.expire_links()
        same(m.matrix("c"), FAR["c"])
    assert [r.path.split("/")[1] for r in hub.log] == ["api", *["links", "cdn"] * 3]


def test_the_end_of_a_file_is_asked_for_by_its_size(hub, url):
    folder = model(hub, "size/model", {"w": random((4, 4))})
    size = (folder / "model.safetensors").stat().st_size
    open_model("hf://size/model").close()
    assert asked(hub) == [(0, size - 1)]
    write_repo(hub.repositories.root, "models", "size/none", {"model.safetensors": b""})
    with pytest.raises(ProbexError, match="0 bytes are too few"):
        open_model("hf://size/none")
    with pytest.raises(ProbexError, match="is it empty"):
        open_model(url("size/none"))


def test_connections_are_used_again(hub, monkeypatch):
    connections = []
    process = server._Server.process_request
    monkeypatch.setattr(
        server._Server, "process_request", lambda *a: (connections.append(a), process(*a))
    )
    huggingface_hub.close_session()
    hub.redirects = True
    for number in range(4):
        model(hub, f"again/model{number}", {"w": random((4, 4))})
        open_model(f"hf://again/model{number}").close()
    assert len(connections) <= 3  # the API's, the hub's, and that of the links
