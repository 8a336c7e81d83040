"""Vectors of models in an embedded LanceDB table."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from probex_jax.bucket_paths import BucketPath, as_path, s3_over_http
from probex_jax.buckets import Unreachable, stores
from probex_jax.errors import ProbexError
from probex_jax.search import checksums
from probex_jax.search.vectors import unit, vectors_of

FIELDS = ("id", "path", "tree", "split", "labels", "text", "stamp")
_NAME = "models"
_MAX_REASON = 500  # characters of an error message of LanceDB

# Vectors of a cluster of the approximate index, and clusters that a query looks through: all of
# them below half a million models.
_CLUSTER_ROWS, _CLUSTERS = 8192, 64
# A query gathers _REFINE candidates per result, and ranks them exactly.
_REFINE = 4
# At least so many where the index is still one of HNSW, as it was once.
_CANDIDATES = 128
_BATCH_ROWS = 8192
# From here on paths are looked up by an index of their own.
_PATH_ROWS = 20_000
_RECALL_QUERIES, _RECALL_K = 100, 10
_LANCE_ERRORS = (ValueError, RuntimeError, OSError)
_T = TypeVar("_T")
_NEVER = timedelta(days=36_500)

# Of requests of a table in a bucket; by itself Lance makes three.
_RETRIES = "10"
# If two writers add the same path at once, the later one wins.
_KEY = {"lance-schema:unenforced-primary-key": "true"}


def _persisting(method: Callable[..., _T]) -> Callable[..., _T]:
    """The method, called again where an answer of a bucket broke off.

    Lance tries requests again, but for a list of files that breaks off. What is done twice is
    harmless: a row is of one path.
    """

    @functools.wraps(method)
    def persisting(*args: Any, **named: Any) -> _T:
        for wait_s in stores.PATIENCE.waits_s():
            try:
                return method(*args, **named)
            except Unreachable:
                time.sleep(wait_s)
        return method(*args, **named)

    return persisting


class ModelTable:
    """Unit vectors of models with their metadata, one row per path.

    Several processes may read while one writes; a reader sees the table as it was when opened.
    Opening verifies the checksums of the files. A version counts once its files are listed: what a
    writer that was killed before had committed is not read, and the next writer takes it back.

    Args:
      folder: of the LanceDB database.
      dim: length of the vectors.
      create: make an empty table, replacing an existing one.
      checked: whether checksums are required; tables of version 1 have none.
      verified: what `checksums.read` gave, if the files were verified already.

    Raises:
      ProbexError: if lancedb is missing (extra `search`), or the table is absent or damaged.

    Example:
      >>> import tempfile
      >>> table = ModelTable(tempfile.mkdtemp(), dim=2, create=True)
      >>> table.add([{"id": "a", "path": "/a"}, {"id": "b", "path": "/b"}], [[2, 0], [3, 3]])
      >>> table.add([{"id": "b", "path": "/b"}], [[0, 1]])
      >>> len(table), [(row["id"], row["similarity"]) for row in table.nearest([0, 5], k=1)]
      (2, [('b', 1.0)])
    """

    @_persisting
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
        self._schema = unkeyed.set(FIELDS.index("path"), key)
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
                self._table = database.create_table(_NAME, schema=self._schema)
                self.keep_sums()
            else:
                self._table = database.open_table(_NAME)
            self._database = database
            self._is_keyed = self._table.schema.equals(self._schema)
            if not (self._is_keyed or self._table.schema.equals(unkeyed)):
                raise ValueError(f"its fields are {self._table.schema.names}, or of other sizes")
            if self._table.version < version:
                raise ValueError(f"version {version} is missing")
            if version and self._table.version > version:
                with suppress(*_LANCE_ERRORS):  # a writer may have removed it since
                    self._table = database.open_table(_NAME, version=version)

    @_persisting
    def __len__(self) -> int:
        with self._damage():
            return self._table.count_rows()

    @_persisting
    def needs_mending(self) -> bool:
        """Whether version 1 made the table, or concurrent writers duplicated rows.

        Moves on to the latest version of the table that is listed; called by the only writer.
        """
        with self._damage():
            self._table.checkout_latest()
            version, self._sums = checksums.read(self._folder)
            if version and self._table.version > version:
                with suppress(*_LANCE_ERRORS):  # as an earlier version of this library left it
                    self._table.restore(version)
                self.keep_sums()
        # Of each path a few bytes: two that share them only cost a look at all rows.
        sums = np.fromiter(map(hash, self.paths()), np.int64)
        return not self._is_keyed or len(np.unique(sums)) < len(sums)

    @_persisting
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
            kept = found.take(sorted(last.values())).cast(self._schema)
            self._table = self._database.create_table(_NAME, kept, mode="overwrite")
            self._is_keyed = True
            self.keep_sums()

    def keep_sums(self) -> None:
        """Writes the checksums of the table's files."""
        self._sums = checksums.keep(self._folder, self._table.version, self._sums)

    @_persisting
    def add(self, rows: Sequence[Mapping[str, Any]], vectors: Any) -> None:
        """Adds models; rows with an existing path are replaced.

        Args:
          rows: `path`, and any other fields of the table; `labels` is a list of strings, the others
            are strings. Of two rows with the same path the last one wins.
          vectors: [n, dim] float, not zero; they are normalised.

        Raises:
          ProbexError: if a row has no path, or a vector has another size, is zero or not finite.
        """
        vectors_NT = unit(vectors)
        if vectors_NT.shape != (len(rows), self._dim):
            raise ProbexError(f"vectors {vectors_NT.shape}: expected ({len(rows)}, {self._dim})")
        if not all(row.get("path") for row in rows):
            raise ProbexError("a row without a path")
        last = sorted({row["path"]: number for number, row in enumerate(rows)}.values())
        columns = {
            name: [rows[n].get(name, [] if name == "labels" else "") for n in last]
            for name in FIELDS
        }
        flat = self._arrow.array(vectors_NT[last].ravel())
        vector = self._arrow.FixedSizeListArray.from_arrays(flat, self._dim)
        batch = self._arrow.table(columns | {"vector": vector}, schema=self._schema)
        with self._damage():
            merge = self._table.merge_insert("path").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(batch)
            self.keep_sums()

    @_persisting
    def nearest(self, vector: Any, k: int, where: str | None = None) -> list[dict[str, Any]]:
        """The models with the highest cosine similarity, best first.

        Args:
          vector: [dim] float, not zero.
          k: maximal number of models.
          where: SQL condition on the table's fields, such as
            `split = 'test' AND array_has(labels, 'cat')`.

        Returns:
          The fields of each, and its `similarity`.

        Raises:
          ProbexError: if k is below 1, the vector has another size, or the condition is invalid.
        """
        vector_T = unit([vector])[0]
        if not k >= 1:
            raise ProbexError(f"k is {k}: expected 1 or more")
        if vector_T.shape != (self._dim,):
            raise ProbexError(
                f"a vector of {len(vector_T)}: the index holds vectors of {self._dim}"
            )
        with self._damage():
            try:
                rows = self._query(vector_T, k, where)
            except _LANCE_ERRORS as error:
                if where is None:
                    raise
                self._query(vector_T, k, None)  # fails where the table is at fault
                raise ProbexError(f"filter {where!r}: {_reason(error)}") from None
        return [row | {"similarity": min(1.0, 1 - row.pop("_distance"))} for row in rows]

    def _query(self, vector_T: np.ndarray, k: int, where: str | None) -> list[dict[str, Any]]:
        query: Any = self._table.search(vector_T, vector_column_name="vector")
        query = query.distance_type("cosine").select([*FIELDS, "_distance"]).limit(k)
        if where is not None:
            # In brackets, nothing after the condition is ignored.
            query = query.where(f"({where})")
        query = query.nprobes(_CLUSTERS).ef(max(_CANDIDATES, _REFINE * k))
        return query.refine_factor(_REFINE).to_arrow().to_pylist()

    @_persisting
    def stamps(self, paths: Sequence[str]) -> dict[str, str]:
        """Path to `stamp` of those models among some that are in the table."""
        known = self._table.search().where(f"path IN ({_texts(paths)})").select(["path", "stamp"])
        with self._damage():
            found = known.to_arrow()
        return dict(zip(*(found[name].to_pylist() for name in ("path", "stamp")), strict=True))

    def paths(self) -> Iterator[str]:
        """The paths of all models, a few in memory at a time."""
        with self._damage():
            for batch in self._table.search().select(["path"]).to_batches(_BATCH_ROWS):
                yield from batch["path"].to_pylist()

    @_persisting
    def remove(self, paths: Iterable[str]) -> None:
        """Removes the models with these paths."""
        paths = list(paths)
        for start in range(0, len(paths), 1000):
            with self._damage():
                self._table.delete(f"path IN ({_texts(paths[start : start + 1000])})")
                self.keep_sums()

    @_persisting
    def index_paths(self) -> None:
        """Has a large table look paths up by a B-tree; `compact` adds new rows to it."""
        from lancedb.index import BTree

        with self._damage():
            indexed = [index.columns for index in self._table.list_indices()]
            if ["path"] not in indexed and self._table.count_rows() >= _PATH_ROWS:
                self._table.create_index("path", config=BTree())
                self.keep_sums()

    def compact(self) -> None:
        """Merges small fragments and adds new rows to indexes."""
        for age in (_NEVER, None):  # nothing old is removed before what is new is listed
            self._optimise(age)

    @_persisting
    def _optimise(self, age: timedelta | None) -> None:
        with self._damage():
            self._table.optimize(cleanup_older_than=age)
            self.keep_sums()

    @_persisting
    def build_ann(self) -> None:
        """Builds or rebuilds the approximate index: clusters of 8-bit vectors (IVF)."""
        from lancedb.index import IvfSq

        config = IvfSq(distance_type="cosine", target_partition_size=_CLUSTER_ROWS)
        with self._damage():
            self._table.create_index("vector", config=config, replace=True)
            self.keep_sums()

    @_persisting
    def drop_ann(self) -> None:
        """Drops the approximate index, if there is one."""
        with self._damage():
            for index in self._table.list_indices():
                if index.columns == ["vector"]:
                    self._table.drop_index(index.name)
            self.keep_sums()

    @_persisting
    def recall(self, *, seed: int = 0) -> float:
        """Recall@10 of `nearest` against an exact scan, over 100 of the stored vectors.

        No vector is its own neighbour; ties with the tenth neighbour count as found. With fewer
        than two models it is 1.
        """
        n = len(self)
        if n < 2:
            return 1.0
        k = min(_RECALL_K, n - 1)
        sample = np.random.default_rng(seed).choice(n, min(_RECALL_QUERIES, n), replace=False)
        with self._damage():
            rows = self._table.take_offsets(sorted(sample.tolist())).to_arrow()
        queries_QT = vectors_of(rows["vector"].combine_chunks())
        # One more than k, for the query itself.
        exact_QK = np.full([len(queries_QT), k + 1], -np.inf, np.float32)
        for vectors_NT in self._all_vectors():
            both = np.concatenate([exact_QK, queries_QT @ vectors_NT.T], axis=1)
            exact_QK = -np.partition(-both, k, axis=1)[:, : k + 1]
        found = 0
        for query_T, path, tenth in zip(
            queries_QT, rows["path"].to_pylist(), exact_QK.min(axis=1), strict=True
        ):
            hits = [hit for hit in self.nearest(query_T, k + 1) if hit["path"] != path]
            found += sum(hit["similarity"] >= tenth - 1e-6 for hit in hits[:k])
        return float(found / (k * len(queries_QT)))

    @_persisting
    def everything(self, fields: Sequence[str]) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Some fields of every model, and all unit vectors: [N, dim] float32."""
        with self._damage():
            found = self._table.search().select([*fields, "vector"]).to_arrow()
            vectors_NT = vectors_of(found["vector"].combine_chunks())
            return found.select(list(fields)).to_pylist(), vectors_NT

    def batches(self) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
        """All fields of every model, and the vectors as they are [n, dim], some at a time."""
        with self._damage():
            for batch in self._table.search().select([*FIELDS, "vector"]).to_batches(_BATCH_ROWS):
                yield batch.select(list(FIELDS)).to_pylist(), vectors_of(batch["vector"])

    def _all_vectors(self) -> Iterator[np.ndarray]:
        with self._damage():
            for batch in self._table.search().select(["vector"]).to_batches(_BATCH_ROWS):
                yield vectors_of(batch["vector"])

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Turns LanceDB's errors into one line that names the table."""
        try:
            yield
        except BaseException as error:
            # Rust panics are not Exceptions.
            if not isinstance(error, _LANCE_ERRORS) and type(error).__name__ != "PanicException":
                raise
            reason = _reason(error)
            if "No space left" in reason:
                raise ProbexError(f"{self._folder}: no space left on the disk") from error
            if isinstance(self._folder, BucketPath) and "body error" in reason:
                raise Unreachable(f"{self._folder}: the server's answers break off") from error
            raise ProbexError(
                f"{self._folder}: the index is damaged or incomplete ({reason}); index again into "
                "another folder"
            ) from error


def _texts(paths: Sequence[str]) -> str:
    """Paths as a list in SQL."""
    return ", ".join("'" + path.replace("'", "''") + "'" for path in paths)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MAX_REASON].partition(", /")[0]
