"""Ridge regression in dual form: solutions and left-out outputs for every penalty, from one kernel.

With K [N, N] the inner products of the models, centred, t their targets and p a penalty,

    alpha = (K + p tr(K)/N 1)^-1 (t - mean t)

and a model x is answered by sum_n alpha_n <x, x_n> and an intercept, which no penalty shrinks. One
eigendecomposition of K serves all penalties, and all parts that are left out in turn: with
G = (K + p tr(K)/N 1)^-1, the residuals of a part S by the solution of the others are
(G_SS)^-1 (G t)_S. S may be two parts: what is chosen by all models but a part's, such as weights of
layers, is then known without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from probex_jax.errors import ProbexError
from probex_jax.fitting.task import Task

# Parts of the models that are left out in turn.
FOLDS = 5
# Models that are enough to choose features by.
_ENOUGH = 32
# Fewest parts, and most models, of which pairs of parts are left out.
_FEWEST_PAIRED, MOST_PAIRED = 3, 2048
# Weight of the constant kernel that makes the intercept, in units of the mean of K's diagonal.
_CONSTANT = 1e4


# Models up to which the threads of BLAS wait for each other longer than they work.
_FEW = 512


class Kernel(NamedTuple):
    """Inner products of models, by features that may have been chosen with regard to targets.

    Args:
      whole: [N, N] float64, by features that are chosen by all models.
      without: [F, N, N], by those that are chosen without part f, of the parts that are left out in
        turn; None where features do not depend on targets.
    """

    whole: np.ndarray
    without: np.ndarray | None = None

    def left_out(self, part: int) -> np.ndarray:
        """By features that know nothing of a part's targets."""
        return self.whole if self.without is None else self.without[part]

    def of(self, models: np.ndarray | None) -> Kernel:
        """Of some models; None for all."""
        if models is None:
            return self
        of_both = np.ix_(models, models)
        without = None if self.without is None else [each[of_both] for each in self.without]
        return Kernel(self.whole[of_both], None if without is None else np.stack(without))


class Chosen(NamedTuple):
    """The penalty of the lowest loss.

    Args:
      penalty: it.
      factor: what turns outputs into logits.
      loss: the task's own, of these logits.
      logits: [M, Y] float64 of the models that chose (`Regression.asked`).
    """

    penalty: float
    factor: float
    loss: float
    logits: np.ndarray


