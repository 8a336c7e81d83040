"""Repositories on the hub, `hf://org/repo[@revision][/file]`: their commits and lists of files."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from probex_jax.buckets import NotThere, Refused, Unreachable, stores
from probex_jax.buckets.problems import HINTS
from probex_jax.errors import ProbexError
from probex_jax.model_files.remote import FIRST_BYTES, Remote, RemoteRanges, write_cached
from probex_jax.model_files.safetensors_header import MAX_INT
from probex_jax.model_files.untrusted_text import is_plain_path, json_object, quoted

_ADDRESS = re.compile(
    r"(?P<kind>datasets/)?(?P<id>\w[\w.-]*/\w[\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/\w+|[^/]+))?(?:/(?P<path>.+))?"
)
_PAGE = re.compile(
    r"/(?P<kind>datasets/)?(?P<id>\w[\w.-]*/\w[\w.-]*)"
    r"(?:/(?:resolve|blob|tree|raw)/(?P<revision>refs/(?:pr|convert)/\w+|[^/]+)(?:/(?P<path>.+))?)?/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{7,64}")  # servers other than the hub may use short ones
_MAX_LISTED = 200_000
_MAX_LISTING_BYTES = 64 * 2**20
_VALUES_A_FILE = 16
_MAX_HASH = 64
# Of Hugging Face, where its hub keeps files.
_OWN_HOST = re.compile(r"([\w.-]+\.)?(hf|huggingface)\.co", re.ASCII)
_MAX_REDIRECTS = 5
_OF_RANGES = (206, 416)  # the latter of an empty file

_T = TypeVar("_T")


@dataclass(frozen=True)
class HubAddress:
    """A repository, file or folder on the hub.

    Args:
      id: "org/repo".
      revision: a branch, tag or commit; "" for the main branch.
      path: of a file or folder in the repository; "" for the repository itself.
      kind: "model" or "dataset".
    """

    id: str
    revision: str = ""
    path: str = ""
    kind: str = "model"

    def __str__(self) -> str:
        kind = "datasets/" if self.kind == "dataset" else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{kind}{self.id}{revision}{f'/{self.path}' if self.path else ''}"


@dataclass(frozen=True)
class HubFile:
    """A file in a repository: its size in bytes and its hash, as far as the hub lists them."""

    size: int | None = None
    content: str = ""


@dataclass(frozen=True)
class HubRepo:
    """A repository at one commit.

    Args:
      id, kind: as in `HubAddress`.
      commit: 40 hexadecimal digits; everything is read at this commit.
      files: path in the repository to its entry in the hub's list.
    """

    id: str
    kind: str
    commit: str
    files: Mapping[str, HubFile]

    def open(self, path: str, remote: Remote, first: int = FIRST_BYTES) -> RemoteRanges:
        """Opens a file of the repository, with the user's token."""
        name = str(HubAddress(self.id, self.commit[:12], path, self.kind))
        prefix = "datasets/" if self.kind == "dataset" else ""
        url = f"{endpoint()}/{prefix}{self.id}/resolve/{self.commit}/{quote(path)}"
        known, headers = self.files.get(path, HubFile()), _token(name)
        if remote.own_hosts:  # obstore would follow the hub to any host
            url = _in_time(lambda its: _final(url, name, its), remote, name)
            headers = headers if _is_hub(url) else {}
        content = known.content or f"{self.kind} {self.id} {self.commit} {path}"
        return RemoteRanges(
            url,
            remote,
            name=name,
            headers=headers,
            size=known.size,
            content=content,
            etag="",  # a commit's file never changes, but the hub's hosts give it several
            first=first,
        )


def hub_address(url: str) -> HubAddress | None:
    """Where on the hub a URL is, or None where it is somewhere else.

    Raises:
      ProbexError: if it begins with hf:// and is not such an address.

    Example:
      >>> hub_address("hf://org/repo@v1/sub/a.safetensors")
      HubAddress(id='org/repo', revision='v1', path='sub/a.safetensors', kind='model')
      >>> hub_address("https://huggingface.co/org/repo/resolve/main/a.safetensors").path
      'a.safetensors'
    """
    if url.startswith("hf://"):
        found = _ADDRESS.fullmatch(url.removeprefix("hf://").rstrip("/"))
        if not found:
            raise ProbexError(f"{quoted(url)}: expected hf://org/repo, hf://org/repo@revision/file")
    else:
        parts, hub = _split(url), urlsplit(endpoint())
        if (parts.scheme, parts.netloc) != (hub.scheme, hub.netloc):
            return None
        found = _PAGE.fullmatch(unquote(parts.path.removeprefix(hub.path.rstrip("/"))))
        if not found:
            return None
    path = found["path"] or ""
    if path and not is_plain_path(path):
        raise ProbexError(f"{quoted(url)}: {quoted(path)} is not a plain path in a repository")
    revision = unquote(found["revision"] or "")
    return HubAddress(found["id"], revision, path, "dataset" if found["kind"] else "model")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.hostname and (parts.port is None or parts.port > 0):
            return parts
    except ValueError:
        pass
    raise ProbexError(f"{quoted(url)}: is not an address of a file on a server")


