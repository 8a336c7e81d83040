"""Checks stores, experts, forests, lineages and indexes for damage.

PATH is a layer store, an expert, the work directory of a training, a forest, a lineage or an index,
or a folder of these, on disk or in a bucket (s3://, gs://). Everything in it is read. Each fault is
one line that names the file. The exit code is 0 if everything is intact, 1 if something is damaged,
2 if something could not be checked.

Example:
  probex verify out/store out/trained out/forest out/index
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import probex_jax as px
from experiments import cli
from probex_jax.bucket_paths import as_path
from probex_jax.experts import verify_experts
from probex_jax.forest import verify_forest
from probex_jax.layer_store import verify_store
from probex_jax.lineage import verify_lineage
from probex_jax.search import verify_index

Verify = Callable[..., Iterator[str]]
Row = dict[str, object]

_DAMAGED, _NOT_CHECKED = "damaged", "not checked"

# What tells each kind, the surest first: an index has an expert in it, too.
_KINDS: Sequence[tuple[str, Verify, Sequence[str]]] = (
    ("index", verify_index, ("index.json", "models.sums.json", "models.lance")),
    ("forest", verify_forest, ("forest.json", "trees")),
    ("lineage", verify_lineage, ("lineage.json",)),
    ("store", verify_store, ("store.json", "models.jsonl")),
    ("experts", verify_experts, ("orbax.checkpoint", "expert", "layers", "training")),
)
# Of a training without experts; a model of the hub has a config.json, too.
_TRAINING = ("config.json", "metrics.json")
# How deep such folders may lie in one that is none, as in the --workdir of demo.
_DEPTH = 3


def main(paths: Sequence[str]) -> int:
    if not paths:
        raise px.ProbexError("give one or more stores, experts, forests, lineages or indexes")
    rows = [row for path in paths for row in _verified(as_path(path))]
    if any(row["result"] != _NOT_CHECKED for row in rows):
        print(cli.table(rows))
    found = {row["result"] for row in rows}
    return 1 if _DAMAGED in found else 2 if _NOT_CHECKED in found else 0


def _verified(path: Path) -> Iterator[Row]:
    """A row for each folder of ours that a path means; none has one, too."""
    found = list(_found(path))
    if not found:
        what = (
            "no store, expert, forest, lineage or index here" if path.exists() else "no such folder"
        )
        print(cli.one_line(f"error: {path}: {what}"), file=sys.stderr)
        yield _row(path, "", _NOT_CHECKED)
    for folder, kind, verify in found:
        yield _row_of(folder, kind, verify)


def _found(path: Path, depth: int = _DEPTH) -> Iterator[tuple[Path, str, Verify]]:
    for kind, verify, marks in _KINDS:
        if any((path / mark).exists() for mark in marks):
            yield path, kind, verify
            return
    if all((path / name).exists() for name in _TRAINING):
        yield path, "experts", verify_experts
    elif depth and path.is_dir():
        for inside in sorted(path.iterdir()):
            if inside.is_dir() and not inside.name.startswith("."):
                yield from _found(inside, depth - 1)


def _row_of(path: Path, kind: str, verify: Verify) -> Row:
    """The row of a folder, whose damages are printed as they are found."""
    damages = 0
    with cli.progress(0, "verifying", "B") as bar:
        try:
            for line in verify(path, on_total=bar.reset, on_bytes=bar.update):
                bar.write(cli.one_line(line))
                damages += 1
        except px.ProbexError as error:
            bar.write(cli.one_line(f"error: {error}"), file=sys.stderr)
            return _row(path, kind, _DAMAGED if damages else _NOT_CHECKED, damages)
    return _row(path, kind, _DAMAGED if damages else "whole", damages)


def _row(path: Path, kind: str, result: str, damages: int = 0) -> Row:
    return {"path": cli.one_line(str(path)), "kind": kind, "damages": damages, "result": result}


if __name__ == "__main__":
    cli.run_with_arguments(main)
