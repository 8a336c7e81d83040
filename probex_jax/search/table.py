"""Vectors of models in an embedded LanceDB table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.search.attributes import (
    FIELDS,
    called,
    explained,
    in_columns,
    new_fields,
    order,
    several,
    with_attributes,
)
from probex_jax.search.lance import LANCE_ERRORS, in_sql, persisting, reason_of
from probex_jax.search.lance_table import BATCH_ROWS, LanceTable
from probex_jax.search.vectors import unit, vectors_of

# Clusters of the approximate index that a query looks through: all below half a million models.
_CLUSTERS = 64
# A query gathers _REFINE candidates per result, and ranks them exactly.
_REFINE = 4
_RECALL_QUERIES, _RECALL_K = 100, 10
_T = TypeVar("_T")


class ModelTable(LanceTable):
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

    @persisting
    def add(self, rows: Sequence[Mapping[str, Any]], vectors: Any) -> None:
        """Adds models; rows with an existing path are replaced.

        Args:
          rows: `path`, and any other fields of the table; `labels` is a list of strings,
            `attributes` a mapping, the others are strings. Of two rows with the same path the last
            one wins. An attribute that is new gets a column.
          vectors: [n, dim] float, not zero; they are normalised.

        Raises:
          ProbexError: if a row has no path, a vector has another size, is zero or not finite, or an
            attribute is of another kind than in the table.
        """
        vectors_NT = unit(vectors)
        if vectors_NT.shape != (len(rows), self._dim):
            raise ProbexError(f"vectors {vectors_NT.shape}: expected ({len(rows)}, {self._dim})")
        if not all(row.get("path") for row in rows):
            raise ProbexError("a row without a path")
        last = sorted({row["path"]: number for number, row in enumerate(rows)}.values())
        told = [
            {called(name): value for name, value in rows[n].get("attributes", {}).items()}
            for n in last
        ]
        columns = {
            name: [rows[n].get(name, [] if name == "labels" else "") for n in last]
            for name in FIELDS
        }
        flat = self._arrow.array(vectors_NT[last].ravel())
        vector = self._arrow.FixedSizeListArray.from_arrays(flat, self._dim)
        with self._damage():
            if fields := new_fields(self._arrow, self._table.schema, told):
                self._table.add_columns(self._arrow.schema(fields))
            values = {at: [one.get(name) for one in told] for name, at in self.attributes.items()}
            named = columns | values | {"vector": vector}
            batch = self._arrow.table(named, schema=self._table.schema)
            merge = self._table.merge_insert("path").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(batch)
            self.keep_sums()

    @persisting
    def nearest(self, vector: Any, k: int, where: str | None = None) -> list[dict[str, Any]]:
        """The models with the highest cosine similarity, best first.

        Args:
          vector: [dim] float, not zero.
          k: maximal number of models.
          where: SQL condition on the table's fields and attributes, such as
            `split = 'test' AND array_has(labels, 'cat') AND accuracy > .9`.

        Returns:
          The fields of each, its `attributes` and its `similarity`.

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
        columns = self.attributes

        def query(where: str | None) -> list[dict[str, Any]]:
            query: Any = self._table.search(vector_T, vector_column_name="vector")
            query = query.distance_type("cosine").limit(k)
            query = query.select([*FIELDS, *columns.values(), "_distance"])
            query = query.where(where) if where else query
            return query.nprobes(_CLUSTERS).refine_factor(_REFINE).to_arrow().to_pylist()

        rows = self._filtered(query, where)
        rows = [row | {"similarity": min(1.0, 1 - row.pop("_distance"))} for row in rows]
        return [with_attributes(row, columns) for row in rows]

    @persisting
    def ordered(self, k: int, sort: str, where: str | None = None) -> list[dict[str, Any]]:
        """The first models by an attribute; those without it come last.

        Args:
          k: maximal number of models.
          sort: the attribute, behind "-" for the largest first; "" for no order.
          where: as for `nearest`.

        Returns:
          The fields of each and its `attributes`.

        Raises:
          ProbexError: if there is no such attribute, it is one of several classes, or the condition
            is invalid.
        """
        columns = self.attributes
        name, is_falling = order(sort, columns) if sort else ("", False)
        by = [(columns[name], "descending" if is_falling else "ascending")] if sort else []
        if by and self._arrow.types.is_list(self._table.schema.field(by[0][0]).type):
            raise several(name)

        def query(where: str | None) -> list[dict[str, Any]]:
            query: Any = self._table.search().select([*FIELDS, *columns.values()])
            query = query.where(where) if where else query
            first: Any = None
            for batch in query.to_batches(BATCH_ROWS):
                part = self._arrow.Table.from_batches([batch])
                first = part if first is None else self._arrow.concat_tables([first, part])
                first = (first.sort_by(by) if by else first).slice(0, k)
            return [] if first is None else first.to_pylist()

        return [with_attributes(row, columns) for row in self._filtered(query, where)]

    def _filtered(self, query: Callable[[str | None], _T], where: str | None) -> _T:
        """What a query with a condition on fields and attributes finds."""
        columns = self.attributes
        with self._damage():
            if where is None:
                return query(None)
            try:
                # In brackets, nothing after the condition is ignored.
                return query(f"({in_columns(where, columns)})")
            except LANCE_ERRORS as error:
                query(None)  # fails where the table is at fault
                reason = explained(reason_of(error), columns)
                raise ProbexError(f"filter {where!r}: {reason}") from None

    @persisting
    def stamps(self, paths: Sequence[str]) -> dict[str, str]:
        """Path to `stamp` of those models among some that are in the table."""
        known = self._table.search().where(f"path IN ({in_sql(paths)})").select(["path", "stamp"])
        with self._damage():
            found = known.to_arrow()
        return dict(zip(*(found[name].to_pylist() for name in ("path", "stamp")), strict=True))

    @persisting
    def remove(self, paths: Iterable[str]) -> None:
        """Removes the models with these paths."""
        paths = list(paths)
        for start in range(0, len(paths), 1000):
            with self._damage():
                self._table.delete(f"path IN ({in_sql(paths[start : start + 1000])})")
                self.keep_sums()

    @persisting
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

    @persisting
    def everything(self, fields: Sequence[str]) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Some fields and the attributes of every model, and unit vectors [N, dim], float32."""
        columns = self.attributes
        named = [*fields, *columns.values()]
        with self._damage():
            found = self._table.search().select([*named, "vector"]).to_arrow()
            vectors_NT = vectors_of(found["vector"].combine_chunks())
            rows = found.select(named).to_pylist()
        return [with_attributes(row, columns) for row in rows], vectors_NT

    @persisting
    def exported(self, where: str | None = None) -> Any:
        """An Arrow table of all models, or of those that meet a condition, with their vectors.

        An attribute such as accuracy is the column `predicted accuracy`: no name is there twice.
        """
        fields = [name for name in FIELDS if name != "stamp"]
        names = {name: name for name in [*fields, "vector"]}
        names |= {column: f"predicted {name}" for name, column in self.attributes.items()}

        def query(where: str | None) -> Any:
            query: Any = self._table.search().select([*names])
            return (query.where(where) if where else query).to_arrow()

        return self._filtered(query, where).rename_columns([*names.values()])

    def batches(self) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
        """All fields of every model, and the vectors as they are [n, dim], some at a time."""
        with self._damage():
            for batch in self._table.search().select([*FIELDS, "vector"]).to_batches(BATCH_ROWS):
                yield batch.select(list(FIELDS)).to_pylist(), vectors_of(batch["vector"])

    def _all_vectors(self) -> Iterator[np.ndarray]:
        with self._damage():
            for batch in self._table.search().select(["vector"]).to_batches(BATCH_ROWS):
                yield vectors_of(batch["vector"])
