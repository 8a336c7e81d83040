"""A test of whether two models were trained independently.

A network computes the same when its hidden units are put in another order, and training does not
prefer one: of a model that was trained on its own, every order was as likely. So units of two
independent models match at equal places no better than at random ones, even if both learnt the same
data; those of a descendant do. The test compares the two (Zhu et al., "Independence tests for
language models", ICML 2025, have the idea). Its p-value is exact for any training that treats units
alike. Pixels, words and positions have an order before training; the names and the order of layers
tell which axes these are.

All axes of one length are put in one order, which covers units that several layers share. Each axis
length is tested by itself, since the order of one must not change what another is compared by: the
MLPs' hidden units, and the residual stream. Where units do not match, a second test of each length
asks whether they vary alike (`kernels`), which does not depend on the order of what they are
connected to: the residual stream still tells of a model whose hidden units were permuted. Of a
low-rank update it is the order of the rank's units.

Letters: N units, F features of a unit, T orders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.lineage.kernels import against_orders, leading
from probex_jax.lineage.pairs import pair_layers
from probex_jax.lineage.sketch import natural_order
from probex_jax.matrices import LowRank
from probex_jax.model_files import ModelFile
from probex_jax.model_files.architecture import are_positions, is_head

ORDERS = 9999  # that are drawn at random; the smallest p-value is 1 / (ORDERS + 1)
SIGNIFICANT = 1e-3  # the p-value below which models are taken for kin
_MOST_ALIKE = 1024  # units that are tested for varying alike, which takes a decomposition
_ONE_SIDE, _OTHER_SIDE = 16, 32  # directions of the two models
LEAST_UNITS = 8  # of fewer there are too few orders
MOST_UNITS = 16384  # of more they are words or classes, and too many to compare
_MOST_TESTS = 4  # axis lengths, those with the most features
_MATRICES = 12  # of an axis length, at most
_FEATURES = 256  # of a unit in one matrix, about, at most
_BLOCK = 2**20
_KEPT = 2**23  # numbers of random orders that are kept, at most

# Rows of queries, keys and values, and columns of what they are mixed by, belong to heads.
_ATTENTION = re.compile(
    r"(?:.*[._])?(?:\w*attn\w*|\w*attention\w*|[qkvo]_proj|to_[qkv]|to_out|qkv)(?:[._].*)?",
    re.IGNORECASE,
)

# Rows of these are words or codes, columns of those are places in a sequence: both have an order.
_OF_WORDS = re.compile(r".*(?:embed|wte|word|vocab|codebook|tok_|token).*", re.IGNORECASE)
_OVER_TOKENS = re.compile(r"(?!.*emb).*(?:tokens|token_?mix|mlp_?tok|patch_?mix).*", re.IGNORECASE)
_FIRST = re.compile(
    r"(?:\w+\.)?(?:enc|encoder|encode|embed\w*|input\w*|stem|down_blocks)(?:[._\d].*)?"
)
_LAST = re.compile(r"(?:\w+\.)?(?:dec|decoder|decode|out|output|generator|up_blocks)(?:[._\d].*)?")


@dataclass(frozen=True)
class LayerMatch:
    """How well the units of one layer match at equal places.

    Args:
      name: of the layer, in the first model.
      cosine: of the layers, centred over units.
      z: the matches in standard deviations of those at random places.
    """

    name: str
    cosine: float
    z: float


@dataclass(frozen=True)
class Kinship:
    """The result of `kinship`.

    Args:
      p_value: the probability of such matches, or better ones, between independent models; 1 where
        nothing could be compared.
      units: what was compared, in words, such as "128 units of 4 layers"; "" if nothing was.
      layers: how well each layer matches, the best first.
    """

    p_value: float
    units: str
    layers: tuple[LayerMatch, ...]


@dataclass
class _Test:
    """Sums over the layers of one test; each group of units has an order of its own."""

    words: str
    groups: list[np.ndarray]
    matches: list[LayerMatch]
    one: list[np.ndarray] = field(default_factory=list)
    other: list[np.ndarray] = field(default_factory=list)

    @property
    def has_second(self) -> bool:
        """Whether units can be tested for varying alike, too."""
        return bool(self.one) and len(self.one[0]) <= _MOST_ALIKE


def kinship(
    one: ModelFile,
    other: ModelFile,
    pairs: Mapping[str, str] | None = None,
    *,
    orders: int = ORDERS,
    seed: int = 0,
) -> Kinship:
    """Tests whether two models were trained independently.

    Args:
      one: a model, open.
      other: another one.
      pairs: name of each layer in `one` to its name in `other`; None to find out.
      orders: how many random orders are drawn; the smallest p-value is about one over it.
      seed: decides the orders.

    Returns:
      The p-value, and the layers that speak for kinship. Of several tests, two for each axis
      length, the smallest p-value times their number.

    Raises:
      ProbexError: if a layer cannot be read.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> def trained(noise, first):
      ...     made = {"fc1.weight": first, "fc2.weight": np.ones((5, 64), "f4")}
      ...     return open_params({n: x + noise.normal(size=x.shape) for n, x in made.items()})
      >>> rng = np.random.default_rng(0)
      >>> base = rng.normal(size=(64, 20))
      >>> kinship(trained(rng, base), trained(rng, base)).p_value < 0.001
      True
      >>> bool(kinship(trained(rng, base), trained(rng, rng.normal(size=(64, 20)))).p_value > 0.01)
      True

    References:
      docs/lineage.md, "Kin or not".
    """
    if pairs is None:
        pairs = pair_layers(one, other)
    updates = [name for name in pairs if one.all_layers[name].is_update]
    if updates:
        tests = [test for test in [_of_updates(one, other, pairs, updates)] if test.groups]
    else:
        tests = list(_of_units(one, other, pairs))
    # Units that match need no second test, though its number counts always.
    count = sum(1 + test.has_second for test in tests)
    best, least = None, 1.0
    for place, test in enumerate(tests):
        value = count * _p_value(test.groups, orders, (seed, place))
        best, least = (test, value) if best is None or value < least else (best, least)
    for place, test in enumerate(tests):
        if test.has_second and least >= SIGNIFICANT:
            value = count * _second(test, orders, (seed, len(tests) + place))
            best, least = (test, value) if value < least else (best, least)
    if best is None:
        return Kinship(1.0, "", ())
    matches = sorted(best.matches, key=lambda match: -match.z)
    return Kinship(min(1.0, least), best.words, tuple(matches))


def _second(test: _Test, orders: int, seed: Sequence[int]) -> float:
    """The p-value of the test whether units vary alike."""
    one_NK, other_NK = leading(test.one, _ONE_SIDE), leading(test.other, _OTHER_SIDE)
    if one_NK is None or other_NK is None:
        return 1.0
    return against_orders(one_NK, other_NK, orders, seed)[0]


def _of_units(one: ModelFile, other: ModelFile, pairs: Mapping[str, str]) -> Iterator[_Test]:
    """A test for each length of an axis that some layer writes and another one reads."""
    for length, names in _lengths(one, pairs).items():
        if has_sines(one, length) or has_sines(other, length):
            continue
        similar_NN = np.zeros((length, length), np.float32)
        matches: list[LayerMatch] = []
        sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        for name in names:
            a_NF = _units(one, name, length)
            b_NF = _units(other, pairs[name], length)
            if a_NF is None or b_NF is None:
                continue
            c_NN = a_NF @ b_NF.T
            matches.append(LayerMatch(name, float(np.trace(c_NN)), _z(c_NN)))
            similar_NN += c_NN
            if length <= _MOST_ALIKE:
                sides[0].append(a_NF)
                sides[1].append(b_NF)
        if matches:
            words = f"{length} units of {len(matches)} layers"
            yield _Test(words, [similar_NN], matches, *sides)


def _lengths(model: ModelFile, pairs: Mapping[str, str]) -> dict[int, list[str]]:
    """Axis lengths of hidden units, those with the most features, to the matrices with one.

    Pixels and words are no hidden units: an autoencoder reads pixels before it writes them.
    """
    written: dict[int, list[str]] = {}
    read: dict[int, list[str]] = {}
    for name in sorted(pairs, key=_in_order):
        if name not in model.layers or is_head(name) or are_positions(name):
            continue
        if _ATTENTION.fullmatch(name) or _OVER_TOKENS.fullmatch(name):
            continue
        height, width, _ = _axes(model, name)
        if height != width:
            read.setdefault(width, []).append(name)
            if not _OF_WORDS.fullmatch(name):
                written.setdefault(height, []).append(name)
    heads = {_axes(model, name)[1] for name in model.layers if is_head(name)}

    def is_hidden(length: int) -> bool:
        if length not in written or not LEAST_UNITS <= length <= MOST_UNITS:
            return False
        last = read[length][-1] if length in read else ""
        return length in heads or bool(last and _in_order(written[length][0]) < _in_order(last))

    used = {n: [*written[n], *read.get(n, [])] for n in written if is_hidden(n)}
    features = {
        n: sum(math.prod(model.layers[name].shape) // n for name in names)
        for n, names in used.items()
    }
    longest = sorted(used, key=lambda n: -features[n])[:_MOST_TESTS]
    return {n: _spread(used[n], _MATRICES) for n in longest}


def _in_order(name: str) -> tuple[int, tuple[tuple[int, str], ...]]:
    """A key that sorts layers roughly as a model applies them."""
    place = 0 if _FIRST.fullmatch(name) else 2 if _LAST.fullmatch(name) else 1
    return place, natural_order(name)


def _spread(names: Sequence[str], most: int) -> list[str]:
    places = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [names[place] for place in places]


def _axes(model: ModelFile, name: str) -> tuple[int, int, int]:
    """Outputs, inputs and taps of a layer; more than one tap for convolutions alone."""
    height, width = model.layers[name].shape
    stored = model.tensors[model.tensors_of(name)[0]].shape
    if model.layers[name].kind == "conv" and len(stored) > 2 and stored[0] == height:
        return height, stored[1], width // stored[1]
    return height, width, 1


def _units(model: ModelFile, name: str, length: int) -> np.ndarray | None:
    """The units of a layer [N, F], float32, centred, of length one together; None if all equal."""
    height, width, taps = _axes(model, name)
    if height == length:
        x_NF = model.matrix(name)
        assert isinstance(x_NF, np.ndarray)
        x_NF = x_NF[:, :: -(-x_NF.shape[1] // _FEATURES)]
    else:
        rows = range(0, height, -(-height * taps // _FEATURES))
        x_HNK = model.rows(name, list(rows)).reshape(len(rows), width, taps)
        x_NF = x_HNK.transpose(1, 0, 2).reshape(width, -1)
    x_NF = x_NF - x_NF.mean(0)
    size = np.linalg.norm(x_NF.astype(np.float64))
    return (x_NF / size).astype(np.float32) if size > 0 and np.isfinite(size) else None


def has_sines(model: ModelFile, length: int) -> bool:
    """Whether positions are sines and cosines, in which each unit of the stream has its place."""
    for name, layer in model.layers.items():
        if are_positions(name) and layer.shape[1] == length and layer.shape[0] > 2:
            sizes = np.linalg.norm(np.float64(model.matrix(name)), axis=1)[1:]  # type: ignore[arg-type]
            if np.ptp(sizes) < 1e-3 * sizes.max():
                return True
    return False


def _of_updates(
    one: ModelFile, other: ModelFile, pairs: Mapping[str, str], names: Sequence[str]
) -> _Test:
    """The test of two adapters: the order of the rank's units, in each layer for itself."""
    test = _Test("", [], [])
    for name in names:
        a, b = one.matrix(name), other.matrix(pairs[name])
        if not (isinstance(a, LowRank) and isinstance(b, LowRank)):
            continue
        a_RW, b_RW = (np.asarray(x.down, np.float64) for x in (a, b))
        if a_RW.shape != b_RW.shape or len(a_RW) < 2:
            continue
        sizes = np.linalg.norm(a_RW) * np.linalg.norm(b_RW)
        if sizes > 0 and np.isfinite(sizes):
            c_RR = (a_RW @ b_RW.T / sizes).astype(np.float32)
            test.groups.append(c_RR)
            test.matches.append(LayerMatch(name, float(np.trace(c_RR)), _z(c_RR)))
    ranks = sorted({len(group) for group in test.groups})
    test.words = f"ranks of {len(test.groups)} updates" if ranks else ""
    return test


