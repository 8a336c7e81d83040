"""A hub on localhost: serves folders as Hugging Face's does, and misbehaves on demand.

    hub = Hub(root)  # root/models/<org>/<name>/<files>, root/datasets/<org>/<name>/<files>
    with hub.running() as url:
        HfApi(endpoint=url).model_info("org/name")

For another process, or by hand: `python -m tests.hub ROOT --port=0 --faults=.1`; the first line it
prints is the address.
"""

import argparse
import hashlib
import json
import re
import socket
import sys
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from probex_jax.buckets import Patience
from tests.hub_faults import MISBEHAVIOUR, OF_CONTENT, Answer, Dropped, Faults, misbehave
from tests.hub_repos import (
    NotFound,
    Repositories,
    front_matter,
    listed,
    sibling,
    tables,
    write_repo,
)

__all__ = ["IMPATIENT", "Faults", "Hub", "Request", "tables", "write_repo"]

# For a client that is to give up soon.
IMPATIENT = Patience(first_wait_s=0.001, longest_wait_s=0.002, too_many_s=(0.001,) * 4)

_CHUNK = 2**16
_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")
_DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Request:
    """A line of the log; of what is sent it counts what was handed to the socket.

    Args:
      number: of all requests.
      path: with the query, as it was asked for.
      file: "org/name/path" or "datasets/org/name/path", wherever it was asked for; "" for others.
      host: "127.0.0.1:port", or "localhost:port" as another host.
      begin: where in the file the body begins; None if the body is no part of it.
      fault: the fault or the misbehaviour, or None.
    """

    hub: "Hub"
    number: int
    method: str
    path: str
    range: str | None
    authorization: str | None
    host: str
    status: int | None = None
    bytes_sent: int = 0
    file: str = ""
    begin: int | None = None
    fault: str | None = None


class Hub:
    """What is served, how, and to whom; any of it may change while it runs.

    Args:
      root: the folder of `models/` and `datasets/`.
      redirects: whether files in LFS are answered with 302 to a signed link, which refuses
        requests that carry an Authorization header.
      relative_links: whether the link is of the same host; otherwise it names another one.
      page_size: entries of a page of a tree.
      quick_hashes: whether a file in LFS is hashed by path, size and time of change alone.

    Attributes:
      faults: what happens by chance.
      misbehave: path to kind (`MISBEHAVIOUR` and `OF_CONTENT`); the path is that of an
        address, or the end of one of a file: "org/name/a.safetensors", "a.safetensors".
      private, token: repositories for those only who show the token.
      log: a `Request` each.
    """

    def __init__(
        self, root, *, redirects=False, relative_links=False, page_size=1000, quick_hashes=False
    ):
        self.repositories = Repositories(root, quick_hashes=quick_hashes)
        self.commit_of = self.repositories.commit_of
        self.move = self.repositories.move
        self.tag = self.repositories.tag
        self.page_size = page_size
        self.log = []
        self.behave()
        self.redirects, self.relative_links = redirects, relative_links
        self.url = self.cdn_host = None
        self.stopping = threading.Event()
        self._links, self._expired = {}, 0
        self._lock = threading.Lock()

    def behave(self):
        """As it is at first, whatever a test has made of it; its log is empty."""
        self.faults, self.misbehave = Faults(), {}
        self.redirects = self.relative_links = False
        self.private, self.token = set(), None
        self.log.clear()

    @contextmanager
    def running(self, port=0):
        """Serves until the end of the block; gives the address."""
        self.stopping.clear()
        server = _Server(("127.0.0.1", port), _Handler)
        server.hub = self
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.cdn_host = f"localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        try:
            yield self.url
        finally:
            self.stopping.set()
            server.shutdown()
            server.hang_up()
            server.server_close()
            thread.join()
        if server.errors:
            raise ExceptionGroup("in the hub for tests", server.errors)

    def bytes_sent(self, suffix=""):
        """Bytes of bodies, of the files or else the addresses that end so."""
        return sum(r.bytes_sent for r in [*self.log] if _name(r).endswith(suffix))

    def served(self, file):
        """The ranges of a file that were sent, begin and end."""
        return [
            (r.begin, r.begin + r.bytes_sent)
            for r in [*self.log]
            if r.begin is not None and r.bytes_sent and _is(r, file)
        ]

    def expire_links(self):
        """Signed links given so far lead nowhere."""
        with self._lock:
            self._links.clear()
            self._expired += 1

    def link(self, repo, commit, path):
        """A signed link to a file."""
        with self._lock:
            digest = hashlib.sha256(f"{self._expired} {repo} {commit} {path}".encode()).hexdigest()
            link = f"/cdn/{digest[:32]}?Expires={self._expired}&Signature={digest[32:]}"
            self._links[link] = (repo, commit, path)
        return link if self.relative_links else f"http://{self.cdn_host}{link}"

    def linked(self, link):
        """The file of a link that has not expired."""
        with self._lock:
            return self._links.get(link)

    def logged(self, **what):
        """A new line of the log."""
        with self._lock:
            self.log.append(Request(self, len(self.log), **what))
            return self.log[-1]

    def misbehaviour(self, request):
        """The kind that was asked for, or None."""
        return next((kind for path, kind in [*self.misbehave.items()] if _is(request, path)), None)


