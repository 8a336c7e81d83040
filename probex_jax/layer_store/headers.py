"""The headers of models, read before any weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.model_files import LayerInfo, fingerprint, stated_base
from probex_jax.zoo import ZooModel

# Models with the same layers share one table, since thousands of headers are in memory at once.
Tables = dict[tuple[tuple[str, LayerInfo], ...], Mapping[str, LayerInfo]]


@dataclass(frozen=True)
class ModelHeader:
    """What one model's headers state, or why they cannot be read (`fault`)."""

    model: ZooModel
    layers: Mapping[str, LayerInfo]
    labels: tuple[str, ...] | None
    fingerprint: str = ""
    base: str = ""
    is_unscaled: bool = False
    is_unread: bool = False
    fault: str = ""


def read_header(model: ZooModel, tables: Tables) -> ModelHeader:
    """Opens a model and reads no weights; a ProbexError becomes the header's `fault`."""
    try:
        with model.open() as file:
            file.check_has_layers()
            labels = model.labels_if_known(file)
            about = fingerprint(file), stated_base(file)
            # On a server, the weights are later read at the same commit.
            pinned = replace(model, path=Path(file.path))
            layers = tables.setdefault(tuple(file.layers.items()), file.layers)
            return ModelHeader(
                pinned, layers, labels, *about, bool(file.unscaled), bool(file.unread)
            )
    except ProbexError as error:
        return ModelHeader(model, {}, None, fault=str(error))