def _z(c_NN: np.ndarray) -> float:
    """The trace in standard deviations of the sum of entries at random places (Hoeffding, 1951)."""
    n = len(c_NN)
    rows_N, columns_N = (c_NN.mean(axis, dtype=np.float64) for axis in (1, 0))
    mean = rows_N.mean()
    # The squares of the entries, centred over rows and columns.
    squares = float(np.einsum("ij,ij->", c_NN, c_NN, dtype=np.float64))
    squares -= n * (np.square(rows_N).sum() + np.square(columns_N).sum() - n * mean**2)
    found = float(np.trace(c_NN, dtype=np.float64)) - n * mean
    return found / math.sqrt(squares / (n - 1)) if squares > 0 else 0.0


def _p_value(groups: Sequence[np.ndarray], orders: int, seed: Sequence[int]) -> float:
    """The share of random orders whose units match at least as well."""
    found = sum(float(np.trace(c_NN, dtype=np.float64)) for c_NN in groups)
    drawn_T = np.zeros(orders)
    for place, c_NN in enumerate(groups):
        begin = 0
        for places_TN in _orders(len(c_NN), orders, (*seed, place)):
            end = begin + len(places_TN)
            drawn_T[begin:end] += c_NN.ravel().take(places_TN).sum(1)
            begin = end
    tolerance = 1e-5 * abs(found)  # of sums of the same numbers in another order
    return (1 + int((drawn_T >= found - tolerance).sum())) / (orders + 1)