def _name(request):
    return request.file or request.path


def _is(request, path):
    names = (f"/{request.file}", request.path.partition("?")[0])
    return any(name == path or name.endswith(f"/{path.lstrip('/')}") for name in names)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that they are joined

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.errors, self._open, self._lock = [], set(), threading.Lock()

    def process_request(self, request, client_address):
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self):
        """Ends what waits for clients."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        self.errors.append(sys.exception())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def do_GET(self):
        hub = self.server.hub
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        self.request_line = hub.logged(
            method=self.command,
            path=self.path,
            range=self.headers.get("Range"),
            authorization=self.headers.get("Authorization"),
            host=self.headers.get("Host", ""),
        )
        try:
            self._send(self._gone_wrong(self._answer()))
        except Dropped:
            self.close_connection = True

    do_HEAD = do_POST = do_GET

    def handle(self):
        with suppress(ConnectionError):  # the client hung up
            super().handle()

    def log_message(self, *_):
        pass

    def _answer(self):
        try:
            return self._route()
        except NotFound as error:
            code, message, commit = error.args
            known = {"X-Repo-Commit": commit} if commit else {}
            return _json({"error": message}, 404, **_error(code, message), **known)

    def _gone_wrong(self, answer):
        """The answer, or what chance and misbehaviour make of it."""
        request, faults = self.request_line, self.server.hub.faults
        fault = request.fault = faults.draw(request.method, request.path, request.range)
        if fault:
            return faults.apply(fault, answer)
        if kind := self.server.hub.misbehaviour(request):
            request.fault = kind  # now: some never return
            answer, request.fault = misbehave(kind, answer, request)
        return answer

    def _send(self, answer):
        request = self.request_line
        request.status = answer.status
        if isinstance(answer.content, Path):
            request.begin = answer.begin
        headers = dict(answer.headers)
        if "Transfer-Encoding" not in headers and headers.get("Connection") != "close":
            tail = sum(map(len, answer.tail))
            headers["Content-Length"] = answer.end - answer.begin + tail
        self.send_response(answer.status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if request.method == "HEAD":
            return
        with closing(_chunks(answer)) as chunks:
            for chunk in chunks:
                if answer.cut is not None and request.bytes_sent + len(chunk) > answer.cut:
                    chunk = chunk[: answer.cut - request.bytes_sent]
                    self.close_connection = True
                # Before it is sent: who has read it may look at the log at once.
                request.bytes_sent += len(chunk)
                if "Transfer-Encoding" in headers:
                    chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
                self.wfile.write(chunk)
                if answer.cut is not None and self.close_connection:
                    return
                if answer.pace and self.server.hub.stopping.wait(answer.pace):
                    raise Dropped

    def _route(self):
        path, _, query = self.path.partition("?")
        query = {key: values[-1] for key, values in parse_qs(query).items()}
        match [unquote(part) for part in path.split("/")[1:]]:
            case ["cdn", _]:
                return self._linked()
            case ["api", "models" | "datasets" as kind, org, name, *rest]:
                repo = f"{org}/{name}" if kind == "models" else f"datasets/{org}/{name}"
                return self._api(repo, rest or ["revision", "main"], query)
            case ["datasets", org, name, "resolve", revision, *file]:
                return self._resolve(f"datasets/{org}/{name}", revision, "/".join(file))
            case [org, name, "resolve", revision, *file]:
                return self._resolve(f"{org}/{name}", revision, "/".join(file))
        return _json({"error": "Not Found"}, 404)

    def _api(self, repo, asked, query):
        if refused := self._refused(repo):
            return refused
        repositories = self.server.hub.repositories
        kind, revision, *path = [*asked, "main"] if len(asked) == 1 else asked
        commit = repositories.commit_of(repo, revision)
        if kind == "revision":
            return _json(self._info(repo, commit, query.get("blobs") in ("true", "True", "1")))
        if kind == "tree":
            recursive = query.get("recursive") in ("true", "True", "1")
            entries = repositories.entries(repo, commit, "/".join(path), recursive=recursive)
            return self._page(entries, query)
        if kind == "paths-info" and self.command == "POST":
            entries = (repositories.entry(repo, commit, path) for path in self._paths())
            return _json([listed(entry) for entry in entries if entry])
        return _json({"error": "Not Found"}, 404)

    def _info(self, repo, commit, blobs):
        repositories = self.server.hub.repositories
        repo_id = repo.removeprefix("datasets/")
        readme = repositories.locate(repo, commit, "README.md")
        return {
            "_id": hashlib.sha1(repo.encode()).hexdigest()[:24],
            "id": repo_id,
            **({"modelId": repo_id} if repo == repo_id else {}),
            "author": repo_id.split("/")[0],
            "sha": commit,
            "createdAt": _DATE,
            "lastModified": _DATE,
            "private": repo in self.server.hub.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": front_matter(readme),
            "siblings": [sibling(file, blobs) for file in repositories.files(repo, commit)],
        }

    def _page(self, entries, query):
        begin = int(query.get("cursor", 0))
        end = begin + self.server.hub.page_size
        answer = _json([listed(entry) for entry in entries[begin:end]])
        if end < len(entries):
            path = self.path.partition("?")[0]
            following = urlencode(query | {"cursor": end})
            address = f"http://{self.headers['Host']}{path}?{following}"
            answer.headers["Link"] = f'<{address}>; rel="next"'
        return answer

    def _paths(self):
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
            return [paths] if isinstance(paths, str) else paths
        return parse_qs(self.body.decode()).get("paths", [])

    def _resolve(self, repo, revision, path):
        hub = self.server.hub
        self.request_line.file = f"{repo}/{path}"
        if refused := self._refused(repo):
            return refused
        commit = hub.commit_of(repo, revision)
        file = hub.repositories.file(repo, commit, path)
        headers = {"X-Repo-Commit": commit} | _linked_headers(file)
        if file.sha256 and hub.redirects:
            return Answer(302, headers | {"Location": hub.link(repo, commit, path)})
        return self._content(file, headers)

    def _linked(self):
        hub = self.server.hub
        found = hub.linked(self.path)
        if found:
            self.request_line.file = f"{found[0]}/{found[2]}"
        if self.request_line.authorization:
            return Answer.of(400, b"Only one auth mechanism allowed")
        if not found:
            return Answer.of(403, b"Request has expired")
        repo, commit, path = found
        # On the hub's own host it is the hub's client that follows, and asks for the commit.
        headers = {"X-Repo-Commit": commit} if hub.relative_links else {}
        return self._content(hub.repositories.file(repo, commit, path), headers)

    def _content(self, file, headers):
        """A file or a range of it."""
        name = file.path.split("/")[-1]
        headers = headers | {
            "ETag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream" if file.sha256 else "text/plain",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}",
        }
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if not asked or not unchanged or (asked[2] and int(asked[2]) < int(asked[1])):
            return Answer(200, headers, file.location, 0, file.size)
        if asked[3]:
            begin, end = max(0, file.size - int(asked[3])), file.size
        else:
            begin, end = int(asked[1]), min(file.size, int(asked[2] or file.size) + 1)
        if begin >= file.size:
            return Answer(416, {"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.size}"
        return Answer(206, headers, file.location, begin, end)

    def _refused(self, repo):
        hub, shown = self.server.hub, self.request_line.authorization
        if repo not in hub.private or (hub.token and shown == f"Bearer {hub.token}"):
            return None
        message = "Invalid username or password."
        if shown:
            message = "Invalid credentials in Authorization header"
        return _json({"error": message}, 401, **{"X-Error-Message": message})


def _chunks(answer):
    """The body; files are read by seeking, a chunk at a time."""
    size = 1 if answer.pace else _CHUNK
    flip = bytes(range(255, -1, -1)) if answer.flip else None
    if isinstance(answer.content, bytes):
        for begin in range(answer.begin, answer.end, size):
            yield answer.content[begin : min(begin + size, answer.end)].translate(flip)
    else:
        with answer.content.open("rb") as content:
            content.seek(answer.begin)
            for begin in range(answer.begin, answer.end, size):
                yield content.read(min(size, answer.end - begin)).translate(flip)
    yield from answer.tail


def _json(value, status=200, **headers):
    content = json.dumps(value).encode()
    return Answer.of(status, content, **{"Content-Type": "application/json", **headers})


def _error(code, message):
    return {"X-Error-Code": code, "X-Error-Message": message}


def _linked_headers(file):
    if not file.sha256:
        return {}
    return {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": file.size}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0, help="share of requests")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--redirects", action="store_true", help="files in LFS by signed links")
    parser.add_argument("--quick-hashes", action="store_true", help="do not read files in LFS")
    parser.add_argument("--token", help="what --private repositories ask for")
    parser.add_argument("--private", action="append", default=[], metavar="REPO")
    parser.add_argument(
        "--misbehave",
        action="append",
        default=[],
        metavar="PATH=KIND",
        help=", ".join([*MISBEHAVIOUR, *OF_CONTENT]),
    )
    arguments = parser.parse_args()
    hub = Hub(arguments.root, redirects=arguments.redirects, quick_hashes=arguments.quick_hashes)
    hub.faults = Faults.of(arguments.faults, arguments.seed)
    hub.private, hub.token = set(arguments.private), arguments.token
    hub.misbehave = dict(asked.rsplit("=", 1) for asked in arguments.misbehave)
    with hub.running(arguments.port) as url:
        print(url, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
