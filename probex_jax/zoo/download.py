"""Downloads whole models from the hub, into the layout of the reference implementation.

A repository becomes a folder like one of the hub client's cache, `<split>/models--<org>--<name>`
with `blobs/`, `snapshots/<commit>/` and, written last, `refs/main`; a LoRA is one file,
`<split>/<model>/pytorch_lora_weights.safetensors`. A run after a kill continues. huggingface_hub's
own downloads do not check hashes of what arrives, and cannot be interrupted from another thread.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock

from probex_jax.bucket_paths import on_a_disk
from probex_jax.buckets import NotThere
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, one_writer, write_json, write_text
from probex_jax.model_files.hub import HubAddress, HubFile, HubRepo, hub_repo
from probex_jax.model_files.locate import read_inside
from probex_jax.model_files.remote import Remote
from probex_jax.model_files.untrusted_text import json_object
from probex_jax.prefetch import prefetch
from probex_jax.zoo.model_j_table import LORA_FILE, ListedModel, Table
from probex_jax.zoo.table_columns import read_columns, write_columns

# Weights that can be read, and their configs: no pickles, images or code.
_WANTED = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")
_WANTED_CARD = "README.md"
_READ_BYTES, _FETCHED_BYTES = 2**20, 2**25
_MAX_ABOUT_BYTES = 2**24
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class DownloadSummary:
    """What a run of `download` did.

    Args:
      folder: the zoo.
      models: number of models in the table.
      added: number of models that this run completed.
      failed: id of every model that is missing, to the reason.
    """

    folder: Path
    models: int
    added: int
    failed: Mapping[str, str] = field(default_factory=dict)


def download(
    table: Table,
    out: str | Path,
    remote: Remote,
    *,
    jobs: int = 8,
    on_model: Callable[[str], None] = lambda reason: None,
) -> DownloadSummary:
    """Downloads those models of a table that a folder does not hold yet.

    What the table says of the models that are there then goes to `labels.json`.

    Args:
      table: the models.
      out: the zoo's folder is `out/<subset>`.
      remote: how they are read; its cache is not used.
      jobs: how many models are downloaded at a time.
      on_model: called after each model with the reason why it failed, or "".

    Returns:
      What was added, and what failed.

    Raises:
      ProbexError: if nothing can be written to the folder, or its `labels.json` is not of rows.
    """
    folder = on_a_disk(out) / table.subset
    if (folder / "store.json").exists():
        raise ProbexError(f"{folder}: is a layer store; choose another --out for whole models")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if table.texts:
        with disk_errors(folder), FileLock(folder / ".lock"):  # several processes may add their own
            _write_texts(folder / "zoo.json", table)
    if table.columns:
        read_columns(folder)  # now, not after hours
    reading = Remote(on_bytes=remote.on_bytes)
    lists = Lists(reading)
    added, failed = 0, {}

    def fetch(model: ListedModel) -> str | None:
        return _model(model, folder, lists)

    with closing(prefetch(fetch, table.models, jobs, stop=reading.stopped.set)) as results:
        for model, result in results:
            added += result is None
            if result:
                failed[model.id] = result
            on_model(f"{model.id}: {result}" if result else "")
    if table.columns:
        there = [model.id for model in table.models if model.id not in failed]
        with disk_errors(folder), FileLock(folder / ".lock"):
            write_columns(folder, table.columns, there)
    return DownloadSummary(folder, len(table.models), added, failed)


def _write_texts(path: Path, table: Table) -> None:
    """Adds the words for classes to `zoo.json`, which is made if missing."""
    about = (
        json_object(read_inside(path, _MAX_ABOUT_BYTES, "zoo"), str(path)) if path.exists() else {}
    )
    known = about.get("texts", {})
    texts = {**known, **table.texts} if isinstance(known, dict) else dict(table.texts)
    write_json(path, {"tree": table.subset, **about, "texts": texts})


class Lists:
    """The hub's lists of files; that of a repository with many models is requested once.

    Args:
      remote: how models are read.
    """

    def __init__(self, remote: Remote):
        self.remote = remote
        self._known: dict[str, HubRepo] = {}
        self._lock = threading.Lock()

    def of(self, model: ListedModel, commit: str = "") -> HubRepo:
        """The repository of a model, at a commit or the head of the main branch.

        Raises:
          ProbexError: if there is none, or the hub cannot be reached.
        """
        if not model.path:
            return hub_repo(model.address(commit), self.remote)
        with self._lock:
            if model.repo not in self._known:
                self._known[model.repo] = hub_repo(model.address(commit), self.remote)
            return self._known[model.repo]


def bytes_of(model: ListedModel, lists: Lists) -> int:
    """The number of bytes that `download` would transfer for a model.

    Raises:
      ProbexError: if the hub has no such model.
    """
    repo = lists.of(model)
    return sum(_size(repo, path) for path in _wanted(model, repo))


def _size(repo: HubRepo, path: str) -> int:
    """A file's size as the hub lists it, or else as the server states it."""
    listed = repo.files.get(path, HubFile())
    return repo.open(path, Remote()).size if listed.size is None else listed.size


