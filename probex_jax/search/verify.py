"""Checks an index whole: the checksum of every file, the expert, and every row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from hashlib import blake2b
from math import isclose
from pathlib import Path

import numpy as np

from probex_jax.bucket_paths import as_path, sizes_below
from probex_jax.errors import ProbexError
from probex_jax.experts.verify import verify_hash
from probex_jax.integrity import noted
from probex_jax.model_files.untrusted_text import quoted
from probex_jax.search import checksums
from probex_jax.search.identity import UNCHECKED, read_about
from probex_jax.search.table import ModelTable

_TOLERANCE = 1e-3


def verify_index(
    path: str | Path,
    *,
    on_total: Callable[[int], None] = lambda n: None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Iterator[str]:
    """Checks an index, which may be being written: the version that is listed is read.

    Args:
      path: the index's folder.
      on_total: called with the number of bytes that will be read.
      on_bytes: called with the number of bytes that were read since the last call.

    Yields:
      A line for each damage, which begins with the path of the file.

    Raises:
      ProbexError: if there is no index, or lancedb is missing.
    """
    path = as_path(path)
    sizes = sizes_below(path)
    table = path / "models.lance"
    if path / "index.json" not in sizes and not any(table in file.parents for file in sizes):
        raise ProbexError(f"{path}: no index here; create one with probex index")
    about, verified = None, None
    damages: list[str] = []
    with noted(damages):
        if path / "index.json" not in sizes:
            raise ProbexError(checksums.damage(path / "index.json", "missing"))
        about = read_about(path)
    with noted(damages):
        verified = checksums.read(path)
    yield from damages
    version, sums = verified or (0, {})
    if about and about["version"] != UNCHECKED and verified and not version:
        yield checksums.damage(path / checksums.NAME, "missing")
    expert = path / "expert"
    of_expert = sum(size for file, size in sizes.items() if expert in file.parents)
    on_total(sum(sizes.get(path / name, 0) for name in sums) + of_expert)

    found = [verified is None]
    missing: list[str] = []
    for name, is_whole in checksums.each(path, sums):
        if is_whole is None:
            missing.append(name)
        elif not is_whole:
            yield checksums.damage(path / name)
        found.append(is_whole is False)
        on_bytes(sizes.get(path / name, 0))

    yield from verify_hash(expert, about["expert"]["hash"] if about else "")
    on_bytes(of_expert)
    if any(found) or about is None:
        return  # a damaged file of the table can end the process

    damages = []
    with noted(damages):
        opened = ModelTable(path, about["expert"]["rep_dim"], verified=(version, sums))
        damages += _rows(opened, path)
    if damages:
        # What writers removed since the list was written is missing, too; then the rows are whole.
        yield from (checksums.damage(path / name, "missing") for name in missing)
    yield from damages


def _rows(table: ModelTable, path: Path) -> Iterator[str]:
    """A line for each row whose vector cannot be, or whose path is another row's, too."""
    where, hashes, count = path / "models.lance", [np.zeros(0, "u8")], 0
    for rows, vectors_NT in table.batches():
        for row, length in zip(rows, np.linalg.norm(vectors_NT, axis=1).tolist(), strict=True):
            if not isclose(length, 1, abs_tol=_TOLERANCE):
                yield f"{where}: {quoted(row['path'])}: its vector has length {length:.3g}, not 1"
        hashes.append(np.array([_hash(row["path"]) for row in rows], "u8"))
        count += len(rows)
    if count != len(table):
        yield f"{where}: {len(table)} rows are said to be there, {count} are"
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    if twice := set(values[counts > 1].tolist()):
        yield from _duplicates(table, where, twice)


def _duplicates(table: ModelTable, where: Path, twice: set[int]) -> Iterator[str]:
    """A line for each path of several rows, among those with these hashes."""
    counts: dict[str, int] = defaultdict(int)
    for rows, _ in table.batches():
        for row in rows:
            if _hash(row["path"]) in twice:
                counts[row["path"]] += 1
    for path, count in counts.items():
        if count > 1:
            yield f"{where}: {quoted(path)} has {count} rows; indexing again keeps one"


def _hash(path: str) -> int:
    return int.from_bytes(blake2b(path.encode(errors="surrogatepass"), digest_size=8).digest())