class Ridge:
    """Ridge regression of targets on models, for every penalty.

    Args:
      kernel_NN: inner products of the models, float64.
      targets_NY: what is regressed, float64.

    Raises:
      ProbexError: if the kernel is not finite, or all models are the same.

    Example:
      >>> x = np.array([[1.0], [2.0], [4.0]])
      >>> ridge = Ridge(x @ x.T, 3.0 * x + 1.0)
      >>> alpha, intercept = ridge.solution(1e-9)
      >>> np.allclose(x @ (x.T @ alpha) + intercept, 3.0 * x + 1.0)
      True
      >>> np.allclose(ridge.left_out(1e-9, [0, 1, 2]), 3.0 * x + 1.0)
      True
    """

    def __init__(self, kernel_NN: np.ndarray, targets_NY: np.ndarray):
        self._targets_NY = targets_NY
        if not np.isfinite(kernel_NN).all():
            raise ProbexError("some training matrices are not finite, or too large")
        self._mean_N = kernel_NN.mean(axis=0)
        centred_NN = centred(kernel_NN)
        self.unit = float(np.trace(centred_NN)) / len(centred_NN)
        if not self.unit > 0:
            raise ProbexError("the training matrices are all the same")
        values_N, self._vectors_NN = np.linalg.eigh(centred_NN + _CONSTANT * self.unit)
        self._values_N = np.maximum(values_N, 0.0)
        self._rotated_NY = self._vectors_NN.T @ targets_NY

    def _inverse(self, penalty: float) -> np.ndarray:
        return 1 / (self._values_N + penalty * self.unit)

    def solution(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """alpha [N, Y] and the intercept [Y]."""
        alpha_NY = self._vectors_NN @ (self._inverse(penalty)[:, None] * self._rotated_NY)
        alpha_NY -= alpha_NY.mean(axis=0)
        return alpha_NY, self._targets_NY.mean(axis=0) - self._mean_N @ alpha_NY

    def left_out(self, penalty: float, fold_N: Sequence[int] | np.ndarray) -> np.ndarray:
        """[N, Y]: the outputs of each model by the solution without its part.

        Those of models of no part, a number below 0, stay what their targets are.
        """
        inverse_N, fold_N = self._inverse(penalty), np.asarray(fold_N)
        solved_NY = self._vectors_NN @ (inverse_N[:, None] * self._rotated_NY)
        outputs_NY = self._targets_NY.copy()
        for fold in np.unique(fold_N[fold_N >= 0]):
            part = np.flatnonzero(fold_N == fold)
            rows = self._vectors_NN[part]
            outputs_NY[part] -= np.linalg.solve((rows * inverse_N) @ rows.T, solved_NY[part])
        return outputs_NY

    def left_out_in_pairs(self, penalty: float, fold_N: np.ndarray) -> np.ndarray:
        """[F, N, Y]: as `left_out`, but by the solutions without part f, too, of F parts.

        Those of the models of part f itself stay what their targets are.
        """
        parts = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N[fold_N >= 0])]
        outputs_FNY = np.stack([self._targets_NY] * len(parts))
        inverse_NN = (self._vectors_NN * self._inverse(penalty)) @ self._vectors_NN.T
        solved_NY = inverse_NN @ self._targets_NY
        for one, other in combinations(range(len(parts)), 2):
            both = np.concatenate([parts[one], parts[other]])
            residuals_SY = np.linalg.solve(inverse_NN[np.ix_(both, both)], solved_NY[both])
            of_one, of_other = np.split(residuals_SY, [len(parts[one])])
            outputs_FNY[other, parts[one]] -= of_one
            outputs_FNY[one, parts[other]] -= of_other
        return outputs_FNY


