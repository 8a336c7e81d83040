"""Discovering trees among models of unknown origin, in one pass and bounded memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probex_jax.buckets import address_of
from probex_jax.engine import HERE, Died, Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.forest.clusters import MODELS_AT_ONCE, Clusters
from probex_jax.forest.sketch import Sketch
from probex_jax.lineage.marks import Mark, mark
from probex_jax.lineage.sketch import sketch as sketch_of
from probex_jax.model_files import ModelFile, fingerprint, open_model, stated_base
from probex_jax.model_files.architecture import base_key


@dataclass(frozen=True)
class FoundTree:
    """A tree that was discovered.

    Args:
      fingerprint: of its architecture.
      base: the ancestor that most of its models state; "" if none does.
      is_lora: whether they are LoRAs.
      members: numbers of its models, in the given order.
    """

    fingerprint: str
    base: str
    is_lora: bool
    members: tuple[int, ...]

    @property
    def kind(self) -> str:
        """What its models are, in words."""
        return "LoRAs" if self.is_lora else "whole models"


@dataclass(frozen=True)
class Discovery:
    """The result of `discover`.

    Args:
      trees: the trees, largest first.
      failed: number of each unreadable model to the reason.
      contents: number of each other model to a hash of the rows that were read: copies share it.
      marks: number to what `lineage.copies.find_copies` needs, of the models on a disk that have
        one.
    """

    trees: tuple[FoundTree, ...]
    failed: dict[int, str]
    contents: dict[int, str]
    marks: dict[int, Mark]


@dataclass(frozen=True)
class _Seen:
    fingerprint: str
    base: str
    is_lora: bool
    sketch: Sketch
    sketch_D: np.ndarray
    mark: Mark | None


def discover(
    paths: Iterable[str | Path],
    *,
    by_base: bool = True,
    models_at_once: int = MODELS_AT_ONCE,
    engine: Engine = HERE,
    on_model: Callable[[str], None] = lambda reason: None,
) -> Discovery:
    """Finds groups of models with a common ancestor.

    Models of one architecture (`model_files.fingerprint`) are clustered by the cosines of a few
    rows of their weights, down to what unrelated models reach (`sketch`, `clusters`). LoRAs form a
    tree if they change the same layers of the same base model; those without a base model join the
    only one that others name.

    Args:
      paths: of the models, as for `open_model`.
      by_base: whether LoRAs that name different base models are of different trees.
      models_at_once: models of an architecture that are clustered together; bounds the memory.
      engine: who reads the models.
      on_model: called after each model with the reason why it could not be read, or "".

    Returns:
      The trees and the unreadable models.

    Example:
      >>> import pathlib, tempfile
      >>> from safetensors.numpy import save_file
      >>> folder, rng = pathlib.Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> roots, paths = rng.normal(size=(2, 16, 16)), []
      >>> for number in range(6):
      ...     weights = {"fc1.weight": roots[number % 2] + 0.1 * rng.normal(size=(16, 16))}
      ...     paths.append(folder / f"{number}.safetensors")
      ...     save_file(weights, paths[-1])
      >>> [tree.members for tree in discover(paths).trees]
      [(0, 2, 4), (1, 3, 5)]
    """
    groups: dict[tuple[str, str, bool], Clusters] = {}
    bases: dict[int, str] = {}
    failed: dict[int, str] = {}
    contents: dict[int, str] = {}
    marks: dict[int, Mark] = {}
    read = engine.map(_work, in_parts(map(Path, paths)), computes=False)
    for number, (path, seen) in enumerate(flattened(read)):
        if isinstance(seen, ProbexError):
            failed[number] = f"{path}: {seen}" if isinstance(seen, Died) else str(seen)
        else:
            base = base_key(seen.base) if seen.is_lora and by_base else ""
            key = (seen.fingerprint, base, seen.is_lora)
            if key not in groups:
                groups[key] = Clusters(
                    seen.sketch, one_tree=seen.is_lora, models_at_once=models_at_once
                )
            groups[key].add(number, seen.sketch_D)
            contents[number] = hashlib.sha256(seen.sketch_D.tobytes()).hexdigest()
            if seen.mark:
                marks[number] = seen.mark
            if seen.base:
                bases[number] = seen.base
        on_model(failed.get(number, ""))
    _join_unnamed(groups)
    trees = [
        FoundTree(architecture, _most(bases, cluster.members), is_lora, tuple(cluster.members))
        for (architecture, _, is_lora), clusters in groups.items()
        for cluster in clusters.finish()
    ]
    trees.sort(key=lambda tree: (-len(tree.members), tree.members[0]))
    return Discovery(tuple(trees), failed, contents, marks)


def _join_unnamed(groups: dict[tuple[str, str, bool], Clusters]) -> None:
    """Merges LoRAs without a base model into the only tree with the same layers."""
    for architecture in [key[0] for key in groups if key[2] and not key[1]]:
        named = [key for key in groups if key[0] == architecture and key[2] and key[1]]
        if len(named) == 1:
            groups[named[0]].take_in(groups.pop((architecture, "", True)))


def _work() -> Work:
    sketches: dict[str, Sketch] = {}
    return Work(lambda path: _see(path, sketches), lambda part, seen: seen)


def _see(path: Path, sketches: dict[str, Sketch]) -> _Seen | ProbexError:
    """Reads one model; `sketches` is a cache by architecture."""
    try:
        with open_model(path) as model:
            model.check_has_layers()
            architecture = fingerprint(model)
            layers = {name: layer.shape for name, layer in model.layers.items()}
            # Equal for all models of an architecture, so threads may race.
            sketch = sketches.setdefault(architecture, Sketch.of_layers(layers))
            is_lora = any(layer.is_update for layer in model.layers.values())
            sketch_D, _ = sketch.of_model(model)
            base = stated_base(model)
            seen = _Seen(architecture, base, is_lora, sketch, sketch_D, _mark(model))
            model.check_unchanged()
            return seen
    except ProbexError as error:
        return error


def _mark(model: ModelFile) -> Mark | None:
    """The mark of a model on a disk; of one on a server, a few rows of each layer are too many."""
    try:
        return None if address_of(model.path) else mark(sketch_of(model))
    except ProbexError:  # of a layer that nothing else here reads
        return None


def _most(bases: dict[int, str], members: list[int]) -> str:
    named = Counter(bases[number] for number in members if number in bases)
    return named.most_common(1)[0][0] if named else ""
