"""The LanceDB table of an index: opening, mending and compacting it, and its checksums."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.bucket_paths import BucketPath, as_path, s3_over_http
from probex_jax.buckets import Unreachable
from probex_jax.errors import ProbexError
from probex_jax.files import is_full
from probex_jax.model_files.untrusted_text import quoted
from probex_jax.search import checksums
from probex_jax.search.attributes import FIELDS, columns_of
from probex_jax.search.lance import LANCE_ERRORS, persisting, reason_of
from probex_jax.search.vectors import vectors_of

BATCH_ROWS = 8192
_NAME = "models"
# Vectors of a cluster of the approximate index.
_CLUSTER_ROWS = 8192
# From here on paths are looked up by an index of their own.
_PATH_ROWS = 20_000
_NEVER = timedelta(days=36_500)

# Of requests of a table in a bucket; by itself Lance makes three.
_RETRIES = "10"
# If two writers add the same path at once, the later one wins.
_KEY = {"lance-schema:unenforced-primary-key": "true"}


class LanceTable:
    """A table of `FIELDS`, a column for each attribute, and a vector; arguments as `ModelTable`'s.

    Attributes:
      attributes: those of its models, each with its column.
    """

    @persisting
    def __init__(
        self,
        folder: str | Path,
        dim: int,
        *,
        create: bool = False,
        checked: bool = False,
        verified: tuple[int, dict[str, int | str]] | None = None,
    ):
        # Otherwise Lance warns on standard error about statistics that we do not use.
        os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
        try:
            import lancedb
            import pyarrow
        except ImportError:
            raise ProbexError(
                "searching needs lancedb: pip install 'lancedb>=0.40' (extra `search`)"
            ) from None
        text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
        kinds = {name: texts if name == "labels" else text for name in FIELDS}
        kinds["vector"] = pyarrow.list_(pyarrow.float32(), dim)
        key = pyarrow.field("path", text, nullable=False, metadata=_KEY)
        # Tables of version 1 have no key.
        unkeyed = pyarrow.schema(list(kinds.items()))
        keyed = unkeyed.set(FIELDS.index("path"), key)
        self._arrow, self._dim, self._folder = pyarrow, dim, as_path(folder)
        if create:
            (self._folder / checksums.NAME).unlink(missing_ok=True)
        version, self._sums = verified or checksums.check(self._folder)
        if checked and not create and not version:
            raise ProbexError(
                f"{self._folder / checksums.NAME}: missing; index again into another folder"
            )
        with self._damage():
            # Absolute: a relative path such as "s3:x" would be taken for a bucket.
            where, options = self._folder.resolve(), None
            if isinstance(where, BucketPath):
                options = {"client_max_retries": _RETRIES, **s3_over_http()}
            database: Any = lancedb.connect(str(where), storage_options=options)
            if create:
                database.drop_table(_NAME, ignore_missing=True)
                self._table = database.create_table(_NAME, schema=keyed)
                self.keep_sums()
            else:
                self._table = database.open_table(_NAME)
            self._database = database
            attributes = columns_of(found := self._table.schema).values()
            own = pyarrow.schema([field for field in found if field.name not in attributes])
            self._is_keyed = own.equals(keyed)
            if not (self._is_keyed or own.equals(unkeyed)):
                raise ValueError(f"its fields are {found.names}, or of other sizes")
            if self._table.version < version:
                raise ValueError(f"version {version} is missing")
            if version and self._table.version > version:
                with suppress(*LANCE_ERRORS):  # a writer may have removed it since
                    self._table = database.open_table(_NAME, version=version)

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of its models, each with its column."""
        return columns_of(self._table.schema)

    @persisting
    def __len__(self) -> int:
        with self._damage():
            return self._table.count_rows()

    def paths(self) -> Iterator[str]:
        """The paths of all models, a few in memory at a time."""
        with self._damage():
            for batch in self._table.search().select(["path"]).to_batches(BATCH_ROWS):
                yield from batch["path"].to_pylist()

    @persisting
    def needs_mending(self) -> bool:
        """Whether version 1 made the table, or concurrent writers duplicated rows.

        Moves on to the latest version of the table that is listed; called by the only writer.
        """
        with self._damage():
            self._table.checkout_latest()
            version, self._sums = checksums.read(self._folder)
            if version and self._table.version > version:
                with suppress(*LANCE_ERRORS):  # as an earlier version of this library left it
                    self._table.restore(version)
                self.keep_sums()
        # Of each path a few bytes: two that share them only cost a look at all rows.
        sums = np.fromiter(map(hash, self.paths()), np.int64)
        return not self._is_keyed or len(np.unique(sums)) < len(sums)

    @persisting
    def mend(self) -> None:
        """Keeps the latest row of each path and makes the path the key, in one transaction.

        Drops the approximate index.
        """
        with self._damage():
            found = self._table.search().to_arrow()
            lengths_N = np.linalg.norm(vectors_of(found["vector"].combine_chunks()), axis=1)
            if not np.allclose(lengths_N, 1, atol=1e-3):
                raise ValueError("a vector does not have length 1")
            last = {path: number for number, path in enumerate(found["path"].to_pylist())}
            place = found.schema.get_field_index("path")
            key = found.schema.field("path").with_nullable(False).with_metadata(_KEY)
            kept = found.take(sorted(last.values())).cast(found.schema.set(place, key))
            self._table = self._database.create_table(_NAME, kept, mode="overwrite")
            self._is_keyed = True
            self.keep_sums()

    def keep_sums(self) -> None:
        """Writes the checksums of the table's files."""
        self._sums = checksums.keep(self._folder, self._table.version, self._sums)

    @persisting
    def index_paths(self) -> None:
        """Has a large table look paths up by a B-tree; `compact` adds new rows to it."""
        from lancedb.index import BTree

        with self._damage():
            indexed = [index.columns for index in self._table.list_indices()]
            if ["path"] not in indexed and self._table.count_rows() >= _PATH_ROWS:
                self._table.create_index("path", config=BTree())
                self.keep_sums()

    def compact(self, kept: timedelta = timedelta(hours=6)) -> None:
        """Merges small fragments, adds new rows to indexes and removes old versions.

        Args:
          kept: the age up to which versions stay, for those who read them. Each compaction writes
            the table anew, and of itself Lance would keep a week of tables.
        """
        for age in (_NEVER, kept):  # nothing old is removed before what is new is listed
            self._optimise(age)

    @persisting
    def _optimise(self, age: timedelta) -> None:
        with self._damage():
            self._table.optimize(cleanup_older_than=age)
            self.keep_sums()

    @persisting
    def build_ann(self) -> None:
        """Builds or rebuilds the approximate index: clusters of 8-bit vectors (IVF)."""
        from lancedb.index import IvfSq

        config = IvfSq(distance_type="cosine", target_partition_size=_CLUSTER_ROWS)
        with self._damage():
            self._table.create_index("vector", config=config, replace=True)
            self.keep_sums()

    @persisting
    def drop_ann(self) -> None:
        """Drops the approximate index, if there is one."""
        with self._damage():
            for index in self._table.list_indices():
                if index.columns == ["vector"]:
                    self._table.drop_index(index.name)
            self.keep_sums()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Turns LanceDB's errors into one line that names the table."""
        try:
            yield
        except BaseException as error:
            # Rust panics are not Exceptions.
            if not isinstance(error, LANCE_ERRORS) and type(error).__name__ != "PanicException":
                raise
            reason = reason_of(error)
            if isinstance(error, UnicodeEncodeError):
                raise ProbexError(f"{self._folder}: cannot hold {quoted(error.object)}") from error
            if is_full(error):
                raise ProbexError(f"{self._folder}: no space left on the disk") from error
            if isinstance(self._folder, BucketPath) and "body error" in reason:
                raise Unreachable(f"{self._folder}: the server's answers break off") from error
            raise ProbexError(
                f"{self._folder}: the index is damaged or incomplete ({reason}); index again into "
                "another folder"
            ) from error