def _orders(length: int, orders: int, seed: tuple[int, ...]) -> Iterable[np.ndarray]:
    """Random orders in blocks [T, N], as places of the entries in a matrix [N, N] that is flat.

    Those of few units are kept for the next pair.
    """
    if length * orders <= _KEPT:
        return _kept_orders(length, orders, seed)
    return _drawn_orders(length, orders, seed)


@lru_cache(maxsize=8)
def _kept_orders(length: int, orders: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    return list(_drawn_orders(length, orders, seed))


def _drawn_orders(length: int, orders: int, seed: tuple[int, ...]) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    places_N = np.arange(length)
    step = max(1, _BLOCK // length)
    for begin in range(0, orders, step):
        count = min(step, orders - begin)
        yield places_N * length + rng.permuted(np.tile(places_N, (count, 1)), axis=1)


def check_comparable(one: ModelFile, other: ModelFile, pairs: Mapping[str, str]) -> None:
    """Raises a ProbexError that says what matches if two models share too little to compare."""
    ours, theirs = ({name for name in model.layers if not is_head(name)} for model in (one, other))
    common = [name for name in pairs if name in ours]
    if 2 * len(common) >= max(len(ours), len(theirs)) and common:
        return
    shapes = [{layer.shape for layer in model.layers.values()} for model in (one, other)]
    both = len(shapes[0] & shapes[1])
    raise ProbexError(
        f"not comparable: {one.path} has {len(ours)} matrices and {other.path} has {len(theirs)}; "
        f"{len(common)} match in name and shape"
        + (f", {both} shapes are in both" if both else ", and no shape is in both")
    )
