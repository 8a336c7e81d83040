"""What the headers of models say, read before any weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.model_files import LayerInfo, fingerprint, stated_base
from probex_jax.model_files.plain import Places, Plain
from probex_jax.zoo import ZooModel

# Models of the same layers share one table of them: thousands of models are in memory at once.
Forms = dict[tuple[object, object], tuple[Mapping[str, LayerInfo], Places]]


@dataclass(frozen=True)
class Header:
    """What the headers of one model say, or why they could not be read."""

    model: ZooModel
    layers: Mapping[str, LayerInfo]
    labels: tuple[str, ...]
    fingerprint: str = ""
    base: str = ""
    is_unscaled: bool = False
    is_unread: bool = False
    fault: str = ""
    plain: Plain | None = None


def read_header(model: ZooModel, forms: Forms) -> Header:
    """Opens a model and reads no weights; what is wrong with it is its `fault`."""
    try:
        with model.open() as file:
            file.check_has_layers()
            labels = model.labels_in(file)
            about = fingerprint(file), stated_base(file)
            # Of a server at the commit that was read, and no other.
            pinned = replace(model, path=Path(file.path))
            plain = file.plain()
            form = file.layers, plain.places if plain else {}
            layers, places = forms.setdefault(
                (tuple(form[0].items()), tuple(form[1].items())), form
            )
            return Header(
                pinned,
                layers,
                labels,
                *about,
                bool(file.unscaled),
                bool(file.unread),
                plain=plain and replace(plain, places=places),
            )
    except ProbexError as error:
        return Header(model, {}, (), fault=str(error))
