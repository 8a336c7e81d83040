"""Finds the files of a model on a server: on the hub, in a bucket or at the address of one file."""

import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, unquote, urlsplit

from probex_jax.buckets import (
    Listing,
    NotThere,
    Refused,
    is_address,
    joined,
    listed,
    read,
    shown_path,
)
from probex_jax.errors import ProbexError
from probex_jax.model_files.checkpoint_folders import may_be_checkpoint
from probex_jax.model_files.hub import HubAddress, HubRepo, hub_address, hub_repo
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.locate import (
    Location,
    format_of,
    located_in,
    refuse_other_formats,
    with_its_shards,
)
from probex_jax.model_files.remote import Remote, RemoteRanges, read_whole
from probex_jax.model_files.untrusted_text import plain_name

_MAX_REVISION_BYTES = 1024
# How files of a format begin.
_SIGNS = {
    ".safetensors": re.compile(rb".{8}\{", re.DOTALL),
    ".gguf": re.compile(rb"GGUF"),
    ".h5": re.compile(rb"\x89HDF\r\n\x1a\n"),
}
_LONGEST_SIGN = 9


class RemoteFolder:
    """A folder on a server; a `locate.Folder`.

    Args:
      address: of the folder, for messages.
      open_file: opens a file in it by name.
      files: the names of its files; None if the server does not list them.
    """

    def __init__(
        self, address: str, open_file: Callable[[str], RemoteRanges], files: Iterable[str] | None
    ):
        self._address, self._open = address.rstrip("/"), open_file
        self._files = None if files is None else sorted(files)

    def __str__(self) -> str:
        return self._address

    def path_of(self, name: str) -> str:
        """The path of a file in it, for messages."""
        return f"{self}/{name}"

    def names(self) -> list[str]:
        """Its files; none if they are not known."""
        return self._files or []

    def open(self, name: str) -> RemoteRanges:
        """Opens a file in it for reading byte ranges."""
        return self._open(name)

    def read_beside(self, name: str, limit: int) -> bytes | None:
        """A small file in it; None if there is none, or the server does not tell."""
        if self._files is not None and name not in self._files:
            return None
        try:
            return read_whole(self.open(name), limit)
        except (NotThere, Refused):
            if self._files is not None:
                raise
            return None


def locate_remote(url: str, limits: Limits, remote: Remote) -> tuple[Location, str]:
    """Finds the files of a model on a server, and its address with the commit as revision.

    Raises:
      ProbexError: if there is no model, or the server does not answer.
    """
    if is_address(url):
        return _in_bucket(url, limits, remote)
    address = hub_address(url)
    if address is None:
        return _at_url(url, remote)
    repo = hub_repo(address, remote)
    where = str(HubAddress(repo.id, repo.commit, address.path, repo.kind))
    # The hub may cut a long list short: what looks like a file is requested anyway.
    if address.path in repo.files or address.path.endswith((".safetensors", ".sft")):
        parent, _, name = address.path.rpartition("/")
        refuse_other_formats(name, where)
        return Location(_hub_folder(repo, parent, remote), with_its_shards(name, where)), where
    below = _below(repo, address.path)
    if address.path and not below:
        raise NotThere(f"{url}: no such file or folder in the repository, at {repo.commit[:12]}")
    inside = {name.partition("/")[0] for name in below}
    return _located(_hub_folder(repo, address.path, remote), inside, limits), where


def _located(folder: RemoteFolder, inside: Iterable[str], limits: Limits) -> Location:
    """Finds the files of the model in a folder, of whose files and folders the names are given."""
    if may_be_checkpoint(inside) and not any(map(format_of, folder.names())):
        raise ProbexError(
            f"{folder}: no model here; if it is an Orbax checkpoint, download it: those are read "
            "from a disk only"
        )
    return located_in(folder, limits)


def _below(repo: HubRepo, path: str) -> list[str]:
    inside = f"{path}/" if path else ""
    return [each.removeprefix(inside) for each in repo.files if each.startswith(inside)]


def _hub_folder(repo: HubRepo, path: str, remote: Remote) -> RemoteFolder:
    inside = f"{path}/" if path else ""
    return RemoteFolder(
        str(HubAddress(repo.id, repo.commit[:12], path, repo.kind)),
        lambda name: repo.open(f"{inside}{name}", remote),
        [name for name in _below(repo, path) if "/" not in name],
    )


def _at_url(url: str, remote: Remote) -> tuple[Location, str]:
    """A file on any server."""
    base, where = re.split(r"[?#]", url, maxsplit=1)[0].rpartition("/")[0], shown_path(url)
    named = unquote(urlsplit(url).path.rpartition("/")[2])
    known: dict[str, RemoteRanges] = {}
    if named and "." not in named:  # as of downloads by a number
        file = RemoteRanges(url, remote)
        named += _suffix_of(file)
        known[named] = file
    refuse_other_formats(named, where)

    def opened(name: str) -> RemoteRanges:
        # The file that the user named is requested as it was written, with its query.
        asked = url if name == named else f"{base}/{quote(name)}"
        return known.pop(name, None) or RemoteRanges(asked, remote)

    folder = RemoteFolder(where.rpartition("/")[0], opened, None)
    return Location(folder, with_its_shards(named, where)), where


def _suffix_of(file: RemoteRanges) -> str:
    """How a file would be called, by its first bytes; "" if they do not tell."""
    begin = file.read(0, min(file.size, _LONGEST_SIGN)).tobytes()
    return next((suffix for suffix, sign in _SIGNS.items() if sign.match(begin)), "")


def _in_bucket(url: str, limits: Limits, remote: Remote) -> tuple[Location, str]:
    """A file or folder of a bucket."""
    url = url.rstrip("/")
    found = Listing({}, []) if url.endswith(".safetensors") else listed(url, remote.stopped)
    if "snapshots" in found.folders:  # a folder of the hub client's cache
        about = joined(url, "refs/main")
        text = read(about, _MAX_REVISION_BYTES, remote.stopped).data.decode("utf-8", "replace")
        url = joined(url, f"snapshots/{plain_name(text.strip(), f'{about}: revision')}")
        found = listed(url, remote.stopped)
    if found.files or found.folders:
        inside = (*found.files, *found.folders)
        return _located(bucket_folder(url, found, remote), inside, limits), url
    parent, _, name = url.rpartition("/")
    if "." not in name:
        raise NotThere(f"{url}: no such file or folder in the bucket")
    refuse_other_formats(name, url)
    return Location(bucket_folder(parent, None, remote), with_its_shards(name, url)), url


def bucket_folder(url: str, found: Listing | None, remote: Remote) -> RemoteFolder:
    """A folder of a bucket, and what lies in it, if that was listed."""
    files = found.files if found else {}

    def opened(name: str) -> RemoteRanges:
        path, entry = joined(url, name), files.get(name)
        if entry is None or not entry.etag:
            return RemoteRanges(path, remote)
        content = f"{path} {entry.etag} {entry.size}"
        return RemoteRanges(path, remote, size=entry.size, content=content, etag=entry.etag)

    return RemoteFolder(url, opened, files if found else None)
