r"""Plants what is unusual into test models, and counts what cards say.

Of each zoo a forest of one tree is grown, from its training models. Untouched test models show how
often something is said of a model of which there is nothing to say. Each kind is planted into every
test model, in a layer of its own; `found` counts models with a finding or of refused tree, `named`
those whose findings name the planted layer, `refused` those whose tree is called unknown.

Example:
  python -m experiments.benchmarks.anomalies --out=results/anomalies.json \
    --zoos=out/510/MiniMAE --others=out/511/MiniMAE
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from safetensors.numpy import load_file, save_file

import probex_jax as px
from experiments import cli
from experiments.benchmarks import figures
from experiments.benchmarks.unsound import (
    OF_FACTORS,
    OF_MATRICES,
    Case,
    Change,
    Layer,
    Tensors,
)
from probex_jax.errors import ProbexError
from probex_jax.forest import Forest, TreeRouter, grow
from probex_jax.forest.usual import Usual
from probex_jax.layer_store import LayerStore
from probex_jax.model_files.locate import local_files

_ZOOS = flags.DEFINE_list("zoos", None, "Zoos of the miniature zoo.", required=True)
_OTHERS = flags.DEFINE_list("others", [], "For each, a zoo of the same shapes but another root.")
_MODELS = flags.DEFINE_integer("models", 40, "Test models of a zoo to plant in.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")


def main() -> None:
    others = _OTHERS.value or [""] * len(_ZOOS.value)
    if len(others) != len(_ZOOS.value):
        raise ProbexError("--others: name one for each of --zoos")
    rows: list[dict[str, Any]] = []
    with cli.progress(len(_ZOOS.value), "planting", "zoo") as bar:
        for path, other in zip(_ZOOS.value, others, strict=True):
            rows += measured(Path(path), Path(other) if other else None)
            bar.update()
    figures.keep(_OUT.value, rows)
    print(cli.table(summary(rows)))


def measured(path: Path, other: Path | None) -> list[dict[str, Any]]:
    """The figures of one zoo, a row for each kind."""
    with tempfile.TemporaryDirectory() as scratch:
        zoo = px.scan(path)
        store = px.pack(zoo, Path(scratch) / "store").store
        costs = _grown(store, Path(scratch) / "forest", path / "root")
        forest = Forest.load(Path(scratch) / "forest")
        tests = [m.path for m in zoo.models if m.split == "test"]
        stranger = next(m.path for m in px.scan(other).models) if other else None
        planter = _Planter(store, tests[: _MODELS.value], path / "root", stranger)
        rows = [_row("untouched", [_described(forest, p) for p in tests], [""] * len(tests))]
        for kind, change in (OF_FACTORS if store.ranks else OF_MATRICES).items():
            paths, names = planter.write(Path(scratch) / "planted", change)
            rows.append(_row(kind, [_described(forest, p) for p in paths], names))
    return [{"zoo": str(path), "tree": zoo.tree, **costs, **row} for row in rows]


def _grown(store: LayerStore, path: Path, root: Path) -> dict[str, float]:
    """Grows a forest; processor seconds of what it took before, and of what is usual."""
    begun = time.process_time()
    TreeRouter.fit(store)
    routed = time.process_time()
    Usual.fit(store)
    costs = {"router_s": routed - begun, "usual_s": time.process_time() - routed}
    tree, _ = grow(path, store, root=str(root) if root.exists() else "")
    return costs | {"bytes": (tree.path / "arrays.safetensors").stat().st_size}


def _described(forest: Forest, path: Path) -> tuple[bool, bool, set[str]]:
    """Whether something is said, whether the tree is unknown, and the layers that are named."""
    found = forest.describe(path)
    findings = found.soundness.findings if found.soundness else ()
    return bool(findings), not found.tree, {finding.layer for finding in findings}


def _row(
    kind: str, found: Sequence[tuple[bool, bool, set[str]]], names: Sequence[str]
) -> dict[str, Any]:
    named = [
        any(n.startswith(name) for n in one[2]) for one, name in zip(found, names, strict=True)
    ]
    return {
        "kind": kind,
        "models": len(found),
        "found": sum(said or refused for said, refused, _ in found),
        "said": sum(said for said, _, _ in found),
        "named": sum(named),
        "refused": sum(refused for _, refused, _ in found),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each kind, a column for each tree: the share found, least and greatest of a zoo."""
    trees = dict.fromkeys(row["tree"] for row in rows)
    table = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        cells = {"kind": kind}
        for tree in trees:
            of = [row for row in rows if (row["tree"], row["kind"]) == (tree, kind)]
            cells[tree] = _shares(of) if of else ""
        table.append(cells)
    return table


def _shares(rows: Sequence[Mapping[str, Any]]) -> str:
    count, found = (sum(row[name] for row in rows) for name in ("models", "found"))
    each = [row["found"] / row["models"] for row in rows]
    return f"{found / count:.3f} ({min(each):.2f} to {max(each):.2f})"


class _Planter:
    """Writes changed copies of test models, each with a change in another layer."""

    def __init__(
        self, store: LayerStore, tests: Sequence[Path], root: Path, other: Path | None
    ) -> None:
        self._tests = [_weights(path) for path in tests]
        self._layers = _layers(
            self._tests[0][0], [n for n in store.layers if n not in store.vectors]
        )
        self._root = _weights(root)[0]
        self._other = _weights(other)[0] if other else {}
        self._centre = {} if store.ranks else _centre(store)

    def write(self, folder: Path, change: Change) -> tuple[list[Path], list[str]]:
        """The changed models, and the layer of each that was changed."""
        folder.mkdir(exist_ok=True)
        paths, names = [], []
        for number, (weights, file) in enumerate(self._tests):
            rng = np.random.default_rng(number)
            layer = self._layers[number % len(self._layers)]
            case = Case(weights, layer, self._layers, self._root, self._other, self._centre, rng)
            made = {name: np.ascontiguousarray(v, v.dtype) for name, v in change(case).items()}
            paths.append(folder / f"{number:03d}.safetensors")
            save_file(made, paths[-1], file)
            names.append(layer.name)
        return paths, names


def _weights(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and the header's text of a model in one file."""
    [file] = local_files(path)
    with px.open_model(file) as model:
        return load_file(file), dict(model.metadata)


def _layers(weights: Tensors, names: Sequence[str]) -> list[Layer]:
    if set(names) <= set(weights):
        return [Layer(name, (name,)) for name in names]
    ends = (".lora.up.weight", ".lora.down.weight")
    return [Layer(name, tuple(name + end for end in ends)) for name in names]


def _centre(store: LayerStore) -> dict[str, np.ndarray]:
    return {name: store.moments(name).mean for name in store.layers if name not in store.vectors}


if __name__ == "__main__":
    cli.run(main)
