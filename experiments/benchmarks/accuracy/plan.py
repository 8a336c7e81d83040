"""What is run: methods, trees, seeds, and the variants that tell what each part is worth."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs import align, committee, default, dense, mvprobe, probex, statnn

CLASSIFIERS = ("MiniSupViT", "MiniMAE", "MiniResNet")
LORAS = "MiniLoRA"
TREES = (*CLASSIFIERS, LORAS)
SEEDS = (0, 1, 2)
# Where the parts of MVProbe are tried.
VARIANTS = ("MiniMAE",)

PUBLISHED, OURS = "MVProbe", "ours"
# With the first seed a method is trained on all layers, with the others on so many, those that were
# best on validation with the first.
FINALISTS = 2
# MVProbe takes its time: on these trees it is trained, with the first seed, on so many layers that
# were best on validation for ProbeX.
SCREENED = ("MiniResNet", "MiniLoRA")
CANDIDATES = 4


@dataclass(frozen=True)
class Run:
    """One training, with its choice on validation and its test.

    Args:
      tree, method, seed: what is trained; a variant's method is "what: which".
      config: as `experiments.train` takes it.
      models: of the training split, so many; None for all.
      finalists: the method whose layers that were best with the first seed are trained alone; of a
        variant the best one. "" for all layers.
    """

    tree: str
    method: str
    seed: int
    config: Mapping[str, Any]
    models: int | None = None
    finalists: str = ""

    @property
    def folder(self) -> str:
        """Where it goes in the work directory."""
        name = self.method.replace(":", "").replace(" ", "_").replace(",", "")
        return f"{self.tree}/{name}/{self.seed}"


def plan() -> Iterator[Run]:
    """All runs, in an order in which what a run needs comes before it."""
    for tree in CLASSIFIERS:
        yield from _of_classifiers(tree)
    yield from _of_loras()
    for tree in CLASSIFIERS:
        yield from _variants(tree)


def _of_classifiers(tree: str) -> Iterator[Run]:
    # Closed form: the seed changes nothing.
    yield Run(tree, OURS, 0, default.get_config().to_dict())
    yield Run(tree, "MVProbe, centred, committee", 0, committee.get_config("mini").to_dict())
    for seed in SEEDS:
        yield Run(tree, "StatNN", seed, _seeded(statnn.get_config(), seed))
        for method, config in (("Dense", dense), ("ProbeX", probex), (PUBLISHED, mvprobe)):
            settings = _seeded(config.get_config("mini"), seed)
            yield Run(tree, method, seed, settings, finalists=_others(tree, method, seed))


def _of_loras() -> Iterator[Run]:
    for seed in SEEDS:
        ours = _seeded(align.get_config("mini"), seed)
        yield Run(LORAS, OURS, seed, ours)
        published = ours | {"committee": 1}
        yield Run(LORAS, "MVProbe, our recipe, best layer", seed, published)
        # At this size ProbeX is far better so than with the recipe of its paper (L2 term 0).
        recipe = ours["recipe"] | {"learning_rate": 2e-3, "epochs": 200, "l2": 3e-3}
        probing = published | {"encoder": {"name": "probex", **_sizes(ours)}, "recipe": recipe}
        yield Run(LORAS, "ProbeX", seed, probing, finalists=_others(LORAS, "ProbeX", seed))
        changes = {"learning_rate": 3e-4, "epochs": 500, "eval_every": 25, "l2": 1e-5}
        recipe = recipe | changes
        config = published | {"recipe": recipe}
        yield Run(LORAS, PUBLISHED, seed, config, finalists=_others(LORAS, PUBLISHED, seed))


def _variants(tree: str) -> Iterator[Run]:
    """With the first seed: ours without one of its parts or on fewer models; MVProbe likewise."""
    ours = default.get_config().to_dict()
    plain = ours["encoder"] | {"standardise": False}
    for which, changes in {
        "best layer alone": {"committee": 1},
        "no centre": {"normalise": "scale"},
        "no standardisation": {"encoder": plain},
        "neither": {"normalise": "scale", "encoder": plain},
        "2 layers": {"committee": 2},
        "4 layers": {"committee": 4},
    }.items():
        yield Run(tree, f"ours: {which}", 0, ours | changes)
    for models in (50, 100, 200, 300):
        yield Run(tree, f"ours: {models} training models", 0, ours, models=models)
    if tree not in VARIANTS:
        return
    # On one layer, that of the MVProbe that was chosen.
    centred = committee.get_config("mini").to_dict() | {"committee": 1}
    encoder = centred["encoder"]
    branches = encoder["branches"]
    parts: dict[str, dict[str, Any]] = {
        "as it is": {},
        "no centre": {"normalise": "none"},
        **{
            f"without {name}": {"branches": tuple(b for b in branches if b != name)}
            for name in branches
        },
        **{f"{name} alone": {"branches": (name,)} for name in branches},
        "no standardisation": {"standardise": False},
        "no ReLU": {"relu": False},
        "8 probes": {"n_probes": 8, "proj_dim": 8},
        "16 probes": {"n_probes": 16, "proj_dim": 16},
        "64 probes": {"n_probes": 64, "proj_dim": 64},
    }
    for which, changes in parts.items():
        of_encoder = {key: value for key, value in changes.items() if key in encoder}
        of_config = {key: value for key, value in changes.items() if key not in encoder}
        config = centred | of_config | {"encoder": encoder | of_encoder}
        yield Run(tree, f"centred MVProbe: {which}", 0, config, finalists=PUBLISHED)


def _others(tree: str, method: str, seed: int) -> str:
    if seed > SEEDS[0]:
        return method
    return "ProbeX" if method == PUBLISHED and tree in SCREENED else ""


def _seeded(config: Any, seed: int) -> dict[str, Any]:
    settings = config.to_dict()
    settings["recipe"]["seed"] = seed
    return settings


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    return {name: config["encoder"][name] for name in ("n_probes", "proj_dim", "rep_dim")}
