r"""Measures how well lineage is found in families of known descent.

Ours, MoTHer, spanning trees of L2 distances and nearest neighbours are asked for the parents of the
same models. P-values are tested on pairs of models that were trained independently, and on true
pairs. What is measured is kept in the work directory: run the same command again to resume, and
remove `records` or `p_values` there to measure anew.

Example:
  python -m experiments.benchmarks.lineage --workdir=out/lineage \
    --seeds=410,411 --count=3
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from experiments import cli, zoo_steps
from experiments.benchmarks import figures
from experiments.benchmarks.lineage import measure, p_values, report
from probex_jax.errors import ProbexError
from probex_jax.files import one_writer, read_json, write_json
from probex_jax.zoo.miniature import Families, build_families

_CONFIG = cli.config("configs/zoo_miniature.py:families", "Config of the families that are built.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for what is built and kept.", required=True)
_FAMILIES = flags.DEFINE_list("families", [], "Folders of families that are there already.")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds of families that are built.")
_COUNT = flags.DEFINE_integer("count", 3, "Families of each kind to build for each seed.", 1)
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")
_MODELS = flags.DEFINE_integer(
    "p_values", 64, "Independent models of an architecture, for p-values; 0 for none.", 0
)


def main() -> None:
    workdir = Path(_WORKDIR.value)
    config = _CONFIG.value.to_dict()
    if "kinds" not in config:
        raise ProbexError("--config: expected families, such as configs/zoo_miniature.py:families")
    settings = zoo_steps.family_settings(config | {"families": _COUNT.value})
    with one_writer(workdir):
        folders = [*_given(_FAMILIES.value), *_built(settings, _seeds(_SEEDS.value), workdir)]
        if not folders and not _MODELS.value:
            raise ProbexError("nothing to measure: give --seeds, --families or --p_values")
        records = []
        with cli.progress(len(folders), "measuring", "family") as bar:
            for folder in folders:
                kept = workdir / "records" / folder.parent.name / f"{folder.name}.json"
                if not kept.exists():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    write_json(kept, measure.measured(folder))
                records.append(read_json(kept))
                bar.update()
        independent = _independent(settings, _MODELS.value, workdir)
        metrics = report.metrics(records, independent)
        write_json(workdir / "metrics.json", metrics)
    figures.keep(_OUT.value, metrics, seeds=_SEEDS.value)
    print(report.text(metrics))


def _seeds(given: Sequence[str]) -> list[int]:
    if not all(seed.isascii() and seed.isdigit() for seed in given):
        raise ProbexError("--seeds: expected whole numbers, such as 410,411")
    return [int(seed) for seed in given]


def _given(families: Sequence[str]) -> list[Path]:
    """The folders of families that are there, each with a parent of another name."""
    parents = [Path(folder) for folder in families]
    if len({parent.name for parent in parents}) < len(parents):
        raise ProbexError("--families: two folders have one name")
    found = [sorted(path.parent for path in parent.glob("*/family.json")) for parent in parents]
    for parent, inside in zip(parents, found, strict=True):
        if not inside:
            raise ProbexError(f"{parent}: no families there")
    return [folder for inside in found for folder in inside]


def _built(settings: Families, seeds: Sequence[int], workdir: Path) -> list[Path]:
    folders: list[Path] = []
    total = len(seeds) * len(settings.kinds) * settings.families
    with cli.progress(total, "building", "family") as bar:
        for seed in seeds:
            out = workdir / "families" / f"seed {seed}"
            folders += build_families(replace(settings, seed=seed), out, bar.update)
    return folders


def _independent(settings: Families, count: int, workdir: Path) -> dict[str, list[float]]:
    """The p-values of all pairs of independent models, by kind."""
    found = {}
    kinds = [kind for kind in settings.kinds if kind != "MiniMAE"] if count else []
    with cli.progress(len(kinds), "testing pairs", "architecture") as bar:
        for kind in kinds:
            kept = workdir / "p_values" / f"{kind}-{count}.json"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                models = p_values.independent(settings, kind, count)
                write_json(kept, p_values.of_pairs(models))
            found[kind] = read_json(kept)
            bar.update()
    return found


if __name__ == "__main__":
    cli.run(main)