def _model(model: ListedModel, folder: Path, lists: Lists) -> str | None:
    """Downloads a model; returns None if it was downloaded, "" if it was there, or the fault."""
    try:
        with disk_errors(folder):
            return _lora(model, folder, lists) if model.path else _in_cache(model, folder, lists)
    except ProbexError as error:
        return str(error)


def _in_cache(model: ListedModel, folder: Path, lists: Lists) -> str | None:
    place = folder / model.split / model.id
    reference = place / "refs" / "main"
    if reference.exists():
        return ""
    with one_writer(place):
        repo = _at_commit(model, place / "snapshots", lists)
        snapshot = place / "snapshots" / repo.commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (place / "blobs").mkdir(exist_ok=True)
        for path in _wanted(model, repo):
            link = snapshot / path
            if link.exists():
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = _fetched(repo, path, place / "blobs", lists.remote)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        reference.parent.mkdir(exist_ok=True)
        write_text(reference, repo.commit)
    return None


def _at_commit(model: ListedModel, snapshots: Path, lists: Lists) -> HubRepo:
    """The repository, at the commit of an unfinished download if there is one."""
    begun = [path.name for path in snapshots.glob("*")]
    try:
        return lists.of(model, begun[0] if len(begun) == 1 else "")
    except NotThere:
        if not begun:
            raise
        shutil.rmtree(snapshots)  # the hub no longer has that commit
        return lists.of(model)


def _lora(model: ListedModel, folder: Path, lists: Lists) -> str | None:
    path = _path_of_lora(model)
    target = folder / model.split / model.id / path.rpartition("/")[2]
    if target.exists():
        return ""
    repo = lists.of(model)
    with one_writer(target.parent):
        _fetched(repo, path, target.parent, lists.remote).replace(target)
    return None


def _path_of_lora(model: ListedModel) -> str:
    return model.path if model.path.endswith(".safetensors") else f"{model.path}/{LORA_FILE}"


def _wanted(model: ListedModel, repo: HubRepo) -> list[str]:
    """The files of a model, in its repository."""
    if model.path:
        return [_path_of_lora(model)]
    wanted = sorted(
        path
        for path in repo.files
        if "/" not in path
        and (path == _WANTED_CARD or any(fnmatchcase(path, pattern) for pattern in _WANTED))
    )
    if not any(path.endswith(".safetensors") for path in wanted):
        raise ProbexError(f"{HubAddress(repo.id)}: no .safetensors file in the repository")
    return wanted


def _fetched(repo: HubRepo, path: str, folder: Path, remote: Remote) -> Path:
    """Downloads a file of a repository, checks its hash and names it by the hash."""
    listed, source = repo.files.get(path, HubFile()), None
    if listed.size is None or not _HASH.fullmatch(listed.content):
        source = repo.open(path, remote)
        unnamed = hashlib.sha256(f"{source.name} {source.size}".encode()).hexdigest()[:32]
        listed = HubFile(source.size, unnamed)
    done = folder / listed.content
    if done.exists():
        return done
    source = source or repo.open(path, remote, first=0)
    partial = folder / f"{listed.content}.incomplete"
    with partial.open("a+b") as file:
        content = _Digest(listed)
        file.seek(0)
        while known := file.read(_READ_BYTES):
            content.update(known)
        for begin in range(file.tell(), source.size, _FETCHED_BYTES):
            piece = source.read(begin, min(begin + _FETCHED_BYTES, source.size)).data
            file.write(piece)
            content.update(piece)
        file.flush()
        os.fsync(file.fileno())
    if not content.is_right():
        partial.unlink()
        raise ProbexError(
            f"{source.name}: its hash differs from the hub's, {listed.content}; run the same "
            "command again"
        )
    partial.replace(done)
    return done


class _Digest:
    """The hash of a file as the hub has it: SHA-256 for large files, Git's SHA-1 for others."""

    def __init__(self, listed: HubFile):
        self._listed, self._size = listed, 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % (listed.size or 0), usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        (self._git if len(self._listed.content) == 40 else self._sha256).update(data)

    def is_right(self) -> bool:
        """Whether size and hash are right; only the size, if the hub lists no hash."""
        if self._size != self._listed.size:
            return False
        known = {40: self._git, 64: self._sha256}.get(len(self._listed.content))
        return known is None or known.hexdigest() == self._listed.content
