"""Several indexes of one expert, searched as one."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from probex_jax.bucket_paths import as_path
from probex_jax.errors import ProbexError
from probex_jax.experts import Expert
from probex_jax.files import write_bytes
from probex_jax.search.attributes import order
from probex_jax.search.hits import Hit, sorted_by
from probex_jax.search.identity import show
from probex_jax.search.index import Index
from probex_jax.search.searching import Searchable


class Indexes(Searchable):
    """Several indexes of one expert, searched as one; several writers at once can each fill one.

    A model that is in more than one of them is found once, where it is most similar.

    Args:
      indexes: one or more.

    Attributes:
      indexes: as given.
      about: `expert` is the identity of the expert.

    Raises:
      ProbexError: if there is none, or two are not of the same expert.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from probex_jax.fitting import build_network
      >>> encoder = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 2}
      >>> network = build_network(encoder, head="class", n_outputs=1)
      >>> expert = Expert(network.init(jax.random.key(0), jnp.ones([1, 6, 5])), {
      ...     "encoder": encoder, "head": "class", "layer": "fc.weight", "shape": [6, 5],
      ...     "tree": "Mini", "classes": ["one"]})
      >>> both = Indexes([Index.create_or_open(tempfile.mkdtemp(), expert) for _ in "ab"])
      >>> len(both), both.near([1, 0])
      (0, [])
    """

    def __init__(self, indexes: Sequence[Index]):
        if not indexes:
            raise ProbexError("give one or more indexes")
        first, self.indexes = indexes[0], tuple(indexes)
        for other in indexes[1:]:
            if other.about["expert"] != first.about["expert"]:
                raise ProbexError(
                    f"{other.path}: index of the expert of {show(other.about['expert'])}, "
                    f"{first.path} is of {show(first.about['expert'])}; search those together that "
                    "one expert made"
                )
        self.about = {"expert": first.about["expert"]}

    @classmethod
    def open(cls, *paths: str | Path) -> Indexes:
        """Opens indexes; raises as `Index.open` and `Indexes`."""
        return cls([Index.open(path) for path in paths])

    def __len__(self) -> int:
        """The number of rows; a model in two indexes counts twice."""
        return sum(map(len, self.indexes))

    @property
    def name(self) -> str:
        """The folders of the indexes."""
        return ",".join(index.name for index in self.indexes)

    @property
    def expert(self) -> Expert:
        """The expert that encodes the models."""
        return self.indexes[0].expert

    def near(self, vector: np.ndarray, k: int = 10, where: str | None = None) -> list[Hit]:
        """The models most similar to a vector [T]; otherwise as `search`."""
        with ThreadPoolExecutor(len(self.indexes)) as searchers:
            found = searchers.map(lambda index: index.near(vector, k, where), self.indexes)
            hits = sorted((hit for hits in found for hit in hits), key=lambda hit: -hit.similarity)
        return list(_first_of_each_path(hits).values())[:k]

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that the models may have."""
        return tuple(dict.fromkeys(name for index in self.indexes for name in index.attributes))

    def ordered(self, k: int, sort: str = "", where: str | None = None) -> list[Hit]:
        """The first models by an attribute, of all that meet a condition; otherwise as `search`."""
        found = [hit for index in self.indexes for hit in index.ordered(k, sort, where)]
        once = list(_first_of_each_path(found).values())
        if sort:
            name, falling = order(sort, self.attributes)
            once = sorted_by(once, name, falling=falling)
        return once[:k]

    def export(self, path: str | Path, where: str | None = None) -> int:
        """Writes models with their vectors to a Parquet file, for viewers of large maps.

        Its columns are those of `Hit` without the similarity, `vector`, and one for each attribute,
        such as `predicted accuracy`.

        Args:
          path: the file; its folder must exist.
          where: as for `search`; all models without it.

        Returns:
          The number of models.

        Raises:
          ProbexError: if the condition is invalid, an attribute is of another kind in another
            index, an index is damaged, or the file cannot be written.
        """
        import pyarrow
        from pyarrow import parquet

        tables = [index.exported(where) for index in self.indexes]
        try:
            found = pyarrow.concat_tables(tables, promote_options="default")
        except pyarrow.ArrowException as error:
            raise ProbexError(f"{self.name}: {error}") from None
        first: dict[str, int] = {}
        for place, of in enumerate(found["path"].to_pylist()):
            first.setdefault(of, place)
        written = io.BytesIO()
        parquet.write_table(found.take(pyarrow.array(first.values(), pyarrow.int64())), written)
        write_bytes(as_path(path), written.getvalue())
        return len(first)


def _first_of_each_path(hits: Iterable[Hit]) -> dict[str, Hit]:
    first: dict[str, Hit] = {}
    for hit in hits:
        first.setdefault(hit.path, hit)
    return first
