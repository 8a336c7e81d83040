r"""Counts how many models a forest routes to their trees, strangers to none.

Example:
  python -m experiments.benchmarks.routing --forest=out/forest \
    --zoos=out/zoo/MiniSupViT,out/zoo/MiniLoRA --outside=out/seed1/MiniSupViT
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli
from experiments.benchmarks import figures
from probex_jax.forest import Forest, Route

_FOREST = flags.DEFINE_string("forest", None, "Forest made by grow_forest.", required=True)
_ZOOS = flags.DEFINE_list(
    "zoos", None, "Zoos of its trees; their test models count.", required=True
)
_OUTSIDE = flags.DEFINE_list("outside", [], "Zoos of other trees; all their models count.")
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")


def main() -> None:
    forest = Forest.load(_FOREST.value)
    zoos = [(px.scan(path), True) for path in _ZOOS.value]
    zoos += [(px.scan(path), False) for path in _OUTSIDE.value]
    rows = []
    with cli.progress(len(zoos), "routing", "zoo") as bar:
        for zoo, is_known in zoos:
            models = [m for m in zoo.models if m.split.startswith("test") or not is_known]
            routes = [_route(forest, model.path) for model in models]
            rows.append(_row(zoo.tree if is_known else "", zoo.tree, routes))
            bar.update()
    figures.keep(_OUT.value, rows)
    print(cli.table(rows))


def _route(forest: Forest, path: Path) -> Route:
    with px.open_model(path) as model:
        return forest.route(model)


def _row(tree: str, name: str, routes: Sequence[Route]) -> dict[str, object]:
    """The figures of a zoo whose models are of a tree of the forest, or of none: ""."""
    radii = [r.distance / r.radius for r in routes if r.distance is not None and r.radius]
    return {
        "zoo": name,
        "of the forest": "yes" if tree else "no",
        "models": len(routes),
        "right": sum(found.tree == tree for found in routes),
        "unknown": sum(not found.tree for found in routes),
        "nearest, in radii": min(radii, default=""),
        "farthest, in radii": max(radii, default=""),
    }


if __name__ == "__main__":
    cli.run(main)
