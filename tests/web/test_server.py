"""The server as programs meet it: `/api`, limits, strangers."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from probex_jax.forest import Forest
from probex_jax.web.guard import _EVENT
from tests.forest.conftest import labels_of, write_member
from tests.hub import write_repo
from tests.web.conftest import LIMIT, waited_for

pytestmark = pytest.mark.xdist_group("web")


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A model of Ant that says nothing of itself, and its classes."""
    path = write_member(tmp_path_factory.mktemp("hidden") / "m", 5, labels_of(5), of=1, metadata={})
    bare = {"dataset_chosen_targets": "[]"}
    return write_member(path.parent / "bare", 5, labels_of(5), of=1, metadata=bare), labels_of(5)


def body(model):
    return (model / "model.safetensors").read_bytes()


def test_forest_lists_trees_experts_and_indexes(client):
    trees = {tree["tree"]: tree for tree in client.get("/api/forest").json()["trees"]}
    assert set(trees) == {"Ant", "Bee", "ToyLoRA"}
    assert trees["Ant"]["root"] == "me/ant-root"
    assert trees["Bee"]["index"] is None
    assert trees["ToyLoRA"]["index"]["texts"]


def test_the_family_tree_is_a_page_and_a_model_has_its_relatives(client, trees):
    answer = client.get("/lineage")
    assert answer.headers["content-type"].startswith("text/html")
    assert "broken" in answer.text
    assert str(trees[0]) not in answer.text
    found = client.get("/api/lineage", params={"model": "m3"}).json()
    assert found["id"] == "m3"
    assert found["same_weights"] == ["m2"]
    assert [(edge["parent"], edge["kind"]) for edge in found["parents"]] == [("m1", "fine-tune")]
    unknown = client.get("/api/lineage", params={"model": "nobody"})
    assert (unknown.status_code, "nobody" in unknown.json()["error"]) == (422, True)


def test_search_by_text_finds_what_the_index_finds(client, indexes):
    found = client.get("/api/search", params={"query": "a red ant", "k": 7, "split": "test"})
    hits = indexes[0].search(query="a red ant", k=7, where="split = 'test'")
    assert [hit["id"] for hit in found.json()["hits"]] == [hit.id for hit in hits]
    assert found.json()["index"] == "ToyLoRA"


def test_search_by_text_filters_by_words(client):
    params = {"query": "a red ant", "text": "BLUE", "k": 50}
    texts = {hit["text"] for hit in client.get("/api/search", params=params).json()["hits"]}
    assert texts
    assert all("blue" in text for text in texts)


def test_search_like_a_model_of_the_index_leaves_it_out(client):
    of = client.get("/api/search", params={"query": "x", "k": 1}).json()["hits"][0]["id"]
    hits = client.get("/api/search", params={"like": of, "index": "ToyLoRA"}).json()["hits"]
    assert len(hits) == 10
    assert of not in {hit["id"] for hit in hits}


def test_search_by_example_finds_the_models_tree(client, indexes, trees):
    model = trees[0] / "Ant" / "test" / "m17"
    found = client.post("/api/search", content=body(model), params={"k": 3}).json()
    assert found["index"] == "Ant"
    assert found["hits"][0]["id"] == "m17"
    assert found["hits"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_describe_says_what_the_forest_says(client, forest_path, hidden):
    model, labels = hidden
    found = client.post("/api/describe?name=mine.safetensors", content=body(model)).json()
    expected = Forest.load(forest_path).describe(model)
    assert (found["tree"], found["predicted"]) == ("Ant", [p.label for p in expected.predicted])
    assert set(found["predicted"]) == set(labels)
    assert "# `mine.safetensors`" in found["card"]
    assert len(found["neighbours"]) == 5


def test_no_answer_holds_a_path(client, hidden, tmp_path, forest_path, trees):
    answers = [
        client.post("/api/describe", content=body(hidden[0])).text,
        client.post("/api/describe", content=b"nothing").text,
        client.post("/api/search", content=b"nothing").text,
        client.get("/api/search?query=x&index=Ant").text,
        client.get("/api/search?query=x&index=Zebra").text,
        client.get("/api/describe?model=a/b").text,
        client.get("/api/search?query=x&text=%00").text,
        client.get("/api/forest").text,
        client.get("/").text,
        client.get("/config").text,
        client.post("/gradio_api/upload", content=b"x").text,
        client.post("/gradio_api/upload", files=[("files", ("a", b"x" * (LIMIT + 1)))]).text,
        client.post(_EVENT, content=b"x").text,
    ]
    for answer in answers:
        assert "/tmp" not in answer
        assert str(Path.cwd()) not in answer
        assert str(forest_path) not in answer
        assert str(trees[0]) not in answer


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "says"),
    [
        ("POST", "describe", b"\xff" * 64, 422, "safetensors"),
        ("POST", "describe", b"", 422, "safetensors"),
        ("PUT", "describe", b"x" * (LIMIT + 1), 413, "larger"),
        ("GET", "search", None, 422, "query or like"),
        ("GET", "search?query=x&k=0", None, 422, "expected 1"),
        ("GET", "search?query=x&like=y", None, 422, "query or like"),
        ("GET", "search?query=x&k=many", None, 422, "k: "),
        ("GET", f"search?query={'x' * 1001}", None, 422, "at most"),
        ("GET", "search?query=x&index=Ant", None, 422, "Ant"),
        ("GET", "search?like=nobody&index=Ant", None, 422, "'nobody'"),
    ],
)
def test_mistakes_are_one_line(client, method, path, content, status, says):
    answer = client.request(method, f"/api/{path}", content=content)
    assert answer.status_code == status
    [line] = answer.json()["error"].splitlines()
    assert says in line


