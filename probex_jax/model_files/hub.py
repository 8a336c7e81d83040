"""Addresses of models on servers: `hf://org/repo[@revision][/file]` and `https://…` ones."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from probex_jax.errors import ProbexError
from probex_jax.model_files.http import NotFound, Refused, RemoteFile, http_session, json_body
from probex_jax.model_files.http_ranges import HttpRanges, Remote, write_cached
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import Location, located_in, refuse_other_formats
from probex_jax.model_files.safetensors_header import MAX_INT
from probex_jax.model_files.untrusted_text import is_plain_path, json_object, quoted

_SCHEME = re.compile(r"(hf|https?):/{1,2}(?=[^/])")
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

    def url(self, path: str, stopped: threading.Event | None = None) -> RemoteFile:
        """A file of the repository, requested with the user's token."""
        name = str(HubAddress(self.id, self.commit[:12], path, self.kind))
        headers = _headers(name)
        from huggingface_hub import hf_hub_url

        address = hf_hub_url(
            self.id, path, repo_type=self.kind, revision=self.commit, endpoint=endpoint()
        )
        return RemoteFile(address, name, headers, self.commit, stopped)

    def open(self, path: str, remote: Remote) -> HttpRanges:
        """Opens a file of the repository for reading byte ranges."""
        listed = self.files.get(path, HubFile())
        content = listed.content or f"{self.kind} {self.id} {self.commit} {path}"
        return HttpRanges(self.url(path, remote.stopped), remote, content, listed.size)


def remote_url(path: str | os.PathLike[str]) -> str:
    """The address that a path stands for; "" for a path on this machine.

    `pathlib.Path` turns two slashes into one; this restores the second.

    Example:
      >>> remote_url(Path("hf://org/repo")), remote_url("https://host/a.safetensors")
      ('hf://org/repo', 'https://host/a.safetensors')
      >>> remote_url("model.safetensors")
      ''
    """
    text = os.fspath(path)
    found = _SCHEME.match(text)
    return f"{found[1]}://{text[found.end() :]}" if found else ""


def shown_url(url: str) -> str:
    """An address as others may read it: without a password, or the signature in a query.

    Example:
      >>> shown_url("https://me:secret@host/a.safetensors?signature=secret")
      'https://host/a.safetensors'
    """
    scheme, _, rest = _bare(url).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2] if scheme != 'hf' else host}{slash}{path}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path on this machine, or an address as others may read it."""
    url = remote_url(path)
    return shown_url(url) if url else str(path)


def _bare(url: str) -> str:
    return re.split(r"[?#]", url, maxsplit=1)[0]


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
        raise ProbexError(f"{quoted(url)}: {quoted(path)} is no plain path in a repository")
    revision = unquote(found["revision"] or "")
    return HubAddress(found["id"], revision, path, "dataset" if found["kind"] else "model")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.hostname and (parts.port is None or parts.port > 0):
            return parts
    except ValueError:
        pass
    raise ProbexError(f"{quoted(url)}: is no address of a file on a server")


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
        repo = _asked(address, remote.stopped)
        # The list of a branch holds for its commit.
        key, path = _listing(replace(address, revision=repo.commit), remote)
        if path is not None:
            listed = {name: [file.size, file.content] for name, file in repo.files.items()}
            write_cached(path, json.dumps(listed).encode())
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


def _asked(address: HubAddress, stopped: threading.Event) -> HubRepo:
    name = str(HubAddress(address.id, address.revision, kind=address.kind))
    url = f"{endpoint()}/api/{address.kind}s/{address.id}"
    revision = quote(address.revision or "main", safe="")
    headers, values = _headers(name), _VALUES_A_FILE * _MAX_LISTED

    def said_at(url: str) -> dict[str, Any]:
        return json_body(url, headers, name, _MAX_LISTING_BYTES, stopped, values=values)

    try:
        said = said_at(f"{url}/revision/{revision}?blobs=true")
    except NotFound:
        if address.revision:
            raise
        said = said_at(f"{url}?blobs=true")  # for servers without revisions
    commit, siblings = said.get("sha"), said.get("siblings")
    if not isinstance(commit, str) or not _HASH.fullmatch(commit):
        raise ProbexError(f"{name}: expected a commit from the hub, got {quoted(commit)}")
    if _COMMIT.fullmatch(address.revision) and commit != address.revision:
        raise ProbexError(f"{name}: the hub answers with another commit, {commit}")
    if not isinstance(siblings, list) or len(siblings) > _MAX_LISTED:
        raise ProbexError(f"{name}: expected a list of files, at most {_MAX_LISTED}")
    listed = (_listed(sibling, name) for sibling in siblings)
    plain = {path: file for path, file in listed if is_plain_path(path)}
    return HubRepo(address.id, address.kind, commit, plain)


def _listed(sibling: Any, name: str) -> tuple[str, HubFile]:
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
        listed = json_object(path.read_bytes(), str(path), values=_VALUES_A_FILE * _MAX_LISTED)
        return dict(_checked(name, *file, name=str(path)) for name, file in listed.items())
    except (OSError, TypeError, ProbexError):
        return None


def _headers(name: str) -> dict[str, str]:
    """Request headers with the user's token for the hub, if there is one."""
    http_session(name)
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers()


