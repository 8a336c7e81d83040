r"""Compares a linear classifier of weights within a tree and across trees.

The same ridge regression on the entries of one layer is trained within a tree, on all trees
together, and on trees other than the tested one. Then models of a second tree join the training
set of a first. All trees must have one architecture.

Example:
  python -m experiments.benchmarks.transfer --results=results \
    --stores=out/stores/MiniSupViT,out/stores/MiniMAE \
    --test_store=out/stores/MiniSupViT-seed1
"""

import time
from itertools import permutations
from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli
from experiments.benchmarks.transfer import measure, report
from probex_jax.errors import ProbexError

_STORES = flags.DEFINE_list("stores", None, "Layer stores of two trees or more.", required=True)
_TEST_STORE = flags.DEFINE_string(
    "test_store", None, "Layer store of one more tree, for tests only.", required=True
)
_RESULTS = flags.DEFINE_string("results", None, "Folder for tables and figures.", required=True)
_OWN = flags.DEFINE_multi_integer(
    "own", [50, 420], "Training models of the first tree; may be repeated."
)
_JOINING = flags.DEFINE_multi_integer(
    "joining", [0, 50, 100, 200, 420], "Models of the second tree that join; may be repeated."
)
_DRAWS = flags.DEFINE_integer("draws", 5, "Random draws of these models.")


def main() -> None:
    start = time.perf_counter()
    stores = [px.LayerStore.open(path) for path in (*_STORES.value, _TEST_STORE.value)]
    if len(stores) < 3:
        raise ProbexError("--stores: name the stores of two trees or more")
    if _DRAWS.value < 1 or _JOINING.value[0] != 0:
        raise ProbexError("--draws must be 1 or more, and --joining begin with 0")
    layers = measure.shared_layers(stores)
    by_layer: dict[str, dict[str, dict[str, measure.Outcome]]] = {}
    with cli.progress(len(layers), "layers", "layer") as bar:
        for layer in layers:
            *forest, unseen = (measure.Tree.read(store, layer) for store in stores)
            by_layer[layer] = measure.settings(forest, unseen)
            bar.update()
    layer = max(by_layer, key=lambda name: measure.validation_within(by_layer[name]))
    found = report.Found(
        layer=layer,
        by_layer=by_layer,
        joined=_joined(stores[:-1], layer),
        hashes={store.path.name: store.hash for store in stores},
        seeds=tuple(range(_DRAWS.value)),
        seconds=time.perf_counter() - start,
    )
    print(report.write(found, Path(_RESULTS.value)))


def _joined(stores: list[px.LayerStore], layer: str) -> list[report.Joined]:
    trees = [measure.Tree.read(store, layer) for store in stores]
    cases = [(*pair, own) for pair in permutations(trees, 2) for own in _OWN.value]
    found = []
    with cli.progress(len(cases), "negative transfer", "case") as bar:
        for tree, other, own in cases:
            seeds = range(_DRAWS.value)
            for count, seed, outcome in measure.joined(tree, other, own, _JOINING.value, seeds):
                found.append(report.Joined(tree.name, other.name, own, count, seed, outcome))
            bar.update()
    return found


if __name__ == "__main__":
    cli.run(main)
