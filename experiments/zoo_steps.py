"""Building zoos and families, with a progress bar and a row of a table for each."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.steps import Row
from probex_jax.zoo import miniature
from probex_jax.zoo.model_j import SPLITS


def build_zoo(config: Mapping[str, Any], out: Path) -> list[Row]:
    """Builds a zoo or families, or what is left of it to build.

    Args:
      config: that of a miniature zoo, of families, or of a planted zoo.
      out: folder to build in.

    Returns:
      A row for each tree, or for each kind of family.
    """
    if "kinds" in config:
        return _build_families(family_settings(config), out)
    settings: miniature.Settings | miniature.Planted
    settings = zoo_settings(config) if "trees" in config else miniature.Planted(**config)
    with cli.progress(miniature.count(settings), "building", "model") as bar:
        return [_row(summary) for summary in miniature.build(settings, out, bar.update)]


def zoo_settings(config: Mapping[str, Any]) -> miniature.Settings:
    """What a config of a miniature zoo says."""
    kinds: dict[str, Callable[..., Any]] = {
        "vit": miniature.ViT,
        "lora": _lora,
        "variety": miniature.Variety,
    }
    nested = {name: kind(**config[name]) for name, kind in kinds.items() if name in config}
    return miniature.Settings(**{**config, **nested})


def _lora(*, variety: Mapping[str, Any], **fields: Any) -> miniature.Lora:
    return miniature.Lora(**fields, variety=miniature.Variety(**variety))


def family_settings(config: Mapping[str, Any]) -> miniature.Families:
    """What a config of families says."""
    return miniature.Families(**{**config, "training": zoo_settings(config["training"])})


def _build_families(settings: miniature.Families, out: Path) -> list[Row]:
    with cli.progress(len(settings.kinds) * settings.families, "building", "family") as bar:
        folders = miniature.build_families(settings, out, bar.update)
    models = Counter[str]()
    for folder in folders:
        models[folder.name.split("-")[0]] += sum(1 for _ in (folder / "models").iterdir())
    return [
        {"kind": kind, "families": settings.families, "models": models[kind]}
        for kind in settings.kinds
    ]


def _row(summary: miniature.TreeSummary) -> Row:
    return {
        "tree": summary.tree,
        "models": sum(summary.models.values()),
        **{split: summary.models.get(split, 0) for split in SPLITS},
        "measure": summary.measure,
        "score": summary.score,
        "seconds": summary.seconds,
    }
