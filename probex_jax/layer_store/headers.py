"""The headers of models, read before any weights."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probex_jax.engine import HERE, Engine, Work, flattened, in_parts
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
    labels: tuple[str, ...] | None
    fingerprint: str = ""
    base: str = ""
    is_unscaled: bool = False
    is_unread: bool = False
    fault: str = ""

    def sharing(self, tables: Tables) -> "ModelHeader":
        """With the tables that other headers have, where they are equal."""
        layers, left_out = (
            tables.setdefault(tuple(table.items()), table) for table in (self.layers, self.left_out)
        )
        return replace(self, layers=layers, left_out=left_out)


def read_headers(
    models: Iterable[ZooModel], engine: Engine = HERE, readers: int = 4
) -> Iterator[ModelHeader]:
    """The headers of models, in order; a ProbexError becomes the header's `fault`."""
    tables: Tables = {}
    read = engine.map(_reading, in_parts(models), readers=readers, computes=False)
    for model, found in flattened(read):
        if isinstance(found, ProbexError):
            yield ModelHeader(model, {}, {}, None, fault=f"{model.where}: {found}")
        else:
            yield found if engine.is_here else found.sharing(tables)


def _reading() -> Work:
    tables: Tables = {}
    return Work(lambda model: _read_header(model, tables), lambda part, headers: headers)


def _read_header(model: ZooModel, tables: Tables) -> ModelHeader:
    """Opens a model and reads no weights."""
    try:
        with model.open() as file:
            if file.unread or not file.vectors:
                file.check_has_layers()
            labels = model.labels_if_known(file)
            about = fingerprint(file), stated_base(file)
            # On a server, the weights are later read at the same commit.
            pinned = replace(model, path=Path(file.path))
            unsaid = bool(file.unscaled), bool(file.unread)
            header = ModelHeader(pinned, file.all_layers, file.left_out, labels, *about, *unsaid)
            return header.sharing(tables)
    except ProbexError as error:
        return ModelHeader(model, {}, {}, None, fault=str(error))
