"""What a hub for tests holds: repositories with their commits, files with their hashes."""

import csv
import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path

import yaml

KINDS = ("models", "datasets")
# What the hub's own .gitattributes sends to LFS, and whatever is larger than git may hold.
LFS_SUFFIXES = {".safetensors", ".parquet", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".onnx"}
MAX_GIT_BYTES = 10 * 2**20


class NotFound(Exception):
    """Args: the hub's error code, what is not there, and the commit if there is one."""


@dataclass(frozen=True)
class File:
    """A file of a commit; `sha256` is None where git holds it, `oid` is of what git holds."""

    path: str
    location: Path
    size: int
    oid: str
    sha256: str | None

    @property
    def etag(self):
        return self.sha256 or self.oid

    @property
    def pointer_size(self):
        return len(_pointer(self.sha256, self.size))


class Repositories:
    """Those in `root/models/<org>/<name>` and `root/datasets/<org>/<name>`, found when asked for.

    A model is named "org/name", a dataset "datasets/org/name", as in the addresses of files.
    """

    def __init__(self, root, *, quick_hashes=False):
        self.root = Path(root)
        self.quick_hashes = quick_hashes  # of path, size and mtime: for files too large to hash
        self._commits = {}  # repo -> commit -> folder
        self._refs = {}  # repo -> branch or tag -> commit
        self._hashes = {}
        self._lock = threading.RLock()

    def commit_of(self, repo, revision="main"):
        """The commit of a branch, a tag or itself."""
        with self._lock:
            if repo not in self._commits:
                folder = self.root / (repo if repo.startswith("datasets/") else f"models/{repo}")
                if ".." in repo.split("/") or not folder.is_dir():
                    raise NotFound("RepoNotFound", "Repository not found", None)
                self._commits[repo], self._refs[repo] = {}, {}
                self._commit(repo, folder)
            commit = self._refs[repo].get(revision, revision)
            if commit not in self._commits[repo]:
                raise NotFound("RevisionNotFound", f"Invalid rev id: {revision}", None)
            return commit

    def move(self, repo, folder=None):
        """A new commit of main: files of another folder, or the same ones; the old one stays."""
        with self._lock:
            last = self.commit_of(repo)
            return self._commit(repo, Path(folder or self._commits[repo][last]))

    def tag(self, repo, name):
        """Names what is main's commit now."""
        with self._lock:
            commit = self.commit_of(repo)
            self._refs[repo][name] = commit

    def _commit(self, repo, folder):
        commit = hashlib.sha1(f"{repo} {len(self._commits[repo])}".encode()).hexdigest()
        self._commits[repo][commit] = folder
        self._refs[repo]["main"] = commit
        return commit

    def file(self, repo, commit, path):
        location = self.locate(repo, commit, path)
        if not location.is_file():
            raise NotFound("EntryNotFound", "Entry not found", commit)
        return self._file(path, location)

    def files(self, repo, commit):
        """All files of a commit, by path."""
        return [e for e in self.entries(repo, commit, recursive=True) if isinstance(e, File)]

    def entries(self, repo, commit, path="", *, recursive=False):
        """Files, and folders by their paths alone, below a folder."""
        location = self.locate(repo, commit, path)
        if not location.is_dir():
            raise NotFound("EntryNotFound", f"{path} does not exist on {commit}", commit)
        found = sorted(location.rglob("*") if recursive else location.iterdir())
        top = self._commits[repo][commit]
        return [self._entry(item.relative_to(top).as_posix(), item) for item in found]

    def entry(self, repo, commit, path):
        """A file, a folder's path, or None."""
        location = self.locate(repo, commit, path)
        return self._entry(path, location) if location.exists() else None

    def locate(self, repo, commit, path):
        if ".." in path.split("/") or path.startswith("/") or "\0" in path:
            raise NotFound("EntryNotFound", "Entry not found", commit)
        return self._commits[repo][commit] / path

    def _entry(self, path, location):
        return path if location.is_dir() else self._file(path, location)

    def _file(self, path, location):
        stat = location.stat()
        key = (location, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if key not in self._hashes:
                self._hashes[key] = self._hash(path, *key)
            return File(path, location, stat.st_size, *self._hashes[key])

    def _hash(self, path, location, size, mtime):
        if location.suffix not in LFS_SUFFIXES and size <= MAX_GIT_BYTES:
            return _git_oid(location.read_bytes()), None
        if self.quick_hashes:
            sha256 = hashlib.sha256(f"{path} {size} {mtime}".encode()).hexdigest()
        else:
            with location.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        return _git_oid(_pointer(sha256, size)), sha256


def _git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _pointer(sha256, size):
    """What git holds in place of a file in LFS."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def listed(entry):
    """A line of a tree."""
    if not isinstance(entry, File):
        oid = hashlib.sha1(f"tree {entry}".encode()).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": entry}
    line = {"type": "file", "oid": entry.oid, "size": entry.size, "path": entry.path}
    if entry.sha256:
        line["lfs"] = {
            "oid": entry.sha256,
            "size": entry.size,
            "pointerSize": entry.pointer_size,
        }
    return line


def sibling(file, blobs):
    """A file of a repository's description."""
    line = {"rfilename": file.path}
    if blobs:
        line |= {"size": file.size, "blobId": file.oid}
        if file.sha256:
            line["lfs"] = {
                "sha256": file.sha256,
                "size": file.size,
                "pointerSize": file.pointer_size,
            }
    return line


def front_matter(readme):
    """The YAML at the head of a README.md, as the hub shows it; None without."""
    text = readme.read_text() if readme.is_file() else ""
    return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None


def write_repo(root, kind, repo_id, files):
    """Writes a repository to be served.

    Args:
      root: the hub's folder.
      kind: "models" or "datasets".
      repo_id: "org/name".
      files: path to content: bytes, text, or a number of zero bytes, as a sparse file.

    Returns:
      Its folder.
    """
    assert kind in KINDS, kind
    folder = Path(root) / kind / repo_id
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            with file.open("wb") as sparse:
                sparse.truncate(content)
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def tables(root, repo_id, configs, *, format="parquet", shards=1, readme=True):
    """Writes a dataset's repository of tables.

    Args:
      root: the hub's folder.
      repo_id: "org/name".
      configs: config to split to rows, each a dict.
      format: "parquet", "csv" or "jsonl".
      shards: the files of a split.
      readme: whether README.md says which files are of which config and split.

    Returns:
      Its folder.
    """
    folder = write_repo(root, "datasets", repo_id, {})
    for config, splits in configs.items():
        (folder / config).mkdir(exist_ok=True)
        for split, rows in splits.items():
            for shard in range(shards):
                begin, end = (len(rows) * n // shards for n in (shard, shard + 1))
                name = f"{split}-{shard:05}-of-{shards:05}.{format}"
                _WRITERS[format](folder / config / name, rows[begin:end], list(rows[0]))
    front = {"license": "apache-2.0"}
    if readme:
        front["configs"] = [
            {
                "config_name": config,
                "data_files": [{"split": split, "path": f"{config}/{split}-*"} for split in splits],
            }
            for config, splits in configs.items()
        ]
    text = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {repo_id}\n"
    (folder / "README.md").write_text(text)
    return folder


def _write_parquet(path, rows, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {column: [row[column] for row in rows] for column in columns}
    pq.write_table(pa.table(columns), path)


def _write_csv(path, rows, columns):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(path, rows, _):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


_WRITERS = {"parquet": _write_parquet, "csv": _write_csv, "jsonl": _write_jsonl}