def test_a_body_that_hides_its_length_is_cut_off(client, server):
    def chunks():
        for _ in range(LIMIT // 10_000 + 10):
            yield b"x" * 10_000

    assert client.post("/api/describe", content=chunks()).status_code == 413
    assert client.post("/gradio_api/upload", content=chunks()).status_code == 411
    assert server.uploads() == []


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=setup.cfg",
        "/file=/etc/passwd",
        "/file/etc/passwd",
        "/gradio_api/proxy=http://localhost/",
        "/gradio_api/openapi.json",
        "/monitoring",
        "/docs",
    ],
)
def test_no_file_of_the_machine_is_there(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["/assets/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/blocks.py"]
)
def test_no_way_up_from_assets(address, path):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] in (b"403", b"404")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/gradio_api/upload", {"content-type": "text/plain"}, 400),
        ("/gradio_api/queue/join", {}, 404),
        ("/gradio_api/run/predict", {}, 400),
        ("/gradio_api/cancel", {}, 404),
        ("/config", {}, 404),
        (f"/api/describe?name={'x' * 20_000}", {}, 414),
    ],
)
def test_bodies_that_nobody_asked_for(client, path, headers, status):
    assert client.post(path, content=b"", headers=headers).status_code == status


def test_a_form_of_more_than_is_taken_is_refused_before_it_comes(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {20 * LIMIT}"
        raw.sendall(f"{head}\r\n\r\n".encode())
        assert raw.recv(4096).split()[1] == b"413"


@pytest.fixture(scope="module")
def event(client):
    """Sends an event of the page, whichever has so many inputs."""
    functions = client.get("/config").json()["dependencies"]

    def send(*data, session="s"):
        [function] = [f["id"] for f in functions if len(f["inputs"]) == len(data)][:1]
        said = {"data": data, "fn_index": function, "session_hash": session}
        # As httpx does not: with numbers that are none in JSON.
        kind = {"content-type": "application/json"}
        return client.post(_EVENT, content=json.dumps(said), headers=kind)

    return send


def searching(
    query="x", index="ToyLoRA", tree="", split="", words="", attributes="", sort="", k=12
):
    """What a search reads."""
    return query, index, None, None, tree, split, words, attributes, sort, k


@pytest.fixture
def outside(tmp_path, trees):
    """A model of the server's that nobody sent."""
    private = tmp_path / "private.safetensors"
    private.write_bytes(body(trees[0] / "Ant" / "test" / "m17"))
    return private


def named(path, **more):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}


def test_no_event_names_a_file_that_was_not_sent(event, outside, forest_path):
    for path in (
        outside,
        "/etc/passwd",
        "/dev/zero",
        "../../../etc/passwd",
        f"{forest_path}/forest.json",
        "http://localhost/x.safetensors",
        "https://example.org/1TB.bin",
    ):
        for data in ([[named(path)]], [[named(path, is_stream=True)]], [[{"url": str(path)}]]):
            assert event(*data).status_code == 400
        # Gradio takes what looks like a file for one wherever it stands.
        assert event(*searching(named(path))).status_code == 400
        assert event(*searching(split={"a": [named(path)]})).status_code == 400


@pytest.mark.parametrize(
    "said",
    [
        [],
        {},
        {"fn_index": 999, "data": []},
        {"fn_index": "1", "data": [""] * 8},
        {"fn_index": None, "data": []},
        {"fn_index": [1], "data": [""] * 8},
        {"fn_index": 1, "data": [""] * 7},
        {"fn_index": 1, "data": {"a": 1}},
        {"fn_index": 1},
    ],
)
def test_events_that_the_page_does_not_have(client, said):
    if isinstance(said, dict):
        said = said | {"session_hash": "s"}
    answer = client.post(_EVENT, json=said)
    assert (answer.status_code, answer.text.count("\n")) == (400, 1)


