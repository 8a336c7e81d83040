"""An index of models by the representations of an expert, searched by text or by model.

index.json        format, version, identity of the expert, state of the ANN index
expert/           a copy of the expert
models.lance/     the LanceDB table
models.sums.json  checksums of its files
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.bucket_paths import as_path, remove_folder
from probex_jax.engine import HERE, Died, Engine, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, sized
from probex_jax.files import WRITER_LOCK, disk_errors, one_writer, write_json
from probex_jax.forest import Forest
from probex_jax.integrity import sealed
from probex_jax.search import checksums
from probex_jax.search.embedding import each_asked, embedding, is_there, predicting
from probex_jax.search.folders import FoundModel
from probex_jax.search.hits import AddSummary, Hit
from probex_jax.search.identity import FORMAT, UNCHECKED, VERSION, identity, read_about, show
from probex_jax.search.searching import Searchable
from probex_jax.search.table import ModelTable

# From here on an approximate index is built, and rebuilt when the models have doubled. Below it the
# product of all vectors in memory (205 MB at 512 dimensions) takes 22 ms, and the approximate index
# 12 ms; ten times as many take 480 and 80 ms (results/repository.md).
ANN_MODELS = 100_000
# Models of a commit to the table, which a kill can lose: as many as come in ten times the time of
# the last commit, which takes longer the larger the table is.
_COMMIT_MODELS, _MOST_COMMITTED = 256, 4096
_COMMIT_SHARE = 0.1


class Index(Searchable):
    """Models in the representation space of one expert; use `create_or_open` or `open`.

    Attributes:
      path: the index's folder.
      about: the content of `index.json`.

    Example:
      >>> import pathlib, tempfile, jax, jax.numpy as jnp, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax.fitting import build_network
      >>> from probex_jax.search import find_models
      >>> encoder = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
      >>> network = build_network(encoder, head="class", n_outputs=1)
      >>> expert = Expert(network.init(jax.random.key(0), jnp.ones([1, 6, 5])), {
      ...     "encoder": encoder, "head": "class", "layer": "fc.weight", "shape": [6, 5],
      ...     "tree": "Mini", "classes": ["one"]})
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for seed in range(3):
      ...     x = np.random.default_rng(seed).normal(size=(6, 5)).astype("f4")
      ...     save_file({"fc.weight": x}, folder / f"{seed}.safetensors")
      >>> index = Index.create_or_open(folder / "index", expert)
      >>> index.add_models(find_models(folder)).added
      3
      >>> [hit.id for hit in index.search(like=folder / "1.safetensors", where="id <> '2'")]
      ['0']
    """

    def __init__(self, path: Path, about: dict[str, Any], *, create: bool = False):
        self.path, self.about = path, about
        self._is_new, self._folder_is_new = create, False
        checked = about["version"] != UNCHECKED
        dim = about["expert"]["rep_dim"]
        self._table = ModelTable(path, dim, create=create, checked=checked)

    def __len__(self) -> int:
        return len(self._table)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.path,)

    @classmethod
    def create_or_open(cls, path: str | Path, expert: Expert) -> Index:
        """Opens the index at a path, or creates an empty one in a new or empty folder.

        Raises:
          ProbexError: if lancedb is missing, the index is of another expert, or the folder holds
            other files or is being written.
        """
        path, ours = as_path(path), identity(expert)
        folder_is_new = not path.exists()
        with one_writer(path):
            if (path / "index.json").exists():
                index = cls.open(path)
                if index.about["expert"] != ours:
                    raise ProbexError(
                        f"{path}: index of the expert of {show(index.about['expert'])}, "
                        f"not of {show(ours)}; choose another expert or folder"
                    )
                return index
            with disk_errors(path):
                others = {e.name for e in path.iterdir() if not e.name.startswith(_PREFIXES)}
            others -= _LEFTOVERS
            if others:
                raise ProbexError(
                    f"{path}: holds other files ({min(others)}); choose another folder"
                )
            about = {"format": FORMAT, "version": VERSION, "expert": ours, "ann": None}
            index = cls(path, about, create=True)
            index._folder_is_new = folder_is_new
            expert.save(path / "expert")
            index._write_about(about)
            return index

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Opens an index.

        Raises:
          ProbexError: if lancedb is missing, or the index is missing or damaged.
        """
        path = as_path(path)
        return cls(path, read_about(path))

    @property
    def name(self) -> str:
        """Its folder."""
        return str(self.path)

    @cached_property
    def expert(self) -> Expert:
        """The expert that encodes the models."""
        expert = Expert.load(self.path / "expert")
        if identity(expert) != self.about["expert"]:
            raise ProbexError(
                f"{self.path}: holds the expert of {show(identity(expert))}, its vectors are "
                f"of {show(self.about['expert'])}; index again into another folder"
            )
        return expert

    def add_models(
        self,
        models: Iterable[FoundModel],
        *,
        forest: Forest | None = None,
        engine: Engine = HERE,
        readers: int = 4,
        on_model: Callable[[str], None] = lambda reason: None,
    ) -> AddSummary:
        """Embeds new and changed models.

        A model is unchanged if its path, id, tree, split, `labels.json`, the names, sizes and times
        of its files and the experts that predict its attributes are. One that cannot be read keeps
        its row. The run can be killed at any time and repeated.

        Args:
          models: from `find_models` or `each_model`; there may be any number of them.
          forest: refuses models of other trees, and predicts their attributes, which are kept;
            without it, every model with the layers of the expert is embedded.
          engine: who reads and embeds them.
          readers: threads of each worker that read models.
          on_model: called after each model with the reason why it failed, or "".

        Raises:
          ProbexError: if the disk is full, the index is damaged or being written, or it holds
            attributes and no forest is given.
        """
        if forest is None and self.attributes:
            raise ProbexError(
                f"{self.path}: it holds attributes that a forest predicts; give the forest, or "
                "index into another folder"
            )
        counts = {"added": 0, "updated": 0, "unchanged": 0}
        failed: dict[str, str] = {}
        rows: list[dict[str, Any]] = []
        vectors: list[np.ndarray] = []

        due_s = 0.0

        def flush() -> None:
            nonlocal due_s
            start_s = time.monotonic()
            if rows:
                self._table.add(rows, vectors)
            rows.clear()
            vectors.clear()
            end_s = time.monotonic()
            due_s = end_s + (end_s - start_s) / _COMMIT_SHARE

        with self._writing():
            self._table.index_paths()
            tree = predicting(forest, self.expert)
            layers = [self.expert.layers, *([tree.layers] if tree else [])]
            size, models = sized(layers, models)
            work = partial(embedding, self.expert, size, forest)
            known = self._table.stamps if len(self) else lambda paths: {}
            wanted = each_asked(models, known, at_a_time=_COMMIT_MODELS)
            done = engine.map(work, in_parts(wanted, size), readers=readers)
            for asked, found in flattened(done):
                row, vector_T = ({}, found) if isinstance(found, Died) else found
                if isinstance(vector_T, ProbexError):
                    failed[asked.model.id] = reason = str(vector_T)
                    on_model(
                        reason if str(asked.model.path) in reason else f"{asked.model.id}: {reason}"
                    )
                    continue
                if vector_T is None:
                    counts["unchanged"] += 1
                else:
                    counts["added" if asked.stamp is None else "updated"] += 1
                    rows.append(row)
                    vectors.append(vector_T)
                    is_due = len(rows) >= _COMMIT_MODELS and time.monotonic() >= due_s
                    if is_due or len(rows) >= _MOST_COMMITTED:
                        flush()
                on_model("")
            flush()
        return AddSummary(**counts, failed=failed)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """As the only writer, of an index that is upgraded and free of duplicates by then."""
        with one_writer(self.path):
            if self._table.needs_mending():
                if self.about["ann"] is not None:
                    self._note_ann(None)
                self._table.mend()
            if self.about["version"] == UNCHECKED:
                self._table.keep_sums()
                self._write_about(self.about | {"version": VERSION})
            yield

    def near(self, vector: np.ndarray, k: int = 10, where: str | None = None) -> list[Hit]:
        """The models most similar to a vector [T]; otherwise as `search`."""
        return [_hit(row) for row in self._table.nearest(vector, k, where)]

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that the models may have."""
        return tuple(self._table.attributes)

    def ordered(self, k: int, sort: str = "", where: str | None = None) -> list[Hit]:
        """The first models by an attribute, of all that meet a condition; otherwise as `search`."""
        return [_hit(row | {"similarity": 0.0}) for row in self._table.ordered(k, sort, where)]

    def everything(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        """All models: their fields of `Hit` except the similarity, and unit vectors [N, T]."""
        fields = set(Hit.__dataclass_fields__) - {"similarity", "attributes"}
        return self._table.everything(sorted(fields))

    def exported(self, where: str | None = None) -> Any:
        """An Arrow table of the models that meet a condition; see `Indexes.export`."""
        return self._table.exported(where)

    def prune(self) -> int:
        """Removes models that no longer exist; returns their number."""
        with self._writing():
            gone = [path for path in self._table.paths() if not is_there(Path(path))]
            self._table.remove(gone)
        return len(gone)

    def optimise(self) -> float | None:
        """Compacts the table; from `ANN_MODELS` models on, builds or extends the ANN index.

        With fewer models, an ANN index is dropped.

        Returns:
          Its recall@10 against an exact scan, also written to `index.json`; None without one.

        Raises:
          ProbexError: if the disk is full, or the index is damaged or being written.
        """
        with self._writing():
            self._table.compact()
            ann, n = self.about["ann"], len(self)
            if n < ANN_MODELS:
                if ann is not None:
                    self._table.drop_ann()
                    self._note_ann(None)
                return None
            if ann is None or n >= 2 * ann["models"]:
                self._table.build_ann()
                ann = {"models": n}
            recall = self._table.recall()
            self._note_ann({"models": ann["models"], "recall_at_10": recall})
            return recall

    def discard_if_new(self) -> None:
        """Removes the index if this object created it."""
        if not self._is_new:
            return
        with one_writer(self.path):
            for name in ("index.json", "expert", checksums.NAME, "models.lance"):
                made = self.path / name
                remove_folder(made) if made.is_dir() else made.unlink(missing_ok=True)
        if self._folder_is_new:
            with suppress(OSError):  # not empty
                self.path.rmdir()

    def _note_ann(self, ann: dict[str, Any] | None) -> None:
        self._write_about({**self.about, "ann": ann})

    def _write_about(self, about: dict[str, Any]) -> None:
        self.about = about
        write_json(self.path / "index.json", sealed(about))


def _hit(row: Mapping[str, Any]) -> Hit:
    fields = {name: row[name] for name in Hit.__dataclass_fields__}
    return Hit(**fields | {"labels": tuple(row["labels"])})


# What an interrupted creation may leave in the folder: names, and prefixes of names.
_LEFTOVERS = {"expert", "models.lance", checksums.NAME, WRITER_LOCK}
_PREFIXES = (".clock-", "expert.new", "index.json.", f"{checksums.NAME}.")
