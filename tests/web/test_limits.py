"""What is sent over HTTP, at limits that are small, in a thread."""

import asyncio
import errno
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from probex_jax.errors import ProbexError
from probex_jax.web import guard, uploads
from probex_jax.web.api import application
from probex_jax.web.catalogue import Catalogue, Described
from probex_jax.web.uploads import MAX_FILES
from probex_jax.web.work import Work
from tests.web.conftest import waited_for

FILE_BYTES = 4 * 2**20
DESCRIBE = "/api/describe"
SHORT_S = 0.5
FORM = "multipart/form-data; boundary=b"


class Known:
    """A catalogue that knows nothing, and counts who is read at the same time."""

    def __init__(self):
        self.forest, self.snapshots, self.family_tree = SimpleNamespace(trees={}), {}, ""
        self.reading, self.most, self.read = 0, 0, []
        self.waits_for_another = False
        self.lock, self.hub_answers = threading.Lock(), threading.Event()
        self.together = threading.Event()

    def describe(self, models):
        with self.lock:
            self.reading += 1
            self.most = max(self.most, self.reading)
            if self.reading == 2:
                self.together.set()
        model = models[0]
        if str(model.path).startswith("hf:"):
            self.hub_answers.wait(60)
        else:
            self.read.append(model.path.stat().st_size)
            if self.waits_for_another:
                self.together.wait(60)
                time.sleep(0.05)
        with self.lock:
            self.reading -= 1
        return [Described(model.name, None, "nothing is known") for model in models]

    def check(self, tree, k, where):
        if k < 1:
            raise ProbexError(f"k is {k}")

    def shown(self, error):
        return Catalogue.shown(SimpleNamespace(_roots=[]), error)


@pytest.fixture
def known():
    return Known()


@pytest.fixture
def held():
    made = uploads.Uploads(FILE_BYTES)
    yield made
    made.close()


@pytest.fixture
def address(known, held):
    app = application(known, held, Work(), hub=True)
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    config = uvicorn.Config(guard.Guard(app), http="h11", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    assert waited_for(lambda: server.started)
    yield "http://{}:{}".format(*listening.getsockname())
    known.hub_answers.set()
    server.should_exit = True
    thread.join(60)
    listening.close()
    assert not thread.is_alive()


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=60) as made:
        yield made


def form(*sizes, name="a.safetensors"):
    return [("files", (name, b"x" * size)) for size in sizes]


def opened(address, announced, sent=b"", kind=FORM, path=DESCRIBE):
    """A connection on which so many bytes were announced and some were sent."""
    host, port = address.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {announced}\r\n"
    raw.sendall(f"{head}Content-Type: {kind}\r\n\r\n".encode() + sent)
    return raw


def status(raw):
    return int(raw.recv(4096).split()[1])


PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nxxx'


@pytest.mark.parametrize(("kind", "announced"), [(FORM, 8 * FILE_BYTES), ("a/b", FILE_BYTES)])
def test_who_falls_silent_is_not_waited_for(address, held, monkeypatch, kind, announced):
    monkeypatch.setattr(guard, "_SILENCE_S", SHORT_S)
    with opened(address, announced, PART, kind) as raw:
        assert status(raw) == 408
    assert list(held.folder.iterdir()) == []


def test_silence_does_not_lock_others_out(address, client):
    silent = [opened(address, 8 * FILE_BYTES, PART) for _ in range(2)]
    assert client.post(DESCRIBE, files=form(FILE_BYTES)).status_code == 200
    for raw in silent:
        raw.close()


def test_a_body_of_two_lengths_is_refused(address, held):
    head = b"Transfer-Encoding: chunked\r\n\r\n"
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(
            f"POST {DESCRIBE} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n".encode() + head
        )
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.split()[1] == b"400"
    assert b"Content-Length" in answer
    assert list(held.folder.iterdir()) == []


def test_drops_do_not_hold_a_place(address, monkeypatch):
    monkeypatch.setattr(guard, "_SILENCE_S", SHORT_S)
    with opened(address, FILE_BYTES, kind="a/b") as raw:
        raw.settimeout(SHORT_S / 10)
        start = time.monotonic()
        while time.monotonic() - start < 20 * SHORT_S:
            raw.sendall(b"x")
            try:
                assert status(raw) == 408
                break
            except TimeoutError:
                continue
            except ConnectionError:  # it was answered just as another one was sent
                break
        else:
            pytest.fail("it is still waited for")


