"""Packs models from the hub into a layer store; downloads only the bytes of its layers."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from probex_jax.bucket_paths import on_a_disk
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, one_writer, parse_json
from probex_jax.layer_store.packing import PackSummary, pack
from probex_jax.layer_store.store import LayerStore
from probex_jax.model_files.hub import hub_repo
from probex_jax.model_files.remote import Remote
from probex_jax.prefetch import prefetch
from probex_jax.zoo import Tables, Zoo, ZooModel
from probex_jax.zoo.label_files import labels_of
from probex_jax.zoo.model_j_table import ListedModel, Table

# In the store's folder until all models are packed: commits, and byte ranges to be packed.
_FOLDER = ".download"


def pack_from_hub(
    table: Table,
    out: str | Path,
    layers: int | str | Sequence[int | str],
    remote: Remote,
    *,
    jobs: int = 8,
    on_models: Callable[[int], None] = lambda total: None,
    on_model: Callable[[str], None] = lambda reason: None,
) -> PackSummary:
    """Packs layers of those models of a table that a store does not hold yet, as `pack` does.

    Bytes are kept in the store's folder until they are packed: after a kill, the next run continues
    and downloads nothing twice. Each model is read at one commit. Give all splits in one run, since
    a store's classes are those of the models that it was made from.

    Args:
      table: the models.
      out: the store's folder is `out/<subset>`.
      layers: which layers, as `select_layers` takes them.
      remote: how they are read; its cache is not used.
      jobs: how many models are read at a time.
      on_models: called once with the number of models to pack.
      on_model: called after each model with the reason why it was skipped, or "".

    Returns:
      As `pack` does.

    Raises:
      ProbexError: as `pack` does, or if nothing can be written to the folder.

    Example:
      >>> from probex_jax import read_table
      >>> table = read_table("SupViT", (), Remote())  # doctest: +SKIP
      >>> pack_from_hub(table, "stores", 59, Remote()).store.path  # doctest: +SKIP
      PosixPath('stores/SupViT')
    """
    path = on_a_disk(out) / table.subset
    with one_writer(path):
        if any((path / model.split).exists() for model in table.models):
            raise ProbexError(
                f"{path}: holds whole models; choose another --out for a store of layers"
            )
        store = LayerStore.open(path) if (path / "store.json").exists() else None
        if store is None and not any(model.split == "train" for model in table.models):
            raise ProbexError(
                f"{path}: a new store takes its classes from training models; give the split "
                "train, too"
            )
        packed = {model.id for model in store.models} if store else set()
        missing = [model for model in table.models if model.id not in packed]
        on_models(len(missing))
        if missing:
            with disk_errors(path):
                (path / _FOLDER).mkdir(parents=True, exist_ok=True)
        reading = Remote(on_bytes=remote.on_bytes)
        remotes = {model.id: replace(reading, cache=path / _FOLDER / model.id) for model in missing}
        try:
            commits = _commits(missing, path / _FOLDER / "commits.jsonl", remotes, jobs)
            models = tuple(
                ZooModel(
                    model.id,
                    model.split,
                    Path(str(model.address(commits.get(model.repo, "")))),
                    remote=remotes.get(model.id),
                )
                for model in table.models
            )
            labels = labels_of(table.columns, table.subset)
            tables = Tables(labels.columns, labels.numbers)
            summary = pack(
                Zoo(table.subset, models, None, table.texts, tables=tables),
                path,
                layers,
                readers=jobs,
                on_model=on_model,
                on_packed=lambda models: _drop(models, path / _FOLDER),
            )
        finally:
            reading.stopped.set()
        # The next run looks at skipped models anew: their authors may have mended them.
        shutil.rmtree(path / _FOLDER, ignore_errors=True)
        return summary


def _drop(models: Sequence[ZooModel], folder: Path) -> None:
    """Deletes the downloaded ranges of packed models."""
    for model in models:
        shutil.rmtree(folder / model.id, ignore_errors=True)


def _commits(
    models: Sequence[ListedModel], path: Path, remotes: Mapping[str, Remote], jobs: int
) -> Mapping[str, str]:
    """The commit of each repository, kept in a file; repositories that the hub refuses lack one."""
    known: dict[str, str] = {}
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)  # a kill may have cut the last line short
        known = dict(parse_json(line, str(path)) for line in path.read_bytes().splitlines())
    if not models:
        return known
    unknown = list(dict.fromkeys(m.repo for m in models if m.repo not in known))
    first = {model.repo: model for model in reversed(models)}

    def commit(repo: str) -> str:
        try:
            address = replace(first[repo].address(), path="")
            return hub_repo(address, remotes[first[repo].id]).commit
        except ProbexError:
            return ""  # opening the model gives the reason

    with disk_errors(path), path.open("a") as file:
        for repo, found in prefetch(commit, unknown, jobs):
            if found:
                known[repo] = found
                file.write(json.dumps([repo, found]) + "\n")
                file.flush()
    return known