def endpoint() -> str:
    """The hub's address without a final slash: HF_ENDPOINT if set."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_repo(address: HubAddress, remote: Remote) -> HubRepo:
    """Requests a repository's commit and files from the hub; with a cache, once per commit.

    Raises:
      ProbexError: if there is no such repository or revision, or the hub cannot be reached.
    """
    key, path = _listing(address, remote)
    if key in remote.listings:
        return remote.listings[key]
    if path is not None and (known := _read_listing(path)) is not None:
        repo = HubRepo(address.id, address.kind, address.revision, known)
    else:
        repo = _in_time(lambda its: _asked(address, its), remote, str(address))
        # The list of a branch holds for its commit.
        key, path = _listing(replace(address, revision=repo.commit), remote)
        if path is not None:
            files = {name: [file.size, file.content] for name, file in repo.files.items()}
            write_cached(path, json.dumps(files).encode())
    if key:
        remote.listings[key] = repo
    return repo


def _listing(address: HubAddress, remote: Remote) -> tuple[str, Path | None]:
    """The key of a commit's list and its file in the cache; "" and None for a branch."""
    if not _COMMIT.fullmatch(address.revision):
        return "", None
    key = f"{endpoint()} {address.kind} {address.id} {address.revision}"
    file = f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    return key, None if remote.cache is None else remote.cache / file


def _in_time(work: Callable[[Remote], _T], remote: Remote, name: str) -> _T:
    """What work with the hub gives, unless patience ends before.

    Its thread is left to itself then: looking a host up and reading headers cannot be interrupted.
    """
    if remote.patience_s is None:
        return work(remote)
    found: Future[_T] = Future()
    its = replace(remote, stopped=threading.Event())

    def run() -> None:
        try:
            found.set_result(work(its))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return found.result(remote.patience_s)
    except TimeoutError:
        its.stopped.set()
        raise remote.silent(name) from None


def _is_hub(url: str) -> bool:
    return urlsplit(url)[:2] == urlsplit(endpoint())[:2]


def _final(url: str, name: str, remote: Remote) -> str:
    """The address that a file's address leads to."""
    return _answered(url, name, remote, lambda response: str(response.url), {"Range": "bytes=0-0"})


def _asked(address: HubAddress, remote: Remote) -> HubRepo:
    name = str(HubAddress(address.id, address.revision, kind=address.kind))
    url = f"{endpoint()}/api/{address.kind}s/{address.id}"
    revision = quote(address.revision or "main", safe="")
    try:
        said = _said(f"{url}/revision/{revision}?blobs=true", name, remote)
    except NotThere:
        if address.revision:
            raise
        said = _said(f"{url}?blobs=true", name, remote)  # for servers without revisions
    commit, siblings = said.get("sha"), said.get("siblings")
    if not isinstance(commit, str) or not _HASH.fullmatch(commit):
        raise ProbexError(f"{name}: expected a commit from the hub, got {quoted(commit)}")
    if _COMMIT.fullmatch(address.revision) and commit != address.revision:
        raise ProbexError(f"{name}: the hub answers with another commit, {commit}")
    if not isinstance(siblings, list) or len(siblings) > _MAX_LISTED:
        raise ProbexError(f"{name}: expected a list of files, at most {_MAX_LISTED}")
    checked = (_entry(sibling, name) for sibling in siblings)
    plain = {path: file for path, file in checked if is_plain_path(path)}
    return HubRepo(address.id, address.kind, commit, plain)


def _said(url: str, name: str, remote: Remote) -> dict[str, Any]:
    """An object of the hub's API."""

    def read(response: Any) -> dict[str, Any]:
        return _json(_body(response, name, remote.stopped), name)

    return _answered(url, name, remote, read)


def _answered(
    url: str,
    name: str,
    remote: Remote,
    read: Callable[[Any], _T],
    headers: Mapping[str, str] | None = None,
    redirects: int = 0,
) -> _T:
    """What `read` makes of an answer to the hub's client, which limits neither size nor time."""
    session, errors = _session(name)
    patience, problem, status = stores.PATIENCE, "", 0
    token = _token(name) if _is_hub(url) else {}
    asking = {
        "headers": {**token, **(headers or {}), "Accept-Encoding": "identity"},
        "timeout": remote.patience_s or patience.timeout_s,
        "follow_redirects": not remote.own_hosts,
    }
    waits, too_many = iter([0.0, *patience.waits_s()]), iter(patience.too_many_s)
    while (wait_s := next(too_many if status == 429 else waits, None)) is not None:
        if remote.stopped.wait(wait_s):
            raise ProbexError(f"{name}: interrupted")
        status = 0
        try:
            with session.stream("GET", url, **asking) as response:
                status = response.status_code
                problem = f"HTTP {status} {response.reason_phrase[:80]}"
                if status == 200 or (headers and status in _OF_RANGES):
                    return read(response)
                further = response.next_request and str(response.next_request.url)
        except _BrokenOff as error:
            problem = str(error)
        except errors as error:
            problem = str(error)[:300] or type(error).__name__
        except OSError as error:  # in offline mode
            raise ProbexError(f"{name}: {error}") from error
        else:
            if further:
                _check_redirect(further, name, redirects)
                return _answered(further, name, remote, read, headers, redirects + 1)
            if status not in (408, 429) and status < 500:
                raise _refusal(status, response.headers.get("x-error-code", "")[:40], name)
    raise Unreachable(f"{name}: {problem}; tried many times, try again later")


