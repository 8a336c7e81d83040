"""The server as programs meet it: `/api`, limits, strangers."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from probex_jax.forest import Forest
from tests.forest.conftest import labels_of, write_member
from tests.hub import write_repo
from tests.web.conftest import LIMIT, waited_for

pytestmark = pytest.mark.xdist_group("web")

# As the page asks.
FOR_PAGE = {"accept": "text/html"}
FORM = [("file", ("a.safetensors", b"x")), ("file", ("b.safetensors", b"y"))]


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
        client.get("/map?index=Ant").text,
        client.get("/api/describe?id=m17&index=Ant").text,
        client.post("/api/describe", files=FORM).text,
        client.post("/api/describe", files=[("file", ("a", b"x" * (LIMIT + 1)))]).text,
    ]
    answers += [client.get(f"/api/search?query={n}", headers=FOR_PAGE).text for n in range(2)]
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
        ("POST", "search?query=x", b"x", 422, "query"),
        ("POST", "search?like=m17", b"x", 422, "like"),
        ("GET", "search?query=x&k=0", None, 422, "expected 1"),
        ("GET", "search?query=x&like=y", None, 422, "query or like"),
        ("GET", "search?query=x&k=many", None, 422, "k: "),
        ("GET", f"search?query={'x' * 1001}", None, 422, "at most"),
        ("GET", "search?query=x&index=Ant", None, 422, "Ant"),
        ("GET", "search?like=nobody&index=Ant", None, 422, "'nobody'"),
        ("GET", f"search?like={'x' * 5000}", None, 422, "at most"),
        ("GET", "search?like=%00%ed%a0%80&tree=%00", None, 422, "no model"),
        ("GET", "search?query=x&index=Zebra", None, 422, "Zebra"),
        ("GET", "describe?index=Ant", None, 422, "id or model"),
        ("GET", "describe?id=nobody&index=Ant", None, 422, "'nobody'"),
        ("GET", f"describe?id={'x' * 5000}", None, 422, "at most"),
        ("GET", f"describe?model={'x' * 5000}/%00", None, 422, "hub id"),
        ("POST", f"describe?name={'x' * 5000}%00%ff", b"x", 422, "safetensors"),
        ("GET", f"lineage?model={'x' * 5000}", None, 422, "at most"),
        ("GET", "../map?index=Zebra", None, 422, "Zebra"),
        ("GET", "../map?index=Ant&x=nan&y=1", None, 422, "position"),
        ("GET", "../map?index=Ant&x=here&y=1", None, 422, "numbers"),
    ],
)
def test_mistakes_are_one_line(client, method, path, content, status, says):
    answer = client.request(method, f"/api/{path}", content=content)
    assert answer.status_code == status
    [line] = answer.json()["error"].splitlines()
    assert says in line
    page = client.request(method, f"/api/{path}", content=content, headers=FOR_PAGE)
    assert page.status_code in (status, 200)
    assert page.headers["content-type"].startswith("text/html")
    assert "px-error" in page.text


def test_what_the_page_is_answered_is_html(client, hidden):
    found = client.get("/api/search?query=a+red+ant", headers=FOR_PAGE).text
    assert "<li>" in found
    assert "&like" not in found.split("href")[1]
    described = client.post("/api/describe?name=mine", content=body(hidden[0]), headers=FOR_PAGE)
    assert described.text.count("<article") == 1


def test_a_form_of_several_files_is_a_list(client, hidden):
    files = [*FORM, ("file", ("../mine.safetensors", body(hidden[0])))]
    found = client.post("/api/describe", files=files).json()
    assert [one["id"] for one in found] == ["a", "b", "mine"]
    assert [one.get("tree") for one in found] == [None, None, "Ant"]
    with_json = [files[2], ("file", ("config.json", b"{}"))]
    assert [one["id"] for one in client.post("/api/describe", files=with_json).json()] == ["mine"]


def test_a_model_of_an_index_is_described_by_its_id(client):
    found = client.get("/api/describe?id=m17&index=Ant").json()
    assert (found["id"], found["tree"]) == ("m17", "Ant")
    assert "m17" not in {one["id"] for one in found["neighbours"]}


def test_maps_are_documents_that_reach_nothing(client):
    plain, starred = client.get("/map?index=Ant"), client.get("/map?index=Ant&x=1&y=2&name=<me>")
    assert plain.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src")
    assert "this model" not in plain.text
    assert "this model" in starred.text
    assert "&lt;me&gt;" in starred.text


def test_a_body_that_hides_its_length_is_cut_off(client, server):
    def chunks():
        for _ in range(LIMIT // 10_000 + 10):
            yield b"x" * 10_000

    assert client.post("/api/describe", content=chunks()).status_code == 413
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/api/describe", content=chunks(), headers=form).status_code == 400
    assert server.uploads() == []


@pytest.mark.parametrize(
    "path", ["/page.html", "/file=/etc/passwd", "/etc/passwd", "/../../etc/passwd", "/docs", "/%ff"]
)
def test_no_file_of_the_machine_is_there(address, path):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] == b"404"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/describe", {"content-type": "multipart/form-data"}, 400),
        ("/api/forest", {}, 405),
        ("/", {}, 405),
        (f"/api/describe?name={'x' * 20_000}", {}, 414),
    ],
)
def test_bodies_that_nobody_asked_for(client, path, headers, status):
    assert client.post(path, content=b"", headers=headers).status_code == status


def test_a_form_of_more_than_is_taken_is_refused_before_it_comes(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = f"POST /api/describe HTTP/1.1\r\nHost: {host}\r\nContent-Length: {20 * LIMIT}"
        raw.sendall(f"{head}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        assert raw.recv(4096).split()[1] == b"413"


def test_another_name_is_refused(client):
    assert client.get("/api", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api", headers={"host": "[::1"}).status_code == 421
    assert client.get("/api", headers={"host": "localhost:1234"}).status_code == 200


@pytest.mark.parametrize("form", ["multipart/form-data; boundary=b", "application/octet-stream"])
def test_who_leaves_in_the_middle_leaves_nothing(client, server, address, form):
    host, port = address.removeprefix("http://").split(":")
    part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a.safetensors"\r\n\r\n'
    assert server.uploads() == []
    with socket.create_connection((host, int(port))) as raw:
        head = f"POST /api/describe HTTP/1.1\r\nHost: {host}\r\nContent-Type: {form}\r\n"
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
    "name", ["https://host/a.safetensors", "datasets/a/b", "/etc/passwd", "../x"]
)
def test_no_address_but_a_model_s_of_the_hub(client, name):
    answer = client.get("/api/describe", params={"model": name})
    assert "hub id" in answer.json()["error"]
