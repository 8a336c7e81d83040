"""What is measured: the steps, their commands, what they need and how long they take."""

from collections.abc import Mapping
from dataclasses import dataclass, field

TREES = ("MiniSupViT", "MiniMAE", "MiniResNet")
SUITES = ("encoder", "train", "sweep", "pack", "describe", "search", "engine")


@dataclass(frozen=True)
class Step:
    """Commands that are run one after the other, each in a process of its own.

    In commands `{out}` is the folder of this step, `{STEP}` that of another one that it needs, and
    `{results}` where figures go.

    Args:
      name: of the step, and of the folder of what it makes.
      minutes: expected on two quiet cores.
      commands: what follows `python -m experiments.`, an argument a word; words with spaces are
        quoted as in a shell.
      needs: steps that come first.
      metrics: work directories of `train` by what they are called; what their tests gave becomes
        `{results}/NAME.json`.
    """

    name: str
    minutes: float
    commands: tuple[str, ...]
    needs: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How much of everything; commands get the words as they stand."""

    zoo: str = "default"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 7)
    stages: int = 2
    transfer: str = "--draws=10"
    attributes: str = "attributes"
    attribute_seeds: tuple[int, ...] = (510, 511, 512, 513, 514)
    planted: int = 20
    cost: str = "--cost={out}/work/stores/attr-510-MiniSupViT --repeats=5"
    tagged: str = "demo"
    tag_seeds: tuple[int, ...] = (0, 1, 2, 3)
    lineage: str = "--seeds=420,421 --count=3"
    wide: str = "wide"
    suites: str = "--repeats=5"
    scaling: str = ""
    real_sizes: str = "--layers=768x768"
    thousand: str = "--layers=768x768 --models=1000 --noadam"
    demo: str = "demo"
    page: str = ""
    download: str = "--sizes=1000"


DEFAULT = Sizes()
QUICK = Sizes(
    zoo="tiny",
    seeds=(0, 1),
    stages=1,
    transfer="--draws=2 --own=4 --joining=0 --joining=4",
    attributes="attributes_tiny",
    attribute_seeds=(510, 511),
    planted=2,
    cost="",
    tagged="tiny --config.lora.digits=10 --config.lora.transforms=8 --config.lora.models=7",
    tag_seeds=(0,),
    lineage="--config=configs/zoo_miniature.py:families_tiny --seeds=1 --count=1 --p_values=4",
    wide="tiny",
    suites="--repeats=1 --quick",
    scaling="--times=1,2 --only=pack,discover",
    real_sizes="--size=tiny --noadam",
    thousand="--size=tiny --models=30 --noadam",
    demo="tiny",
    page="--indexed=500 --searches=5 --described=2 --rounds=1",
    download="--sizes=50",
)
_HUB = "--hub=--api_ms=150,--resolve_ms=80,--cdn_ms=60"
# What harvest calls the only tree of `tagged`: the base that headers name, and its architecture.
_HARVESTED = "mini-848e481a"
_MINIATURE = "build_zoo --config=configs/zoo_miniature.py"


def steps(sizes: Sizes) -> tuple[Step, ...]:
    """All steps, those that others need first."""
    return (
        *_of_classes(sizes),
        *_of_attributes(sizes),
        _tags(sizes),
        Step(
            "lineage",
            25,
            (
                f"benchmarks.lineage --workdir={{out}}/work {sizes.lineage} "
                "--out={results}/lineage.json",
            ),
        ),
        *_of_real_sizes(sizes),
        *(
            Step(f"speed_{suite}", 4, (f"benchmark --suite={suite} {sizes.suites} {_SPEED}",))
            for suite in SUITES
        ),
        Step("scaling", 8, (f"benchmarks.scaling {sizes.scaling} --out={{results}}/scaling.json",)),
        Step(
            "download",
            4,
            (
                f"benchmarks.repository expert index {sizes.download} {_HUB} "
                "--workdir={out}/work --out={results}/download.json",
            ),
        ),
        *_of_demo(sizes),
    )


_SPEED = "--results={results}/speed"


def _of_classes(sizes: Sizes) -> tuple[Step, ...]:
    """Classes: accuracy, transfer from tree to tree, whether models find their trees."""
    first, second = sizes.seeds[:2]
    zoos = ",".join(f"{{zoos}}/{seed}" for seed in sizes.seeds)
    stores = {"MiniSupViT": first, "MiniMAE": first, "MiniMAE-seed1": second}
    packed = {**stores, "MiniSupViT-seed1": second}
    routed = ",".join(f"{{zoos}}/{first}/{tree}" for tree in TREES)
    outside = ",".join(f"{{zoos}}/{second}/{tree}" for tree in TREES)
    return (
        Step(
            "zoos",
            12 * len(sizes.seeds),
            tuple(
                f"{_MINIATURE}:{sizes.zoo} --config.seed={seed} --out={{out}}/{seed}"
                for seed in sizes.seeds
            ),
        ),
        Step(
            "accuracy",
            30 * len(sizes.seeds),
            (
                f"benchmarks.accuracy --zoos={zoos} --workdir={{out}}/work --results={{results}} "
                f"--stages={sizes.stages}",
            ),
            ("zoos",),
        ),
        Step(
            "transfer",
            8,
            (
                *(
                    f"pack --zoo={{zoos}}/{seed}/{tree.partition('-')[0]} --store={{out}}/{tree}"
                    for tree, seed in packed.items()
                ),
                f"benchmarks.transfer --stores={','.join(f'{{out}}/{tree}' for tree in stores)} "
                f"--test_store={{out}}/MiniSupViT-seed1 --results={{results}} {sizes.transfer}",
            ),
            ("zoos",),
        ),
        Step(
            "routing",
            4,
            (
                *(f"pack --zoo={{zoos}}/{first}/{t} --store={{out}}/{t}" for t in TREES),
                f"grow_forest --stores={','.join(f'{{out}}/{t}' for t in TREES)} "
                "--forest={out}/forest",
                f"benchmarks.routing --forest={{out}}/forest --zoos={routed} --outside={outside} "
                "--out={results}/routing.json",
            ),
            ("zoos",),
        ),
    )


def _of_attributes(sizes: Sizes) -> tuple[Step, ...]:
    """Zoos that differ in how their models were trained: what is told, what is unusual."""
    seeds = sizes.attribute_seeds
    trees = [(seed, tree) for tree in (*TREES, "MiniLoRA") for seed in seeds]
    following = dict(zip(seeds, (*seeds[1:], seeds[0]), strict=True))
    paths = ",".join(f"{{attribute_zoos}}/attr-{seed}/{tree}" for seed, tree in trees)
    others = ",".join(f"{{attribute_zoos}}/attr-{following[s]}/{tree}" for s, tree in trees)
    zoos = ",".join(f"{{attribute_zoos}}/attr-{seed}" for seed in seeds)
    return (
        Step(
            "attribute_zoos",
            8 * len(seeds),
            tuple(
                f"{_MINIATURE}:{sizes.attributes} --config.seed={seed} --out={{out}}/attr-{seed}"
                for seed in seeds
            ),
        ),
        Step(
            "attributes",
            10,
            (
                f"benchmarks.attributes --zoos={zoos} --workdir={{out}}/work {sizes.cost} "
                "--out={results}/attributes.json",
            ),
            ("attribute_zoos",),
        ),
        Step(
            "anomalies",
            15,
            (
                f"benchmarks.anomalies --zoos={paths} --others={others} --models={sizes.planted} "
                "--out={results}/anomalies.json",
            ),
            ("attribute_zoos",),
        ),
    )


def _tags(sizes: Sizes) -> Step:
    """LoRAs whose only labels are tags in their headers."""
    commands, experts = [], []
    for seed in sizes.tag_seeds:
        out = f"{{out}}/{seed}"
        experts.append(f"{out}/expert")
        commands += [
            f"{_MINIATURE}:{sizes.tagged} --config.seed={seed} "
            f"'--config.trees=(\"MiniLoRA\",)' --out={out}/zoo",
            f"benchmarks.tagged --zoo={out}/zoo/MiniLoRA --out={out}/files --seed={seed}",
            f"harvest --models={out}/files --out={out}/harvested --seed={seed}",
            f"pack --zoo={out}/harvested/{_HARVESTED} --store={out}/store",
            f"train --config=configs/align.py:mini --workdir={out}/expert "
            f"--config.store={out}/store --config.labels=text --config.split=text "
            "--config.text.tags=tags",
            f"evaluate --experts={out}/expert --tasks=tags",
        ]
    asked = f"benchmarks.tags --experts={','.join(experts)} --out={{results}}/tags.json"
    return Step("tags", 5 * len(experts), (*commands, asked))


def _of_real_sizes(sizes: Sizes) -> tuple[Step, ...]:
    """Planted models of real sizes, and a zoo fine-tuned at a quarter of ViT-Base's width."""
    train = "train --config.store={out}/store --workdir={out}/"
    experts = {"default": "", "ridge": " --config=configs/ridge.py"}
    return (
        *(
            Step(
                name,
                minutes,
                (
                    f"benchmarks.planted --workdir={{out}}/work {size} "
                    f"--out={{results}}/{name}.json",
                ),
            )
            for name, minutes, size in (
                ("planted", 5, sizes.real_sizes),
                ("planted_thousand", 5, sizes.thousand),
            )
        ),
        Step(
            "wide",
            25,
            (
                f"{_MINIATURE}:{sizes.wide} '--config.trees=(\"MiniSupViT\",)' --out={{out}}/zoo",
                "pack --zoo={out}/zoo/MiniSupViT --store={out}/store",
                *(f"{train}{name}{config}" for name, config in experts.items()),
            ),
            metrics={name: f"{{out}}/{name}" for name in experts},
        ),
    )


def _of_demo(sizes: Sizes) -> tuple[Step, ...]:
    """The demo, and its page under many users."""
    methods = {
        f"{tree}, {method}": f"{{out}}/work/experts/{tree}/{method}"
        for tree in TREES[:2]
        for method in ("default", "ProbeX", "StatNN", "attributes")
    }
    return (
        Step(
            "demo",
            8,
            (f"demo --workdir={{out}}/work --size={sizes.demo}",),
            metrics={**methods, "MiniLoRA": "{out}/work/experts/MiniLoRA/aligned"},
        ),
        Step(
            "page",
            3,
            (f"benchmarks.page --demo={{demo}}/work {sizes.page} --out={{results}}/page.json",),
            ("demo",),
        ),
    )
