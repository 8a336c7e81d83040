"""The headers of models, read before any weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files import LayerInfo, fingerprint, stated_base
from probex_jax.zoo import ZooModel

# Models with the same layers share one table, since thousands of headers are in memory at once.
Tables = dict[tuple[tuple[str, Any], ...], Mapping[str, Any]]


@dataclass(frozen=True)
class ModelHeader:
    """What one model's headers state, or why they cannot be read (`fault`)."""

    model: ZooModel
    layers: Mapping[str, LayerInfo]
    left_out: Mapping[str, str]
    labels: tuple[str, ...]
    fingerprint: str = ""
    base: str = ""
    is_unscaled: bool = False
    is_unread: bool = False
    fault: str = ""


def read_header(model: ZooModel, tables: Tables) -> ModelHeader:
    """Opens a model and reads no weights; a ProbexError becomes the header's `fault`."""
    try:
        with model.open() as file:
            if file.unread or not file.vectors:
                file.check_has_layers()
            labels = model.labels_in(file)
            about = fingerprint(file), stated_base(file)
            # On a server, the weights are later read at the same commit.
            pinned = replace(model, path=Path(file.path))
            layers, left_out = (
                tables.setdefault(tuple(table.items()), table)
                for table in (file.all_layers, file.left_out)
            )
            unsaid = bool(file.unscaled), bool(file.unread)
            return ModelHeader(pinned, layers, left_out, labels, *about, *unsaid)
    except ProbexError as error:
        return ModelHeader(model, {}, {}, (), fault=str(error))
