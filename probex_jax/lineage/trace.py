"""The family tree of many models.

A first pass sketches each model. Sketches tell which models may be copies, which are kin, whose
neighbours they are and what was merged; only neighbours are then compared in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probex_jax.engine import HERE, Died, Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.lineage.attempts import or_error
from probex_jax.lineage.comparing import Comparing, Progress
from probex_jax.lineage.copies import confirmed, find_copies
from probex_jax.lineage.families import families
from probex_jax.lineage.growing import Growing
from probex_jax.lineage.lineage import Copies, Lineage, Node
from probex_jax.lineage.marks import Mark, mark
from probex_jax.lineage.sketch import Sketch, sketch
from probex_jax.model_files import fingerprint, open_model

_LARGEST = 1e12  # squares of larger weights would not fit in float32


@dataclass(frozen=True, eq=False)
class _Seen:
    architecture: str
    sketch: Sketch
    mark: Mark | None
    is_adapter: bool


def trace(
    paths: Iterable[str | Path],
    ids: Sequence[str] | None = None,
    *,
    engine: Engine = HERE,
    readers: int = 4,
    on_progress: Progress = lambda what, done, total: None,
) -> Lineage:
    """Finds who descends from whom among models, which are copies, and which are merges.

    Args:
      paths: of the models, as for `open_model`.
      ids: their names, each once; None for the paths.
      engine: who reads and compares them.
      readers: threads of each worker that read.
      on_progress: called with what is done, how much of it is, and how much there is.

    Returns:
      The family tree.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from safetensors.numpy import save_file
      >>> folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> root = rng.normal(size=(64, 48))
      >>> child, other = (root + 0.1 * rng.normal(size=root.shape) for _ in range(2))
      >>> grandchild = child + 0.1 * rng.normal(size=root.shape)
      >>> models = {"root": root, "child": child, "other": other, "grandchild": grandchild}
      >>> for name, weights in models.items():
      ...     save_file({"body.weight": weights.astype("f4")}, folder / f"{name}.safetensors")
      >>> found = trace([folder / f"{name}.safetensors" for name in models], [*models])
      >>> sorted((edge.parent, edge.child) for edge in found.edges)
      [('child', 'grandchild'), ('root', 'child'), ('root', 'other')]

    References:
      docs/lineage.md.
    """
    found_at = [Path(path) for path in paths]
    ids = [str(path) for path in found_at] if ids is None else list(ids)
    if len(ids) != len(found_at) or len(set(ids)) < len(ids):
        raise ValueError("ids: expected one for each path, each once")
    seen: dict[int, _Seen] = {}
    failed: dict[str, str] = {}
    read = engine.map(_sketching, in_parts(found_at), readers=readers, computes=False)
    for number, (path, found) in enumerate(flattened(read)):
        if isinstance(found, ProbexError):
            failed[ids[number]] = f"{path}: {found}" if isinstance(found, Died) else str(found)
        else:
            seen[number] = found
        on_progress("reading", number + 1, len(found_at))
    copies = _copies(seen, found_at, ids, engine)
    copy_of = {copy: group.models[0] for group in copies for copy in group.models[1:]}
    traced = Growing(ids, Comparing(found_at, engine, readers, on_progress))
    sketches = {n: found.sketch for n, found in seen.items() if ids[n] not in copy_of}
    for family in families(sketches):
        traced.add(family)
    adapters = [n for n, found in seen.items() if n in sketches and found.is_adapter]
    if adapters:
        traced.add_adapters(adapters, [n for n in sketches if not seen[n].is_adapter])
    return _lineage(seen, found_at, ids, traced, copies, copy_of, failed)


def _lineage(
    seen: Mapping[int, _Seen],
    paths: Sequence[Path],
    ids: Sequence[str],
    traced: Growing,
    copies: tuple[Copies, ...],
    copy_of: Mapping[str, str],
    failed: Mapping[str, str],
) -> Lineage:
    parents = {edge.child for edge in traced.edges}
    children = {edge.parent for edge in traced.edges}

    def origin(number: int) -> str:
        id = ids[number]
        if id in copy_of:
            return "copy"
        if id in parents:
            return "derived"
        if number in traced.orphans:
            return "unknown parent"
        return "root" if id in children else "alone"

    nodes = [
        Node(
            ids[number],
            str(paths[number]),
            found.architecture,
            origin(number),
            copy_of.get(ids[number], ""),
        )
        for number, found in seen.items()
    ]
    order = {id: place for place, id in enumerate(ids)}
    edges = sorted(traced.edges, key=lambda edge: (order[edge.child], order[edge.parent]))
    return Lineage(tuple(nodes), tuple(edges), copies, dict(failed))


def _copies(
    seen: Mapping[int, _Seen], paths: Sequence[Path], ids: Sequence[str], engine: Engine
) -> tuple[Copies, ...]:
    numbers = [*seen]
    candidates = find_copies([seen[number].mark for number in numbers])
    return confirmed(candidates, [(ids[n], paths[n]) for n in numbers], engine=engine)


def _sketching() -> Work:
    return Work(lambda path: or_error(_see, path), lambda part, found: found)


def _see(path: Path) -> _Seen:
    with open_model(path) as model:
        model.check_has_layers()
        found = sketch(model)
        if (largest := float(np.abs(found.values).max(initial=0))) > _LARGEST:
            raise ProbexError(f"{path}: weights of {largest:.0e} are too large to be compared")
        is_adapter = any(layer.is_update for layer in model.layers.values())
        seen = _Seen(fingerprint(model), found, mark(found), is_adapter)
        model.check_unchanged()
        return seen
