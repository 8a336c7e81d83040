"""The simulated hub: what it serves, how late, and whom it refuses; what is measured beside it."""

import asyncio
import json
import socket
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load

import probex_jax as px
from experiments.benchmarks.hub import Behaviour, Hub, server
from experiments.benchmarks.repository import approximate
from experiments.benchmarks.repository.approximate import dimension
from experiments.benchmarks.repository.models import CLASSES, LAYER, SHAPE, Models
from probex_jax.model_files import Remote, open_model, read_stated
from tests.end_to_end import warm

REVISION = "/api/models/sim/0000007/revision/main"
CARD = "/sim/0000007/resolve/main/README.md"


@pytest.fixture
def address(monkeypatch):
    """A hub on localhost."""
    running = server(Behaviour(seed=3))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield url
        running.should_exit = True
        thread.join()


def test_a_model_is_read_as_it_is_made_and_only_its_layer(address):
    moved, made = [], Models(seed=3)
    for number in (7, 1_234_567):
        with open_model(f"hf://sim/{number:07}", remote=Remote(on_bytes=moved.append)) as model:
            np.testing.assert_array_equal(model.matrix(LAYER), load(made.weights(number))[LAYER])
            assert sorted(read_stated(model).about) == sorted(made.labels(number))
    assert 2 * 4 * np.prod(SHAPE) < sum(moved) < len(made.weights(7))


def test_a_zoo_of_them_has_their_labels(tmp_path):
    made = Models(seed=3)
    made.write_zoo(tmp_path / "Sim", 20)
    zoo = px.scan(tmp_path / "Sim")
    assert len(zoo.models) == 20
    for model in zoo.models:
        number = int(model.id.rpartition("-")[2])
        assert model.stated_labels() == tuple(made.labels(number))
        with model.open() as file:
            np.testing.assert_array_equal(file.matrix(LAYER), load(made.weights(number))[LAYER])
    assert {model.split for model in zoo.models} == {"train", "val", "test"}


def test_those_that_are_drawn_together_are_like_those_that_are_made_one_by_one():
    made = Models(seed=3)
    together = made.heads(np.random.default_rng(0), 400)
    one_by_one = np.stack([load(made.weights(number))[LAYER] for number in range(400)])
    assert together.shape == (400, *SHAPE)
    for statistic in (np.mean, np.std):
        expected = statistic(one_by_one, axis=0)
        difference = np.linalg.norm(statistic(together, axis=0) - expected)
        assert difference < 0.15 * np.linalg.norm(expected)
    assert len({label for number in range(400) for label in made.labels(number)}) == CLASSES


def test_beyond_a_quota_it_refuses_until_the_window_ends():
    now = [1000.0]
    hub = Hub(Behaviour(quotas=(("api", 2), ("resolve", 1)), window_s=300), now=lambda: now[0])

    def status(path):
        return hub.answer(path, {})[1][0]

    assert [status(REVISION) for _ in range(3)] == [200, 200, 429]
    assert [status(CARD) for _ in range(2)] == [200, 429]
    _, (_, headers, _) = hub.answer(REVISION, {})
    assert headers["retry-after"] == "200"
    assert headers["ratelimit"] == '"api";r=0;t=200'
    assert headers["ratelimit-policy"] == '"fixed window";"api";q=2;w=300'
    now[0] += 200
    assert status(REVISION) == status(CARD) == 200


@pytest.mark.parametrize("late_ms", [0, 60])
def test_answers_are_as_late_as_it_is_told_and_counted(late_ms):
    hub = Hub(Behaviour(latency_ms=(("api", late_ms),), spread=0))
    sent = []

    async def send(message):
        sent.append(message)

    start = time.perf_counter()
    asyncio.run(hub({"path": REVISION, "method": "GET", "headers": []}, None, send))
    assert late_ms <= 1000 * (time.perf_counter() - start) < late_ms + 50
    listed = json.loads(sent[1]["body"])["siblings"]
    assert {file["rfilename"] for file in listed} > {"model.safetensors", "README.md"}
    assert hub.asked["api"] == 1
    assert hub.asked["bytes"] == len(sent[1]["body"])


def test_the_intrinsic_dimension_is_that_of_the_surface():
    rng = np.random.default_rng(0)
    for true in (2, 5):
        vectors = rng.uniform(size=(4000, true)) @ np.linalg.qr(rng.normal(size=(30, true)))[0].T
        vectors = np.concatenate([vectors, np.ones([4000, 1])], axis=1) * [*[0.2] * 30, 1]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert dimension(vectors) == pytest.approx(true, rel=0.15)


@pytest.mark.parity
def test_approximate_search_is_asked_of_the_index_that_was_built(tmp_path):
    vectors, folder = str(tmp_path / "v.npy"), str(tmp_path / "table")
    approximate.represented(vectors, "classes", 2000, 1)
    approximate.fill(folder, vectors, 2000)
    exact = approximate.ask(folder, vectors, 2000, "exact scan")
    built = approximate.build(folder, vectors, approximate.INDEXES["HNSW SQ"])
    assert built["MB"] > 2000 * 512 / 1e6
    again = approximate.build(folder, vectors, "")
    assert again["MB"] > 2000 * 512 / 1e6
    assert exact["recall@10"] == 1
    assert 0.95 < approximate.ask(folder, vectors, 2000, "ours")["recall@10"] <= 1


@pytest.mark.parity
def test_what_was_measured_is_not_measured_again(tmp_path):
    def run(*arguments):
        ended = warm.run("benchmarks.repository", f"--workdir={tmp_path}", *arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run("expert")
    sizes = ("index", "--readers=4", "--sizes=20,50", "--hub=--api_ms=5")
    first = run(*sizes)
    kept = json.loads((tmp_path / "results.json").read_text())
    pieces = [piece for name, piece in kept.items() if name.startswith("index ")]
    assert sorted((piece["added"], piece["rows"]) for piece in pieces) == [(20, 20), (30, 50)]
    for piece in pieces:
        assert piece["failed"] == 0
        assert piece["asked api"] == piece["added"]
        assert piece["asked resolve"] == 2 * piece["asked cdn"] == 4 * piece["added"]
        assert piece["driver peak, MiB"] > 50
    assert run(*sizes) == first
    assert "extrapolated" in first
    run("driver", "--sizes=0")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["driver 0"]["rows/s"] > 0
