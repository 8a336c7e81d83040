"""The demo's second half: LoRAs aligned with text, told and found by words alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from configs import align
from experiments import cli, steps
from experiments.costs import Costs
from probex_jax.experts import load_experts
from probex_jax.search import TASKS, Hit, Index, Measured, Subject, find_models
from probex_jax.zoo.model_j import HELD_OUT_SPLITS

TREE = "MiniLoRA"
# A concept that was trained on, one that was held out, and a word of many.
QUERIES = ("an inverted three", "a bold three", "something striped")
# Test LoRAs that the demo describes in the end: until then they are documented nowhere.
N_HIDDEN = 3
# Of a tiny zoo, which shows that all of it runs, no more.
TINY_LAYERS = r"transformer\.transformer_blocks\.0\.attn1\.to_[kq]"


class Words(NamedTuple):
    """What came of it.

    Args:
      lines: of the report.
      metrics: of the training.
      measured: the figures of all tasks.
    """

    lines: list[str]
    metrics: Mapping[str, Any]
    measured: list[Measured]


def language_half(workdir: Path, size: str, costs: Costs) -> Words:
    """Runs every step on the LoRAs that are there."""
    print("4. Packing LoRAs, kept as factors", flush=True)
    stored = workdir / "stores" / TREE
    with costs.step(f"packing {TREE}", stored):
        store = steps.pack(workdir / "zoo" / TREE, stored).store
    print("5. Aligning their weights with text", flush=True)
    config = align.get_config("mini").to_dict() | {"store": str(store.path)}
    if size == "tiny":
        config |= {"layers": TINY_LAYERS, "recipe": {**config["recipe"], "epochs": 20}}
    experts = experts_of(workdir)
    with costs.step(f"aligning {TREE} with text", experts):
        metrics = steps.train(config, experts)
    subject = Subject(load_experts(experts), store)
    with costs.step(f"measuring tasks on {TREE}", experts / "evaluation"):
        tasks = [task for task in TASKS if task != "tags"]  # the zoo's files have none
        measured = steps.evaluate(subject, tasks, experts / "evaluation")
    print("6. Indexing them and searching by words", flush=True)
    indexed = index_of(workdir, TREE)
    with costs.step(f"indexing {TREE}", indexed):
        hidden = {model.id for model in store.split("test")[:N_HIDDEN]}
        models = [m for m in find_models(workdir / "zoo" / TREE) if m.id not in hidden]
        index = steps.index(subject.experts["val_holdout"], models, indexed)[0]
    lines = [
        f"## LoRAs and words: {TREE}\n",
        f"{len(store.seen_classes)} concepts were trained on, {len(store.held_out_classes)} were "
        f"held out: their words were never seen together. "
        f"{len(metrics['layers']['expert'])} layers answer together.\n",
        cli.table([steps.measured_row(figure) for figure in measured]),
        *(f"\n{line}." for line in steps.measured_not_above_chance(measured)),
        "\nA map of the test LoRAs is in `report.html`.",
        "\n## Three searches among LoRAs that were not trained on\n",
        *(_search(index, query) for query in QUERIES),
    ]
    return Words(lines, metrics, measured)


def experts_of(workdir: Path) -> Path:
    """Where the experts aligned with text are."""
    return workdir / "experts" / TREE / "aligned"


def index_of(workdir: Path, tree: str) -> Path:
    """Where the index of a tree's models is."""
    return workdir / "indexes" / tree


def _search(index: Index, query: str) -> str:
    hits = index.search(query=query, k=5, where="split IN ('test', 'test_holdout')")
    return f'`--query="{query}"`\n\n{cli.table([_row(hit) for hit in hits])}\n'


def _row(hit: Hit) -> steps.Row:
    held_out = "held out" if hit.split in HELD_OUT_SPLITS else ""
    return {"similarity": hit.similarity, "model": hit.id, "text": hit.text, "": held_out}
