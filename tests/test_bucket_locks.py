"""One writer of a folder in a bucket, by lock objects on a server of S3 on localhost."""

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

import probex_jax as px
from probex_jax import bucket_locks
from probex_jax.bucket_paths import as_path
from probex_jax.claims import claim
from probex_jax.files import WRITER_LOCK, one_writer, read_json, write_json
from tests import s3


@pytest.fixture
def folder(server, request):
    return as_path(f"s3://{s3.BUCKET}/{request.node.name}")


def elsewhere(function):
    """What a function gives in another thread, which is as good as another process here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def enter(folder):
    with one_writer(folder):
        return True


def test_a_second_writer_is_told_of_the_first(folder):
    with one_writer(folder), one_writer(folder):
        claim(folder, {"epochs": 1})
        with pytest.raises(px.ProbexError, match=r"pid \d+ on .* since 20"):
            elsewhere(lambda: enter(folder))
    assert elsewhere(lambda: enter(folder))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_lock_is_ours_even_if_the_answer_was_lost(server, folder):
    server.loses = f"/{WRITER_LOCK}"
    with one_writer(folder):
        pass
    assert server.loses == "/"
    assert not folder.exists()


def test_one_at_a_time_even_if_answers_are_lost(server, folder):
    inside, most, lock = [], [], threading.Lock()

    def work(number):
        for _ in range(100):
            with suppress(px.ProbexError), one_writer(folder):
                with lock:
                    inside.append(number)
                    most.append(len(inside))
                time.sleep(0.01)
                with lock:
                    inside.remove(number)
                return True
            time.sleep(0.1)
        return False

    server.share = 0.1
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        server.share = 0.0
    assert set(most) == {1}
    assert not (folder / WRITER_LOCK).exists()


@pytest.mark.parity
def test_a_lock_is_kept_as_long_as_its_holder_lives(folder, monkeypatch):
    monkeypatch.setattr(bucket_locks, "STALE_S", 1.5)
    with one_writer(folder):
        time.sleep(2)
        with pytest.raises(px.ProbexError, match="another process"):
            elsewhere(lambda: enter(folder))
        write_json(folder / "a.json", 1)


def test_who_lost_the_lock_writes_no_more(folder, monkeypatch):
    with one_writer(folder):
        (folder / WRITER_LOCK).write_bytes(b"another's")
        monkeypatch.setattr(bucket_locks, "STALE_S", 0.0)  # as if much time had passed
        with pytest.raises(px.ProbexError, match="another process"):
            write_json(folder / "a.json", 1)
    assert [path.name for path in folder.iterdir()] == [WRITER_LOCK]


def test_who_lost_the_lock_leaves_it_to_the_other(folder):
    with one_writer(folder):
        (folder / WRITER_LOCK).write_bytes(b"another's")
    assert (folder / WRITER_LOCK).read_bytes() == b"another's"


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_what_fails_at_the_end_hides_no_error(server, folder, method):
    """The lock is written anew by a PUT, and deleted by a POST to the bucket."""

    def fail():
        with one_writer(folder):
            server.refuses = method, WRITER_LOCK if method == "PUT" else s3.BUCKET
            raise KeyError

    try:
        with pytest.raises(KeyError):
            fail()
    finally:
        server.refuses = "", ""


class _Google(BaseHTTPRequestHandler):
    """What of Google's storage a lock needs; versions are numbers there, tags do not count."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, tuple[int, bytes]]] = {}
    numbers = itertools.count(1)

    def do_PUT(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        number, _ = self.objects.get(self.path, (0, b""))
        asked = self.headers.get("x-goog-if-generation-match", str(number))
        if asked != str(number):
            return self._answer(412)
        self.objects[self.path] = next(self.numbers), data
        return self._answer(200, number=self.objects[self.path][0])

    def do_GET(self):
        if "?" in self.path:  # a list
            return self._answer(200, b"<ListBucketResult></ListBucketResult>")
        if self.path not in self.objects:
            return self._answer(404)
        return self._answer(200, self.objects[self.path][1], self.objects[self.path][0])

    do_HEAD = do_GET

    def do_DELETE(self):
        self._answer(204 if self.objects.pop(self.path, None) else 404)

    def _answer(self, status, body=b"", number=0):
        self.send_response(status)
        self.send_header("ETag", '"the same"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.send_header("x-goog-generation", str(number))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        """Says nothing."""


def test_google_tells_versions_by_their_numbers(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Google)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    about = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps({**about, "gcs_base_url": url}))
    monkeypatch.setenv("GOOGLE_BASE_URL", url)
    folder = as_path("gs://models/x")
    with one_writer(folder):
        with pytest.raises(px.ProbexError, match="pid"):
            elsewhere(lambda: enter(folder))
        monkeypatch.setattr(bucket_locks, "STALE_S", 0.0)  # as if it had to be written anew
        write_json(folder / "a.json", 1)
        (folder / WRITER_LOCK).write_bytes(b"another's")
        with pytest.raises(px.ProbexError, match="another process"):
            write_json(folder / "a.json", 2)
    assert read_json(folder / "a.json") == 1
    server.shutdown()
    server.server_close()
