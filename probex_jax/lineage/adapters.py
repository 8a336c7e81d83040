"""Which model an adapter was trained on.

What training adds to a layer reads the directions in which its inputs vary, and these are what the
base's other layers write. So the inputs that an update reads fit, unit for unit, the outputs that
the base writes, and no more than by chance those of an independent model, whose units are in
another order. A test compares the fit with that of random orders of the units, as `kinship` does.

The kin of the base fit as well, or nearly: among them nothing can be told from an adapter alone.

Letters: N units, F features, K directions, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probex_jax.lineage.kernels import against_orders, leading
from probex_jax.lineage.kinship import LEAST_UNITS, MOST_UNITS, ORDERS, has_sines
from probex_jax.matrices import LowRank
from probex_jax.model_files import ModelFile
from probex_jax.model_files.architecture import are_positions, is_head

_MOST_TESTS = 4
_MATRICES = 24  # of each side of a test, at most
_ROWS = 1024  # features of a unit in one matrix, at most
_READ, _WRITTEN = 32, 64  # leading directions that are compared

# What writes to heads, whose units have their places.
_OF_HEADS = re.compile(
    r"(?:.*[._])?(?:query|key|value|[qkv]_proj|[qkv]_lin|to_[qkv]|qkv(?:_proj)?|in_proj|c_attn|"
    r"add_[qkv]_proj)(?:[._].*)?"
)


@dataclass(frozen=True)
class BaseFit:
    """How an adapter fits a base.

    Args:
      p_value: the probability of a fit as good or better if the adapter was trained on an
        independent model; 1 where nothing could be compared.
      z: the fit, in standard deviations of those of random orders; of the length that fits best.
      units: what was compared, in words; "" if nothing was.
    """

    p_value: float
    z: float
    units: str


def base_fit(
    adapter: ModelFile, base: ModelFile, *, orders: int = ORDERS, seed: int = 0
) -> BaseFit:
    """Tests whether an adapter was trained on a model or its kin.

    Args:
      adapter: an adapter, open.
      base: a whole model, open.
      orders: how many random orders are drawn.
      seed: decides the orders.

    Returns:
      The fit. If several axis lengths are tested, the smallest p-value times their number.

    Raises:
      ProbexError: if a layer cannot be read.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> rng = np.random.default_rng(0)
      >>> writes = rng.normal(size=(32, 4)) @ rng.normal(size=(4, 64))
      >>> base = open_params({"mlp.down.weight": writes.astype("f4")})
      >>> reads = (rng.normal(size=(4, 64)) @ writes.T).astype("f4")
      >>> lora = {"q_proj.lora_A.weight": reads, "q_proj.lora_B.weight": np.ones((32, 4), "f4")}
      >>> base_fit(open_params(lora), base, orders=999).p_value
      0.001

    References:
      docs/lineage.md, "The base of an adapter".
    """
    tests = []
    for length, names in _lengths(adapter, base):
        read_NK = leading(_readings(adapter, names, length), _READ)
        written_NK = leading(_writings(base, length), _WRITTEN)
        if read_NK is not None and written_NK is not None:
            tests.append((length, read_NK, written_NK))
    best: BaseFit | None = None
    for place, (length, read_NK, written_NK) in enumerate(tests):
        p_value, z = against_orders(read_NK, written_NK, orders, (seed, place))
        found = BaseFit(min(1.0, p_value * len(tests)), z, f"{length} units")
        if best is None or found.p_value < best.p_value:
            best = found
    return best or BaseFit(1.0, 0.0, "")


def _lengths(adapter: ModelFile, base: ModelFile) -> list[tuple[int, list[str]]]:
    """Lengths of axes that updates read and the base writes, with the updates, most first."""
    reads: dict[int, list[str]] = {}
    for name, layer in adapter.layers.items():
        if layer.is_update and LEAST_UNITS <= layer.shape[1] <= MOST_UNITS:
            reads.setdefault(layer.shape[1], []).append(name)
    usable = [(n, names) for n, names in reads.items() if not has_sines(base, n)]
    return sorted(usable, key=lambda item: -len(item[1]))[:_MOST_TESTS]


def _readings(adapter: ModelFile, names: Sequence[str], length: int) -> list[np.ndarray]:
    """Of each update, its inputs' units with their features [N, F]."""
    found = []
    for name in names[:: -(-len(names) // _MATRICES)]:
        update = adapter.matrix(name)
        if isinstance(update, LowRank):
            # Features of the same inner products as those of the update multiplied out.
            down_RN = np.asarray(update.down, np.float64)
            triangular = np.linalg.qr(np.asarray(update.up, np.float64), mode="r")
            found.append((triangular @ down_RN).T)
        else:
            found.append(np.asarray(update, np.float64)[:_ROWS].T)
    return [x for x in found if len(x) == length]


def _writings(base: ModelFile, length: int) -> list[np.ndarray]:
    """Of each matrix that writes to these units, the units with their features [N, F]."""
    names = [
        name
        for name, layer in base.layers.items()
        if layer.shape[0] == length
        and not (layer.is_update or is_head(name) or are_positions(name))
        and not _OF_HEADS.fullmatch(name)
    ]
    names = names[:: -(-len(names) // _MATRICES)] if names else []
    return [np.asarray(base.matrix(name), np.float64)[:, :_ROWS] for name in names]


def merged_cosine(adapter: ModelFile, base: ModelFile, merged: ModelFile) -> float:
    """How well a model is its base plus an adapter.

    Args:
      adapter: an adapter, open.
      base: a whole model, open.
      merged: a whole model that may be the base with the adapter merged into it.

    Returns:
      The cosine of the adapter's updates and what the model has beyond its base, over the layers
      that the adapter changes; 0 if it changes none of them.

    Raises:
      ProbexError: if a layer cannot be read.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> rng = np.random.default_rng(0)
      >>> up, down, w = (rng.normal(size=s).astype("f4") for s in ((8, 2), (2, 8), (8, 8)))
      >>> lora = open_params({"fc.lora_B.weight": up, "fc.lora_A.weight": down})
      >>> base, merged = open_params({"fc.weight": w}), open_params({"fc.weight": w + up @ down})
      >>> round(merged_cosine(lora, base, merged), 3)
      1.0
    """
    inner, squares = 0.0, np.zeros(2)
    for name, of_base in _named_alike(adapter, base).items():
        if (
            of_base not in merged.layers
            or merged.layers[of_base].shape != base.layers[of_base].shape
        ):
            continue
        update = adapter.matrix(name)
        a_HW = np.float64(update.up @ update.down if isinstance(update, LowRank) else update)
        b_HW = np.float64(merged.matrix(of_base)) - np.float64(base.matrix(of_base))  # type: ignore[arg-type]
        inner += float((a_HW * b_HW).sum())
        squares += (np.square(a_HW).sum(), np.square(b_HW).sum())
    return inner / float(np.sqrt(squares.prod())) if squares.prod() > 0 else 0.0


def _named_alike(adapter: ModelFile, base: ModelFile) -> dict[str, str]:
    """Each update with the base's layer of its shape whose name ends as its own does, or begins."""
    found = {}
    bare = {name.removesuffix(".weight"): name for name in base.layers}
    for name, layer in adapter.layers.items():
        own = name.removesuffix(".weight")
        ends = [
            whole
            for short, whole in bare.items()
            if (short == own or short.endswith("." + own) or own.endswith("." + short))
            and base.layers[whole].shape == layer.shape
        ]
        if len(ends) == 1:
            found[name] = ends[0]
    return found
