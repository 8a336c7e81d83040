"""S3 on localhost: moto's server, which may fail by chance with a seed."""

import contextlib
import http.client
import logging
import os
import random
import threading
from urllib.parse import urlsplit

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from probex_jax.buckets import write

BUCKET = "models"
_BUSY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, *args):
        """Says nothing."""


class Faulty:
    """An application of which a share of the requests fails, before or after it has done its work.

    Args:
      app: the application.
      share: of the requests.
      seed: of the choice.

    Attributes:
      asked, failed: how many requests there were, and how many of them failed.
      sent: bytes of answers.
      loses: an end of paths; the next answer for one is lost.
      cuts_lists: every how many lists of objects one breaks off; 0 for none.
      refuses: a method, and an end of paths for which it is forbidden.
    """

    def __init__(self, app, share, seed=0):
        self._app, self.share, self.failed, self.asked = app, share, 0, 0
        self.refuses, self.loses, self.sent = ("", ""), "/", 0
        self.cuts_lists, self._lists = 0, 0
        self._random, self._lock = random.Random(seed), threading.Lock()

    def __call__(self, environ, start_response):
        with self._lock:
            self.asked += 1
            fails = self._random.random() < self.share
            how = self._random.choice(("busy", "dropped", "lost", "cut")) if fails else ""
            self.failed += fails
            if environ["PATH_INFO"].endswith(self.loses):
                how, self.loses = "lost", "/"
            if self.cuts_lists and "list-type" in environ["QUERY_STRING"]:
                self._lists += 1
                how = how or "cut" * (self._lists % self.cuts_lists == 8)
        method, end = self.refuses
        if method == environ["REQUEST_METHOD"] and environ["PATH_INFO"].endswith(end):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        if how == "busy":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", str(len(_BUSY)))])
            return [_BUSY]
        if how == "dropped":
            _hang_up(environ)
        found = self._app(environ, start_response)
        if how == "lost":  # done, and nobody hears of it
            list(found)
            _hang_up(environ)
        return self._cut(environ, found) if how == "cut" else self._counted(found)

    def _counted(self, found):
        for piece in found:
            self.sent += len(piece)
            yield piece

    def _cut(self, environ, found):
        for piece in found:
            yield piece[: len(piece) // 2]
            _hang_up(environ)


def _hang_up(environ):
    environ["werkzeug.socket"].shutdown(2)
    raise ConnectionAbortedError


@contextlib.contextmanager
def serving(faults=0.0):
    """An empty bucket, and the environment by which all find it, until the end.

    Yields:
      The application, whose `share` of faults can be changed.
    """
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = Faulty(DomainDispatcherApplication(create_backend_app), 0.0)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    app.env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for method, path in (("POST", "/moto-api/reset"), ("PUT", f"/{BUCKET}")):
        connection = http.client.HTTPConnection(urlsplit(app.env["AWS_ENDPOINT_URL"]).netloc)
        connection.request(method, path)
        assert connection.getresponse().status == 200
        connection.close()
    app.share, before = faults, dict(os.environ)
    os.environ |= app.env
    try:
        yield app
    finally:
        for name in app.env:
            os.environ.pop(name, None)
        os.environ |= {name: before[name] for name in app.env if name in before}
        server.shutdown()
        thread.join()
        server.server_close()


def put(folder, url):
    """Puts a folder of the disk into a bucket; returns its address there."""
    for path in folder.rglob("*"):
        if path.is_file():
            write(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url
