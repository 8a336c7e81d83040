"""What is run: every method on every tree of every zoo, the most telling first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from configs import align, default, dense, mvprobe, probex, statnn

LORAS = "MiniLoRA"
TREES = ("MiniMAE", "MiniSupViT", "MiniResNet", LORAS)
OURS, PUBLISHED = "ours", "MVProbe 128/128/512"
# Epochs of MVProbe at its published size; its paper has 500.
EPOCHS = 100
# Layers that probes choose among on validation.
CANDIDATES = 3


@dataclass(frozen=True)
class Method:
    """What is trained on a tree.

    Args:
      name: as tables show it.
      config: as `probex train` takes it.
      changes: of the config's recipe.
      screen: what chooses the layers, those where it is best on validation; None for all layers.
      layers: so many of them.
      shown: whether it is in tables; else it only chooses layers for others.
    """

    name: str
    config: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)
    screen: "Method | None" = None
    layers: int = 1
    shown: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """The config with its changes."""
        return {**self.config, "recipe": {**self.config["recipe"], **self.changes}}


def _of_classifiers() -> tuple[tuple[Method, ...], ...]:
    """Stages; all trees go through one before any is in the next."""
    mv, px = _sizes(mvprobe), _sizes(probex)
    ours = Method(OURS, default.get_config().to_dict())
    # A smaller size and fewer epochs, on the layers where ours is best by itself.
    by_probex, by_mvprobe = (
        Method(f"{name}, to choose a layer", config, changes, ours, CANDIDATES, shown=False)
        for name, config, changes in (
            ("ProbeX", px["mini"], {"epochs": 100}),
            ("MVProbe", mv["mini"], {"epochs": 75, "learning_rate": 1e-3}),
        )
    )
    return (
        (ours,),
        (
            by_mvprobe,
            Method(PUBLISHED, mv["paper"], {"epochs": EPOCHS}, by_mvprobe),
        ),
        (
            by_probex,
            Method("ProbeX 128/128/128", px["paper"], {}, by_probex),
            Method("MVProbe 32/32/128", mv["mini"], {}, by_mvprobe),
            Method("Dense", dense.get_config("mini").to_dict(), {}, ours, CANDIDATES),
            Method("StatNN", statnn.get_config().to_dict()),
        ),
        (Method(f"{PUBLISHED}, 500 epochs", mv["paper"], {}, by_mvprobe),),
    )


def _of_loras() -> tuple[tuple[Method, ...], ...]:
    """All have the same texts and logit scale."""
    config = align.get_config("mini").to_dict()
    ours = Method(OURS, config)
    mv, px = (
        {**config, "committee": 1, "encoder": _sizes(of)["paper"]["encoder"]}
        for of in (mvprobe, probex)
    )
    adam = {"learning_rate": 3e-4, "epochs": 500, "eval_every": 25, "l2": 1e-5}
    # At this size ProbeX is far better so than without an L2 term, as its paper has it.
    regularised = {"learning_rate": 2e-3, "epochs": 200, "l2": 3e-3}
    return (
        (),
        (ours,),
        (),
        (
            Method("ProbeX 128/128/128", px, regularised, ours),
            Method(PUBLISHED, mv, adam, ours),
        ),
    )


def _sizes(config: ModuleType) -> dict[str, dict[str, Any]]:
    return {size: config.get_config(size).to_dict() for size in ("mini", "paper")}


STAGES = {tree: _of_loras() if tree == LORAS else _of_classifiers() for tree in TREES}


@dataclass(frozen=True)
class Run:
    """One method on one tree of one zoo, with its choice on validation and its test."""

    zoo: Path
    tree: str
    method: Method

    @property
    def folder(self) -> str:
        """Where it goes in the work directory; its record lies beside."""
        return f"{self.zoo.name}/{self.tree}/{file_name(self.method.name)}"


def file_name(method: str) -> str:
    """A method's name as that of a file."""
    return method.replace("/", "-").replace(",", "").replace(" ", "_")


def plan(zoos: Sequence[Path], stages: int | None = None) -> Iterator[Run]:
    """All runs on the trees that the zoos have, in an order in which what a run needs comes first.

    A zoo has a tree as soon as all of it is built: `probex build_zoo` writes the zoo's
    metrics.json last. Of the first so many stages of methods, or of all.
    """
    built = [zoo for zoo in zoos if (zoo / "metrics.json").exists()]
    for stage in range(len(STAGES[TREES[0]]))[:stages]:
        for tree in TREES:
            for method in STAGES[tree][stage]:
                for zoo in built:
                    if (zoo / tree / "zoo.json").exists():
                        yield Run(zoo, tree, method)
