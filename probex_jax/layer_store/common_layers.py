"""The layers that a store holds: those that most models have in one form."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from probex_jax.model_files import LayerInfo

Layers = Mapping[str, LayerInfo]


class StoredLayer(NamedTuple):
    """A layer's form in a store: its shape (H, W), and the rank of its factors or None."""

    shape: tuple[int, int]
    rank: int | None


def common_layers(models: Sequence[Layers]) -> dict[str, StoredLayer]:
    """The layers that more than half of the models have, each in its most frequent form.

    Args:
      models: the layers of each model.

    Returns:
      Name to form; the rank of factors is the highest of any model.
    """
    votes = Counter(
        (name, layer.shape, layer.rank is not None)
        for layers in models
        for name, layer in layers.items()
    )
    common: dict[str, StoredLayer] = {}
    for (name, shape, is_low_rank), count in votes.most_common():
        if 2 * count > len(models) and name not in common:
            ranks = [
                layers[name].rank or 0
                for layers in models
                if name in layers and layers[name].shape == shape
            ]
            common[name] = StoredLayer(shape, max(ranks) if is_low_rank else None)
    return common


def rarer_layers(models: Mapping[str, Layers], common: Mapping[str, StoredLayer]) -> dict[str, str]:
    """The layers that are not common, each with the models that lack it.

    Args:
      models: id to the layers of a model.
      common: the result of `common_layers`.
    """
    others = sorted({name for layers in models.values() for name in layers} - set(common))
    reasons = {}
    for name in others:
        lacking = [model for model, layers in models.items() if name not in layers]
        some = f" ({', '.join(lacking[:5])}{', …' if len(lacking) > 5 else ''})" if lacking else ""
        forms = {(v[name].shape, v[name].rank is None) for v in models.values() if name in v}
        reasons[name] = (
            f"{len(lacking)} of {len(models)} models lack it{some}, the others have it in "
            f"{len(forms)} shapes"
        )
    return reasons


def layer_faults(layers: Layers, stored: Mapping[str, StoredLayer]) -> dict[str, str]:
    """Why a model does not fit a store: layer to the reason; empty if it fits."""
    faults = {name: _fault(layers.get(name), form) for name, form in stored.items()}
    return {name: fault for name, fault in faults.items() if fault}


def _fault(layer: LayerInfo | None, stored: StoredLayer) -> str:
    if layer is None:
        return "missing"
    if layer.shape != stored.shape:
        return f"shape {_times(layer.shape)}, most models have {_times(stored.shape)}"
    if (layer.rank is None) != (stored.rank is None):
        forms = ("dense", "factors") if layer.rank is None else ("factors", "dense")
        return f"{forms[0]}, most models have {forms[1]}"
    if stored.rank is not None and layer.rank is not None and layer.rank > stored.rank:
        return f"factors of rank {layer.rank}, the store holds ranks up to {stored.rank}"
    return ""


def _times(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