@pytest.mark.parametrize("session", [None, 7, "", "x" * 101])
def test_events_of_no_session(event, session):
    assert event(*searching(), session=session).status_code == 400


def test_long_events_are_refused(event):
    assert event(*searching("x" * 300_000)).status_code == 400


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "wrong",
    [nested(0), nested(600), {"a": 1}, [1], {"path": "a"}],
    ids=lambda value: str(value)[:9],
)
def test_values_of_the_wrong_kind_are_refused(event, wrong):
    for answer in (event(*searching(wrong)), event(*searching(k=wrong)), event([wrong])):
        assert (answer.status_code, answer.text.count("\n")) == (400, 1)
    for answer in (event(wrong), event("x"), event(None)):
        assert answer.status_code in (200, 400)


@pytest.mark.parametrize(
    "wrong",
    [None, 7, True, float("nan"), 1e400, -(10**400), "zebra"],
    ids=lambda value: str(value)[:9],
)
def test_odd_values_are_answered(event, wrong):
    for field in ("query", "index", "tree", "split", "words", "attributes", "sort", "k"):
        assert event(*searching(**{field: wrong})).status_code == 200


def test_gradio_keeps_nothing_of_what_it_is_told(event, server):
    """200 KB an event and visit would be 50 MB, the visits themselves are 20."""
    event(*searching(words="x" * 200_000))

    def resident():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    before = resident()
    for number in range(250):
        event(*searching(words="x" * 200_000), session=f"visit{number}")
    assert resident() - before < 45


def test_files_are_named_by_what_nobody_guesses(client, server, hidden):
    files = [("files", (f"../{n}.safetensors", body(hidden[0]))) for n in range(2)]
    names = client.post("/gradio_api/upload", files=files).json()
    assert len(set(names)) == 2
    assert all(name.count("/") == 1 and len(name.split("/")[0]) >= 8 for name in names)
    assert sorted(path.name for path in server.uploads()) == ["0.safetensors", "1.safetensors"]
    again = client.post("/gradio_api/upload", files=files).json()
    assert not set(again) & set(names)
    for path in server.uploads():
        path.unlink()


def test_another_name_is_refused(client):
    assert client.get("/api", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api", headers={"host": "[::1"}).status_code == 421
    assert client.get("/api", headers={"host": "localhost:1234"}).status_code == 200


@pytest.mark.parametrize("path", ["/api/describe", "/gradio_api/upload"])
def test_who_leaves_in_the_middle_leaves_nothing(client, server, address, path):
    host, port = address.removeprefix("http://").split(":")
    form = "multipart/form-data; boundary=b" if "upload" in path else "application/octet-stream"
    part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a.safetensors"\r\n\r\n'
    assert server.uploads() == []
    with socket.create_connection((host, int(port))) as raw:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {form}\r\n"
        raw.sendall(f"{head}Content-Length: 900000\r\n\r\n{part}".encode() + b"x" * 500_000)
        assert waited_for(server.uploads)
    assert waited_for(lambda: not server.uploads())
    assert client.get("/api").status_code == 200


def test_fifty_searches_and_twenty_descriptions_at_once(address, hidden):
    data = body(hidden[0])

    def search(number):
        params = {"query": f"a red ant {number}"}
        return httpx.get(f"{address}/api/search", params=params, timeout=120).json()["hits"]

    def describe(number):
        url = f"{address}/api/describe?name={number}.safetensors"
        return httpx.post(url, content=data, timeout=120).json()

    with ThreadPoolExecutor(50) as people:
        hits = people.map(search, range(50))
        described = people.map(describe, range(20))
        assert all(len(found) == 10 for found in hits)
        assert [found["id"] for found in described] == [f"{n}.safetensors" for n in range(20)]


def test_models_of_the_hub(client, hub_root, hidden):
    write_repo(hub_root, "models", "me/mine", {"model.safetensors": body(hidden[0])})
    found = client.get("/api/describe", params={"model": "me/mine"}).json()
    assert (found["id"], found["tree"]) == ("me/mine", "Ant")
    assert set(found["predicted"]) == set(hidden[1])
    lost = client.get("/api/describe", params={"model": "me/none"})
    assert lost.status_code == 422
    assert "me/none" in lost.json()["error"]


@pytest.mark.parametrize(
    "name", ["https://host/a.safetensors", "datasets/a/b", "/etc/passwd", "../x", ""]
)
def test_no_address_but_a_model_s_of_the_hub(client, name):
    answer = client.get("/api/describe", params={"model": name})
    assert "hub id" in answer.json()["error"]
