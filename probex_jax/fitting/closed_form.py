"""Linear networks in closed form: ridge regression on all entries, and ProbeX without its ReLU.

A layer has many more entries than a tree has models, so the weights are a combination of the
training matrices, w = sum_n alpha_n x_n, and the solution follows from their inner products
(`ridge`), with targets t that are 2 y - 1 where classes are answered for themselves, one-hot where
one class is right, standardised where a number is.

`Dense` takes that. Of `ProbeX` the probes and projections are bases of it (`tucker`), and its
encoder is a second ridge regression, on the responses. How many there are is chosen from a ladder
that ends at what the encoder says; matrices of few entries are read whole, which is `Dense`. The
penalties, the one factor that turns outputs into logits, and the rung are those of the lowest loss
on validation models; without any, on training models that are left out in turn, also of what the
bases are chosen by. Several layers together: `multiple_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from probex_jax.encoders import Dense, ProbeX
from probex_jax.errors import ProbexError
from probex_jax.fitting.centre import Tree, is_centred, normalised
from probex_jax.fitting.data import Split, check_splits
from probex_jax.fitting.network import Network
from probex_jax.fitting.ridge import Kernel, Regression, enough_folds, folds, threads_for
from probex_jax.fitting.sharding import ONE, Devices
from probex_jax.fitting.strips import Strips
from probex_jax.fitting.task import Task
from probex_jax.fitting.tucker import Bases, bases, responses
from probex_jax.matrices import LowRank, combination

# Fewest models that bases are chosen by.
_FEWEST_MODELS = 4
# Encoders that are fitted; ProbeX without its ReLU.
Linear = Dense | ProbeX
# Matrices that are read at a time.
_BLOCK_BYTES = 64 * 2**20
NO_TREE: Tree = MappingProxyType({})
# Fewest probes of the ladder, and most entries of matrices that may be read whole all the same.
_FEWEST = 16
_MOST_WHOLE = 2**18


@dataclass(frozen=True)
class ClosedForm:
    """A linear network fitted in closed form.

    Args:
      penalties: weights of the L2 penalty that are tried, in units of the mean of K's diagonal.
      most_parameters: of an expert on several layers, the most that all of them may have together;
        what tells least is left out.

    Raises:
      ProbexError: if there is no penalty, or a value is not a number > 0.

    Example:
      >>> ClosedForm(penalties=(0.1, 1.0)).penalties
      (0.1, 1.0)
    """

    penalties: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
    most_parameters: int = 2**26

    def __post_init__(self) -> None:
        given = self.penalties
        if not (isinstance(given, Sequence) and given and all(map(_is_penalty, given))):
            raise ProbexError(f"recipe.penalties: {given!r} are not numbers > 0")
        if type(self.most_parameters) is not int or self.most_parameters < 1:
            raise ProbexError(
                f"recipe.most_parameters: {self.most_parameters!r} is not a whole number > 0"
            )
        object.__setattr__(self, "penalties", tuple(map(float, given)))


class Fitted(NamedTuple):
    """What `fit_closed_form` found.

    Args:
      network: what the parameters are of: of a ProbeX as many probes as were chosen, or `Dense`.
      params: its.
      penalty, factor: those chosen.
      loss: the task's own, on the models that chose.
      logits: [M, Y] float64 of these models, by networks that did not see them.
      models: [M] int, which of `val`, or without it of `train`, these are.
    """

    network: Network
    params: Any
    penalty: float
    factor: float
    loss: float
    logits: np.ndarray
    models: np.ndarray


def fit_closed_form(
    network: Network,
    task: Task,
    recipe: ClosedForm,
    train: Split,
    val: Split | None = None,
    *,
    tree: Tree = NO_TREE,
    devices: Devices = ONE,
) -> Fitted:
    """Fits a network that is linear.

    Args:
      network: an encoder `Dense`, or `ProbeX` without ReLU, without a head.
      task: what is to be told.
      recipe: how.
      train: x [N, H, W], y targets of the task.
      val: the models that choose; None to choose by five-fold cross-validation, of probes by as
        many of the five parts as hold enough models.
      tree: what is taken off all matrices before.
      devices: what share the work, on each its strips of the matrices.

    Returns:
      Its parameters, fitted to all of `train`, and what was chosen.

    Raises:
      ProbexError: if the network is another, an array does not fit the others, the training
        matrices are all zero, or some matrices are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from probex_jax.fitting import SeveralClasses, build_network
      >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1, 1) * jnp.ones([8, 3, 2])
      >>> data = Split(x, (x[:, 0, :1] > 0).astype(jnp.float32))
      >>> network = build_network({"name": "dense"}, head="none", n_outputs=1)
      >>> params = fit_closed_form(network, SeveralClasses(), ClosedForm(), data, data).params
      >>> bool(((network.apply({"params": params}, x) > 0) == (data.y > 0)).all())
      True
    """
    encoder = check_closed_form(network, task)
    splits = {"train": train} if val is None else {"train": train, "val": val}
    check_splits(task, encoder.rep_dim, splits)
    y, n_train = np.concatenate([np.asarray(split.y) for split in splits.values()]), len(train.y)
    if val is None and n_train < 2:
        raise ProbexError("train: y of one model: none to leave out in turn; give val")
    targets_NY = task.regressed(y, encoder.rep_dim)
    if targets_NY.shape[1] != encoder.rep_dim:
        raise ProbexError(
            f"encoder.rep_dim: {encoder.rep_dim}, expected the task's {targets_NY.shape[1]}"
        )
    shape = train.x.shape[1], train.x.shape[2]
    fold_N = np.repeat([-1, 0], [n_train, len(y) - n_train])
    if val is None:
        fold_N = enough_folds(folds(task, y)) if is_reduced(encoder, shape) else folds(task, y)
    regression = Regression(task, y, targets_NY, recipe.penalties, fold_N, refit=val is None)
    read = jax.jit(lambda x, tree: encoder.read(normalised(x, tree)))
    size = max(1, _BLOCK_BYTES // (4 * prod(shape)))

    def blocks() -> Iterator[Any]:
        for x in (split.x for split in splits.values()):
            for start in range(0, x.shape[0], size):
                yield read(x[start : start + size], dict(tree))

    factors = isinstance(train.x, LowRank) and not is_centred(tree)
    strips = Strips(blocks, len(y), shape, factors=factors, devices=devices.local)
    kernel_NN = strips.kernel()
    finite_N = np.isfinite(kernel_NN).any(axis=1)
    if not finite_N[n_train:].all() and finite_N[:n_train].any():
        raise ProbexError("some validation matrices are not finite")
    found = features(strips, kernel_NN, encoder, shape, regression)
    chosen = regression.choose(found.kernel)
    solution_NY, intercept_Y = regression.solve(found.kernel.whole, chosen.penalty)
    params = found.params(strips, chosen.factor * solution_NY, chosen.factor * intercept_Y)
    network = network.clone(encoder=found.encoder)
    models = regression.asked if val is None else np.arange(len(val.y))
    return Fitted(network, {"encoder": params}, *chosen, models)


class Features(NamedTuple):
    """What of a layer is regressed on.

    Args:
      encoder: what reads it.
      kernel: the inner products of the models by it.
      bases: of a ProbeX; None where all entries are read.
      responses: [N, U, V] float32, of a ProbeX those of all models.
    """

    encoder: Linear
    kernel: Kernel
    bases: Bases | None = None
    responses: np.ndarray | None = None

    def params(
        self, strips: Strips | None, solution_NY: np.ndarray, bias_Y: np.ndarray
    ) -> dict[str, Any]:
        """The encoder's, float32, for coefficients [N, Y] of the models and a bias [Y].

        Strips are asked for where all entries are read.
        """
        bias_Y = np.asarray(bias_Y, np.float32)
        if self.bases is None or self.responses is None:
            assert strips is not None
            return {"weight": _weight(strips, solution_NY), "bias": bias_Y}
        responses_NF = self.responses.reshape(len(self.responses), -1)
        kernel_FY = np.asarray(responses_NF.T @ solution_NY, np.float32)
        return {**self.bases._asdict(), "encoder": {"dense": {"kernel": kernel_FY, "bias": bias_Y}}}


def features(
    strips: Strips,
    kernel_NN: np.ndarray,
    encoder: Linear,
    shape: tuple[int, int],
    regression: Regression,
) -> Features:
    """What an encoder reads of a layer: of `ProbeX` as many probes as tell most.

    Args:
      strips: its matrices.
      kernel_NN: their inner products.
      encoder: one that `check_closed_form` lets pass; the most probes and projections.
      shape: (H, W).
      regression: of what.

    Returns:
      The encoder with the probes that were chosen, or `Dense`, and what it takes of the models.
    """
    whole = Features(all_entries(encoder), Kernel(kernel_NN))
    parts = [*regression.parts]
    few = min(len(regression.known(part)) for part in parts) < _FEWEST_MODELS
    if few or not is_reduced(encoder, shape):
        return whole
    assert isinstance(encoder, ProbeX)
    # What is fitted to in the end is what is without the one part, where that is not fitted to.
    sets = [None, *parts] if regression.refit else parts
    with threads_for(len(kernel_NN)):
        penalty = regression.choose(whole.kernel).penalty
        solutions = [regression.solve(kernel_NN, penalty, part)[0] for part in sets]
    most = bases(strips, solutions, encoder.n_probes, encoder.proj_dim)
    responses_FNUV = responses(strips, most)
    tried = [whole] if prod(shape) <= _MOST_WHOLE else []
    for rank in _ladder(encoder):
        cut_FNUV = responses_FNUV[:, :, :rank, :rank]
        kernels_FNN = np.stack([_products(each) for each in cut_FNUV])
        of_parts = kernels_FNN[1:] if regression.refit else kernels_FNN
        kernel, chosen_bases = Kernel(kernels_FNN[0], of_parts), most[0].cut(rank)
        reader, cut_NUV = chosen_bases.of(encoder), np.ascontiguousarray(cut_FNUV[0])
        tried.append(Features(reader, kernel, chosen_bases, cut_NUV))
    with threads_for(len(kernel_NN)):
        return min(tried, key=lambda each: regression.choose(each.kernel).loss)


def is_reduced(encoder: Linear, shape: tuple[int, int]) -> bool:
    """Whether an encoder has fewer responses than matrices [H, W], no vectors, have entries."""
    if not isinstance(encoder, ProbeX) or 1 in shape:
        return False
    return min(encoder.n_probes, shape[1]) * min(encoder.proj_dim, shape[0]) < prod(shape)


def all_entries(encoder: Linear) -> Dense:
    """What reads all entries as an encoder reads some."""
    names = "rep_dim", "standardise", "dtype", "param_dtype", "precision"
    return Dense(**{name: getattr(encoder, name) for name in names})


def n_parameters(encoder: Linear, shape: tuple[int, int]) -> int:
    """The number of weights of an encoder of matrices [H, W], biases apart."""
    if isinstance(encoder, Dense):
        return prod(shape) * encoder.rep_dim
    bases = shape[0] * encoder.proj_dim + shape[1] * encoder.n_probes
    return bases + encoder.n_probes * encoder.proj_dim * encoder.rep_dim


def check_closed_form(network: Network, task: Task) -> Linear:
    """The encoder of a network that `fit_closed_form` fits; a ProbexError for another."""
    encoder, is_linear = network.encoder, network.head is None and task.head != "text"
    if is_linear and isinstance(encoder, Dense):
        return encoder
    if is_linear and isinstance(encoder, ProbeX) and not encoder.relu:
        return encoder
    raise ProbexError(
        'the closed form fits the encoder dense, or probex without relu, with head "none", to '
        "classes or a number; other encoders, heads and texts need gradient descent"
    )


def _ladder(encoder: ProbeX) -> list[int]:
    """Numbers of probes and projections that are tried; of the fewer of both there are fewer."""
    most = max(encoder.n_probes, encoder.proj_dim)
    return [*(_FEWEST << n for n in range(32) if _FEWEST << n < most), most]


def _products(responses_NUV: np.ndarray) -> np.ndarray:
    """[N, N] float64: inner products of responses."""
    responses_NF = responses_NUV.reshape(len(responses_NUV), -1)
    with threads_for(len(responses_NF)):
        return np.asarray(responses_NF @ responses_NF.T, np.float64)


def _weight(strips: Strips, solution_NY: np.ndarray) -> np.ndarray:
    """[H, W, Y] float32: sums of the matrices, weighted by the coefficients."""
    solution_NY = np.asarray(solution_NY, np.float32)
    parts = strips.map(lambda strip: _combination(strip, solution_NY))
    weight_YHW = strips.joined(np.moveaxis(part, -1, 0) for part in parts)
    weight_YHW = weight_YHW.mT if strips.transposed else weight_YHW
    return np.ascontiguousarray(np.moveaxis(weight_YHW, 0, -1))


_combination = jax.jit(combination)


def _is_penalty(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")
