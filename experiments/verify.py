"""Checks stores, experts, forests and indexes whole, for damage of any kind.

PATH is a layer store, an expert, the work directory of a training, a forest or an index, here or
in a bucket (s3://, gs://). Everything in it is read. Each damage is a line that names the file. The
exit code is 0 if all is whole, 1 if something is damaged, 2 if something could not be checked.

Example:
  python -m experiments.verify out/store out/trained out/forest out/index
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
from probex_jax.search import verify_index

Verify = Callable[..., Iterator[str]]

# What tells each kind, the surest first: an index has an expert in it, too.
_KINDS: Sequence[tuple[str, Verify, Sequence[str]]] = (
    ("index", verify_index, ("index.json", "models.sums.json", "models.lance")),
    ("forest", verify_forest, ("forest.json", "trees")),
    ("store", verify_store, ("store.json", "models.jsonl")),
    ("experts", verify_experts, ("",)),
)


def main(paths: Sequence[str]) -> int:
    if not paths:
        raise px.ProbexError("give one or more stores, experts, forests or indexes")
    rows = [_verified(as_path(path)) for path in paths]
    print(cli.table(rows))
    found = {row["result"] for row in rows}
    return 1 if "damaged" in found else 2 if "not checked" in found else 0


def _verified(path: Path) -> dict[str, object]:
    """The row of a path, whose damages are printed as they are found."""
    row: dict[str, object] = {"path": cli.one_line(str(path)), "kind": "", "damages": 0}
    with cli.progress(0, "verifying", "B") as bar:
        try:
            if not path.exists():
                raise px.ProbexError(f"{path}: no such folder")
            kind, verify = _kind(path)
            row["kind"] = kind
            lines = list[str]()
            for line in verify(path, on_total=bar.reset, on_bytes=bar.update):
                bar.write(cli.one_line(line))
                lines.append(line)
        except px.ProbexError as error:
            bar.write(cli.one_line(f"error: {error}"), file=sys.stderr)
            return row | {"result": "not checked"}
    return row | {"damages": len(lines), "result": "damaged" if lines else "whole"}


def _kind(path: Path) -> tuple[str, Verify]:
    return next(
        (kind, verify)
        for kind, verify, marks in _KINDS
        if any((path / mark).exists() for mark in marks)
    )


if __name__ == "__main__":
    cli.run_with_arguments(main)
