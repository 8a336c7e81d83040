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
    is_vector: bool = False


def common_layers(models: Sequence[Layers]) -> dict[str, StoredLayer]:
    """The layers that more than half of the models have, each in its most frequent form.

    Args:
      models: the layers of each model.

    Returns:
      Name to form; the rank of factors is the highest of any model.
    """
    votes = Counter(
        (name, layer.shape, layer.rank is not None, layer.kind == "vector")
        for layers in models
        for name, layer in layers.items()
    )
    common: dict[str, StoredLayer] = {}
    for (name, shape, is_low_rank, is_vector), count in votes.most_common():
        if 2 * count > len(models) and name not in common:
            ranks = [
                layers[name].rank or 0
                for layers in models
                if name in layers and layers[name].shape == shape
            ]
            common[name] = StoredLayer(shape, max(ranks) if is_low_rank else None, is_vector)
    return common


def left_out(
    models: Sequence[Layers],
    others: Sequence[Mapping[str, str]],
    common: Mapping[str, StoredLayer],
) -> dict[str, str]:
    """What a store of the common layers does not hold, by name, with the reason.

    Args:
      models: the layers of each model.
      others: of each model the tensors that are no layers, name to the reason.
      common: the result of `common_layers`.

    Example:
      >>> left_out([{}, {}], [{"step": "integer", "mask": "boolean"}, {"step": "integer"}], {})
      {'mask': 'boolean, in 1 of 2 models', 'step': 'integer'}
    """
    forms: dict[str, Counter[tuple[tuple[int, int], bool]]] = {}
    for layers in models:
        for name in layers.keys() - common.keys():
            form = layers[name].shape, layers[name].rank is None
            forms.setdefault(name, Counter())[form] += 1
    reasons: dict[str, Counter[str]] = {}
    for tensors in others:
        for name in tensors.keys() - common.keys():
            reasons.setdefault(name, Counter())[tensors[name]] += 1

    def often(count: int) -> str:
        return f"in {count} of {len(models)} models"

    found = {}
    for name, shapes in forms.items():
        several = f", in {len(shapes)} shapes" if len(shapes) > 1 else ""
        found[name] = often(shapes.total()) + several
    for name, given in reasons.items():
        rarely = "" if given.total() == len(models) else f", {often(given.total())}"
        found.setdefault(name, given.most_common(1)[0][0] + rarely)
    return dict(sorted(found.items()))


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