def _check_redirect(url: str, name: str, before: int) -> None:
    parts = urlsplit(url)
    is_own = parts.scheme == "https" and _OWN_HOST.fullmatch(parts.netloc)
    if not (is_own or _is_hub(url)):
        raise ProbexError(f"{name}: the hub redirects to another server, {quoted(parts.netloc)}")
    if before == _MAX_REDIRECTS:
        raise ProbexError(f"{name}: the hub redirects in a circle")


class _BrokenOff(Exception):
    pass


def _refusal(status: int, code: str, name: str) -> ProbexError:
    said = f"(HTTP {status}, {code})" if code else f"(HTTP {status})"
    if code == "RepoNotFound":
        what = "no such repository on the hub, or a private one"
        return ProbexError(f"{name}: {what} {said}; {HINTS['hf']}")
    if status in (401, 403):
        return Refused(f"{name}: not allowed, or nothing there {said}; {HINTS['hf']}")
    what = "no such revision on the hub" if code == "RevisionNotFound" else "nothing there"
    if status in (404, 410):
        return NotThere(f"{name}: {what} {said}")
    return ProbexError(f"{name}: expected a list of files {said}")


def _body(response: Any, name: str, stopped: threading.Event) -> bytes:
    """A whole body; too long is an error, too slow or short is tried again."""
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise ProbexError(f"{name}: the server sends it as {encoding[:40]!r}, not as it is")
    deadline, body = time.monotonic() + stores.PATIENCE.longest_s, bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > _MAX_LISTING_BYTES:
            raise ProbexError(f"{name}: the hub sends more bytes than {_MAX_LISTING_BYTES}")
        if stopped.is_set():
            raise ProbexError(f"{name}: interrupted")
        if time.monotonic() > deadline:
            raise _BrokenOff("the hub sends too slowly")
    return bytes(body)


def _json(body: bytes, name: str) -> dict[str, Any]:
    try:
        return json_object(body, f"{name}: the hub's answer", values=_VALUES_A_FILE * _MAX_LISTED)
    except ProbexError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and (
            cause.pos >= len(cause.doc.rstrip()) or cause.msg.startswith("Unterminated string")
        ):
            raise _BrokenOff("the answer breaks off") from error
        raise


def _entry(sibling: Any, name: str) -> tuple[str, HubFile]:
    """An entry of the hub's list."""
    file = sibling if isinstance(sibling, dict) else {}
    lfs = file.get("lfs")
    content = (isinstance(lfs, dict) and lfs.get("sha256")) or file.get("blobId") or ""
    return _checked(file.get("rfilename"), file.get("size"), content, name=name)


def _checked(path: Any, size: Any, content: Any, *, name: str) -> tuple[str, HubFile]:
    if not (
        isinstance(path, str)
        and (size is None or (type(size) is int and 0 <= size <= MAX_INT))
        and isinstance(content, str)
        and len(content) <= _MAX_HASH
    ):
        raise ProbexError(f"{name}: the hub lists {quoted(path)} with size {quoted(size)}")
    return path, HubFile(size, content if _HASH.fullmatch(content) else "")


def _read_listing(path: Path) -> dict[str, HubFile] | None:
    try:
        files = json_object(path.read_bytes(), str(path), values=_VALUES_A_FILE * _MAX_LISTED)
        return dict(_checked(name, *file, name=str(path)) for name, file in files.items())
    except (OSError, TypeError, ProbexError):
        return None


def _session(name: str) -> tuple[Any, type[Exception]]:
    """The hub client's session, and what it raises where there is no answer."""
    try:
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import get_session
    except ImportError:
        raise ProbexError(
            f"{name}: reading from the hub needs huggingface_hub: pip install probex_jax[hub]"
        ) from None
    # From the HTTP library that this version of huggingface_hub uses.
    kinds = HfHubHTTPError.__mro__
    return get_session(), next(kind for kind in kinds if kind.__name__ == "HTTPError")


def _token(name: str) -> dict[str, str]:
    """A request's headers with the user's token for the hub, if there is one."""
    _session(name)
    from huggingface_hub import get_token

    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}