def test_after_its_end_a_body_is_waited_for_no_more(monkeypatch):
    """Whoever answers slowly listens meanwhile for the one who asked to leave."""
    monkeypatch.setattr(guard, "_SILENCE_S", SHORT_S)

    async def receive():
        if waits.pop():
            await asyncio.sleep(2 * SHORT_S)
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"x"}

    async def received():
        patiently = guard._with_timeouts(receive)
        return [(await patiently())["type"] for _ in range(2)]

    waits = [True, False]
    assert asyncio.run(received()) == ["http.request", "http.disconnect"]


def test_what_is_wrong_with_a_search_is_told_before_its_file_comes(address):
    with opened(address, FILE_BYTES, path="/api/search?k=0") as raw:
        assert status(raw) == 422


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (form(10, FILE_BYTES + 1), (413, "a.safetensors")),
        (form(*[1] * (MAX_FILES + 1)), (400, "more than 64 files")),
    ],
)
def test_forms_of_more_than_is_taken(client, held, files, says):
    answer = client.post(DESCRIBE, files=files)
    assert (answer.status_code, answer.json()["error"][: len(says[1])]) == says
    assert list(held.folder.iterdir()) == []


def test_a_disk_without_room(client, monkeypatch):
    monkeypatch.setattr(uploads, "_DISK_RESERVE", 2**60)
    for answer in (client.post(DESCRIBE, files=form(1)), client.post(DESCRIBE, content=b"x")):
        assert answer.status_code == 503
        assert "disk" in answer.text


@pytest.mark.parametrize("sent", [{"files": form(1)}, {"content": b"x"}], ids=["form", "file"])
def test_what_a_disk_says_names_no_path(client, held, monkeypatch, sent):
    def full(dir):
        raise OSError(errno.ENOSPC, "No space left on device", str(dir / "tmp123"))

    monkeypatch.setattr(uploads.tempfile, "mkdtemp", full)
    answer = client.post(DESCRIBE, **sent)
    assert answer.status_code == 507
    assert "No space left" in answer.text
    assert os.path.dirname(held.folder) not in answer.text


def test_long_names_are_cut(client):
    name = "\u6a21" * 110 + ".safetensors"
    [found] = client.post(DESCRIBE, files=form(1, name=name)).json()
    assert found["id"] == "\u6a21" * 36


@pytest.mark.parametrize("boundary", ["b" * 300, "b"])
def test_damaged_forms(client, boundary):
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    answer = client.post(DESCRIBE, content=b"no form", headers=kind)
    assert (answer.status_code, "form" in answer.text) == (400, True)


@pytest.mark.parametrize("kind", [FORM, FORM.replace("multipart", "Multipart")])
def test_a_form_that_breaks_off_is_refused(client, kind):
    begun = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n12'
    for content, status in ((begun, 400), (begun + b"\r\n", 400), (begun + b"\r\n--b--\r\n", 200)):
        answer = client.post(DESCRIBE, content=content, headers={"content-type": kind})
        assert answer.status_code == status


def test_a_form_without_files_is_told(client):
    answer = client.post(DESCRIBE, files={"file": (None, b"x")})
    assert (answer.status_code, "no files" in answer.json()["error"]) == (400, True)


def test_two_models_are_read_at_a_time(address, known):
    data = b"x" * (3 * 2**20)

    def described(number):
        url = f"{address}{DESCRIBE}?name={number}"
        return httpx.post(url, content=data, timeout=60).json()["id"]

    known.waits_for_another = True
    with ThreadPoolExecutor(8) as people:
        assert list(people.map(described, range(8))) == [str(number) for number in range(8)]
    assert known.read == [len(data)] * 8
    assert known.most == 2


def test_a_slow_hub_does_not_hold_up_files(address, client, known):
    def asked(number):
        return httpx.get(f"{address}{DESCRIBE}?model=me/m{number}", timeout=60)

    with ThreadPoolExecutor(3) as people:
        slow = [people.submit(asked, number) for number in range(3)]
        assert waited_for(lambda: known.reading == 2)
        assert client.post(DESCRIBE, content=b"x").json()["error"] == "nothing is known"
        assert not any(answer.done() for answer in slow)
        known.hub_answers.set()
        assert all(answer.result().json()["error"] == "nothing is known" for answer in slow)