@dataclass(frozen=True)
class Regression:
    """Targets of N models, and who of them choose a penalty.

    Args:
      task: what is to be told.
      y: its targets.
      targets_NY: what is regressed.
      penalties: those tried, in units of the mean of a kernel's diagonal.
      fold_N: [N] int, the part of each model; parts are left out in turn, and models of none,
        below 0, never.
      refit: whether models that were left out are fitted to in the end.
      models: [N] int, which of the models of a kernel these are; None for all, in their order.
    """

    task: Task
    y: np.ndarray
    targets_NY: np.ndarray
    penalties: Sequence[float]
    fold_N: np.ndarray
    refit: bool = True
    models: np.ndarray | None = None

    @property
    def asked(self) -> np.ndarray:
        """[M] int: the models that choose."""
        return np.flatnonzero(self.fold_N >= 0)

    @property
    def parts(self) -> np.ndarray:
        """The parts that are left out in turn."""
        return np.unique(self.fold_N[self.asked])

    def known(self, part: int | None = None) -> np.ndarray:
        """[M] int: the models that are fitted to without a part, or in the end."""
        if part is None:
            return np.flatnonzero(self.refit | (self.fold_N < 0))
        return np.flatnonzero(self.fold_N != part)

    def solve(
        self, kernel_NN: np.ndarray, penalty: float, part: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """alpha [N, Y], 0 for models that are not fitted to, and the intercept [Y]."""
        known, alpha_NY = self.known(part), np.zeros_like(self.targets_NY)
        ridge = Ridge(kernel_NN[np.ix_(known, known)], self.targets_NY[known])
        alpha_NY[known], intercept_Y = ridge.solution(penalty)
        return alpha_NY, intercept_Y

    @property
    def pairs(self) -> bool:
        """Whether pairs of parts are left out: of few parts, and of many models, they are not."""
        enough_parts = len(self.parts) >= _FEWEST_PAIRED
        return self.refit and enough_parts and len(self.y) <= MOST_PAIRED

    def choose(self, kernel: Kernel) -> Chosen:
        """The best penalty for the models that are left out."""
        return self._best(self._left_out(kernel))

    def _left_out(self, kernel: Kernel) -> dict[float, np.ndarray]:
        """By penalty [N, Y]: the outputs of the models that are left out; others' targets."""
        if kernel.without is None and self.refit:
            return self._left_out_of(Ridge(kernel.whole, self.targets_NY))
        outputs = {penalty: self.targets_NY.copy() for penalty in self.penalties}
        for part in self.parts:
            known, out = self.known(part), np.flatnonzero(self.fold_N == part)
            kernel_NN = kernel.left_out(part)
            of_known = kernel_NN[np.ix_(known, known)]
            ridge = Ridge(of_known, self.targets_NY[known]) if _differ(of_known) else None
            for penalty, outputs_NY in outputs.items():
                if ridge is None:  # nothing to tell them apart by
                    outputs_NY[out] = self.targets_NY[known].mean(axis=0)
                    continue
                alpha_NY, intercept_Y = ridge.solution(penalty)
                outputs_NY[out] = kernel_NN[np.ix_(out, known)] @ alpha_NY + intercept_Y
        return outputs

    def _left_out_of(self, ridge: Ridge) -> dict[float, np.ndarray]:
        return {p: ridge.left_out(p, self.fold_N) for p in self.penalties}

    def prior_losses(self) -> tuple[float, np.ndarray | None]:
        """The losses of `choose_each`, of always answering the mean of the others' targets."""
        means_NY = np.empty_like(self.targets_NY)
        for part in self.parts:
            means_NY[self.fold_N == part] = self.targets_NY[self.known(part)].mean(axis=0)
        asked = self.asked
        loss = self.task.best_factor(means_NY[asked], self.y[asked])[1]
        if not self.pairs:
            return loss, None
        means_FNY = np.stack([self.targets_NY] * len(self.parts))
        for one, other in permutations(self.parts, 2):
            known = (self.fold_N != one) & (self.fold_N != other)
            means_FNY[one, self.fold_N == other] = self.targets_NY[known].mean(axis=0)
        return loss, self._losses(means_FNY)

    def _best(self, outputs: Mapping[float, np.ndarray]) -> Chosen:
        """Of the outputs [N, Y] for each penalty."""
        found, asked, factor = list[Chosen](), self.asked, None
        for penalty, outputs_NY in outputs.items():
            factor, loss = self.task.best_factor(outputs_NY[asked], self.y[asked], factor)
            found.append(Chosen(penalty, factor, loss, factor * outputs_NY[asked]))
        return min(found, key=lambda each: each.loss)

    def _others(self, part: int) -> np.ndarray:
        """[M] int: the models that choose, without a part."""
        return np.flatnonzero((self.fold_N >= 0) & (self.fold_N != part))

    def _without_parts(self, outputs_PFNY: Sequence[np.ndarray]) -> np.ndarray:
        """[F]: the loss without each part, of the penalty that is best for the others' squares."""
        best_F = np.argmin([self._squares(each) for each in outputs_PFNY], axis=0)
        return self._losses([outputs_PFNY[best][part] for part, best in enumerate(best_F)])

    def _squares(self, outputs_FNY: Iterable[np.ndarray]) -> np.ndarray:
        """[F]: squared errors of outputs without each part."""
        errors = zip(self.parts, (each - self.targets_NY for each in outputs_FNY), strict=True)
        return np.array([np.mean(error_NY[self._others(part)] ** 2) for part, error_NY in errors])

    def _losses(self, outputs_FNY: Iterable[np.ndarray]) -> np.ndarray:
        """[F]: the task's own, of outputs without each part."""
        others = [self._others(part) for part in self.parts]
        each = zip(others, outputs_FNY, strict=True)
        losses, factor = list[float](), None
        for n, out_NY in each:
            factor, loss = self.task.best_factor(out_NY[n], self.y[n], factor)
            losses.append(loss)
        return np.array(losses)


def choose_each(
    kernel: Kernel, regressions: Sequence[Regression]
) -> list[tuple[Chosen, np.ndarray | None]]:
    """Of regressions of the same models and parts on one kernel, what each chooses.

    One eigendecomposition serves all of them.

    Args:
      kernel: the inner products of their models.
      regressions: of other targets each.

    Returns:
      What `choose` returns, and [F] the loss without each part: of the others, by what knows none
      of it. None where no pairs are left out, or features were chosen: these know the targets.
    """
    first, targets = regressions[0], [each.targets_NY for each in regressions]
    ends = np.cumsum([each.shape[1] for each in targets])
    columns = [slice(end - each.shape[1], end) for end, each in zip(ends, targets, strict=True)]
    every = replace(first, targets_NY=np.concatenate(targets, axis=1))
    if kernel.without is not None or not first.pairs:
        outputs, outputs_PFNY = every._left_out(kernel), None
    else:
        ridge = Ridge(kernel.whole, every.targets_NY)
        outputs = every._left_out_of(ridge)
        # Every third penalty is enough, and that of the least squares; each part has its own.
        outputs_PFNY = [ridge.left_out_in_pairs(p, first.fold_N) for p in first.penalties[::3]]
    return [
        (
            each._best({penalty: found[:, own] for penalty, found in outputs.items()}),
            None
            if outputs_PFNY is None
            else each._without_parts([found[:, :, own] for found in outputs_PFNY]),
        )
        for each, own in zip(regressions, columns, strict=True)
    ]


def _differ(kernel_NN: np.ndarray) -> bool:
    """Whether models are not all the same; what is not finite is refused elsewhere."""
    return not np.isfinite(kernel_NN).all() or bool(np.trace(centred(kernel_NN)) > 0)


def threads_for(n_models: int) -> AbstractContextManager[Any]:
    """A context with the threads that eigenproblems of so many models gain by."""
    return threadpool_limits(1) if n_models <= _FEW else nullcontext()


def centred(kernel_NN: np.ndarray) -> np.ndarray:
    """The inner products of the models less their mean."""
    mean_N = kernel_NN.mean(axis=0)
    return kernel_NN - mean_N - mean_N[:, None] + mean_N.mean()


def folds(task: Task, y: np.ndarray) -> np.ndarray:
    """[N] int: the part of each model, of `FOLDS` or of as many as there are models.

    Args:
      task: of exclusive classes each part has its share of each.
      y: its targets.

    Example:
      >>> from probex_jax.fitting.task import OneClass
      >>> fold_N = folds(OneClass(), np.array([0] * 10 + [1] * 5))
      >>> [int(np.sum(fold_N[10:] == fold)) for fold in range(5)]
      [1, 1, 1, 1, 1]
    """
    order_N = np.random.default_rng(0).permutation(len(y))
    if task.exclusive:
        order_N = order_N[np.argsort(np.asarray(y)[order_N], kind="stable")]
    fold_N = np.empty(len(y), int)
    fold_N[order_N] = np.arange(len(y)) % min(FOLDS, len(y))
    return fold_N


def enough_folds(fold_N: np.ndarray) -> np.ndarray:
    """As many of the parts of `folds` as have enough models to choose by; -1 for all others.

    Each part that is left out costs as much as a fit, where features are chosen by targets.

    Example:
      >>> np.unique(enough_folds(np.arange(160) % FOLDS), return_counts=True)
      (array([-1,  0]), array([128,  32]))
    """
    counts = np.cumsum(np.bincount(fold_N))
    return np.where(fold_N <= np.searchsorted(counts, min(_ENOUGH, counts[-1])), fold_N, -1)