class HubFolder:
    """A folder of a repository on the hub, at one commit; a `locate.Folder`."""

    def __init__(self, repo: HubRepo, folder: str, remote: Remote):
        self._repo, self._folder, self._remote = repo, folder, remote

    def __str__(self) -> str:
        return str(HubAddress(self._repo.id, self._repo.commit[:12], self._folder, self._repo.kind))

    def path_of(self, name: str) -> str:
        """The path of a file in it, for messages."""
        return f"{self}/{name}"

    def names(self) -> list[str]:
        """Its files."""
        folder = f"{self._folder}/" if self._folder else ""
        inside = [p.removeprefix(folder) for p in self._repo.files if p.startswith(folder)]
        return sorted(name for name in inside if "/" not in name)

    def open(self, name: str) -> HttpRanges:
        """Opens a file in it for reading byte ranges."""
        path = f"{self._folder}/{name}" if self._folder else name
        return self._repo.open(path, self._remote)

    def read_beside(self, name: str, limit: int) -> bytes | None:
        """A small file in it, or None if there is none."""
        return None if name not in self.names() else read_whole(self.open(name), limit)


class UrlFolder:
    """The folder of a file on any server, which lists nothing; a `locate.Folder`.

    Args:
      url: of the file.
      remote: how it is read.
    """

    def __init__(self, url: str, remote: Remote):
        self._url, self._remote = url, remote
        self._base, self._shown = (each.rpartition("/")[0] for each in (_bare(url), shown_url(url)))
        self.named = unquote(urlsplit(url).path.rpartition("/")[2])

    def __str__(self) -> str:
        return self._shown

    def path_of(self, name: str) -> str:
        """The path of a file in it, for messages."""
        return f"{self._shown}/{name}"

    def names(self) -> list[str]:
        """Unknown, so none."""
        return []

    def open(self, name: str) -> HttpRanges:
        """Opens a file in it for reading byte ranges."""
        # The file that the user named is requested as it was written, with its query.
        url = self._url if name == self.named else f"{self._base}/{quote(name)}"
        return HttpRanges(
            RemoteFile(url, self.path_of(quote(name)), stopped=self._remote.stopped), self._remote
        )

    def read_beside(self, name: str, limit: int) -> bytes | None:
        """A small file in it, or None if the server has none or does not tell."""
        try:
            return read_whole(self.open(name), limit)
        except (NotFound, Refused):
            return None


def locate_remote(url: str, limits: Limits, remote: Remote) -> tuple[Location, str]:
    """Finds the files of a model on a server, and its address with the commit as revision.

    Raises:
      ProbexError: if there is no model, or the server does not answer.
    """
    address = hub_address(url)
    if address is None:
        folder = UrlFolder(url, remote)
        refuse_other_formats(folder.named, shown_url(url))
        return Location(folder, (folder.named,)), shown_url(url)
    repo = hub_repo(address, remote)
    where = str(HubAddress(repo.id, repo.commit, address.path, repo.kind))
    # The hub may cut a long list short: what looks like a file is requested anyway.
    if address.path in repo.files or address.path.endswith(".safetensors"):
        parent, _, name = address.path.rpartition("/")
        refuse_other_formats(name, where)
        return Location(HubFolder(repo, parent, remote), (name,)), where
    hub_folder = HubFolder(repo, address.path, remote)
    if address.path and not hub_folder.names():
        raise NotFound(f"{url}: no such file or folder in the repository, at {repo.commit[:12]}")
    return located_in(hub_folder, limits), where


def read_whole(file: HttpRanges, limit: int) -> bytes:
    """Reads a small file whole; more than `limit` bytes are a ProbexError."""
    if file.size > limit:
        raise ProbexError(f"{file.name}: {file.size} bytes, the limit is {limit}")
    return file.read(0, file.size).tobytes()
