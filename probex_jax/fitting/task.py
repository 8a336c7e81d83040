"""What is asked of a model: how its answer is trained, scored, calibrated and named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from probex_jax.errors import ProbexError
from probex_jax.fitting.calibration import best_factor, best_temperature
from probex_jax.fitting.conformal import Conformal, conformal
from probex_jax.fitting.metrics import Score, auc_score, share


@dataclass(frozen=True)
class Task(ABC):
    """What is asked of a model.

    `loss`, `correct` and `predictions` are functions of arrays that run under `jit`; what follows
    training is computed in NumPy, in float64. Subclass it to ask something else, or override
    `loss` to train for something else: scores and calibration stay those of the task. Settings of
    a subclass are fields of a frozen dataclass, since equal tasks share a compiled program.

    Example:
      >>> import jax.numpy as jnp
      >>> class Hinge(SeveralClasses):
      ...     def loss(self, logits, y):
      ...         return jnp.maximum(0.0, 1.0 - (2.0 * y - 1.0) * logits).mean(axis=1)
      >>> Hinge().loss(jnp.array([[2.0, 0.5]]), jnp.array([[1.0, 1.0]])).tolist()
      [0.25]
    """

    name: ClassVar[str]  # on cards and in configs
    head: ClassVar[str] = "class"  # that a network has for it
    logit_scale: ClassVar[float] = 1.0  # of a text head's cosines
    exclusive: ClassVar[bool] = False  # whether exactly one of the candidates is right
    predicts: ClassVar[str] = "classes"  # what predictions are of
    promised: ClassVar[str]  # what the probabilities of `promises` are of

    @abstractmethod
    def n_outputs(self, y: Any) -> int:
        """How many logits a model has, told from the targets of the training models."""

    @abstractmethod
    def check(self, where: str, y: Any, n_models: int, n_outputs: int) -> None:
        """Raises a ProbexError, which names `where`, unless y are targets of so many models."""

    def fitted(self, y: Any) -> Task:
        """The task with what it has to know of the training targets."""
        return self

    def encoded(self, y: Any) -> Any:
        """The targets as `loss` and `correct` take them."""
        return y

    @abstractmethod
    def loss(self, logits: jax.Array, y: jax.Array) -> jax.Array:
        """[N]: the loss of each model, of logits [N, Y] and encoded targets."""

    @abstractmethod
    def correct(self, logits: Any, y: Any) -> Any:
        """[N]: of each model, how much of its answer is right; 1 if all is."""

    @abstractmethod
    def predictions(self, logits: jax.Array, temperature: float = 1.0) -> jax.Array:
        """What is answered: [N, Y] calibrated probabilities, unless the task says otherwise."""

    def predicted(self, logits: Any, temperature: float = 1.0) -> np.ndarray:
        """`predictions` in NumPy, in float64, for which nothing is compiled."""
        return np.asarray(self.predictions(jnp.asarray(logits), temperature), np.float64)

    @abstractmethod
    def targets(self, y: Any, n_outputs: int) -> np.ndarray:
        """[N, Y] float64: what ideal predictions would be."""

    def regressed(self, y: Any, n_outputs: int) -> np.ndarray:
        """[N, Y] float64: what a regression is fitted to."""
        return self.targets(y, n_outputs)

    @abstractmethod
    def chance(self, known: Any, asked: Any) -> float:
        """The accuracy for targets `asked` of always answering what is commonest in `known`."""

    def chance_by_class(self, known: Any, asked: Any) -> np.ndarray:
        """[Y]: of each class, the figure of `accuracy_by_class` that needs no weights; else [0]."""
        return np.zeros(0)

    def score(self, logits: Any, y: Any) -> Score:
        """The accuracy of logits [N, Y], with its interval over the models.

        Raises:
          ProbexError: if logits and targets do not belong together, or logits are NaN.
        """
        logits_NY = np.asarray(logits)
        if logits_NY.ndim != 2 or 0 in logits_NY.shape or np.isnan(logits_NY).any():
            raise ProbexError(
                f"logits of shape {logits_NY.shape}: expected [N, Y], neither 0, none of them NaN"
            )
        self.check("targets", y, *logits_NY.shape)
        return share(self.accuracies(logits_NY, y))

    def accuracy_by_class(self, logits: Any, y: Any) -> dict[int, float]:
        """The accuracy of each class that the targets are of, by its place."""
        return {0: float(self.accuracies(logits, y).mean())}

    def evidence(self, logits: Any) -> np.ndarray:
        """[N, Y] float64: what ranks the models for each class; [N, 0] where there are none."""
        return np.zeros([len(logits), 0])

    def auc(self, logits: Any, y: Any) -> Score | None:
        """The macro AUC, with its interval over the models; None where no class can be told."""
        return auc_score(self.evidence(logits), y)

    def accuracies(self, logits: Any, y: Any) -> np.ndarray:
        """[N] float64: `correct` of targets as they are given."""
        return np.asarray(self.correct(np.asarray(logits), np.asarray(self.encoded(y))), np.float64)

    @abstractmethod
    def mean_loss(self, logits: np.ndarray, y: Any) -> float:
        """The task's own loss in float64, mean over the models, whatever `loss` trains for."""

    @abstractmethod
    def best_factor(self, outputs: Any, y: Any, near: float | None = None) -> tuple[float, float]:
        """What, maybe `near` another, makes outputs [N, Y] the best logits, and their mean loss."""

    @abstractmethod
    def best_temperature(self, logits: Any, y: Any) -> float:
        """The temperature T that makes the best `predictions(logits, T)`."""

    @abstractmethod
    def prior(self, y: Any, n_outputs: int) -> np.ndarray:
        """[Y] float64: the logits that say of every model what is usual among targets y."""

    def conformal(self, logits: Any, y: Any, temperature: float = 1.0) -> Conformal | None:
        """How far answers may be off, from models not fitted to; None if they are too few."""
        return None

    def region(self, logits: Any, temperature: float, by: Conformal) -> np.ndarray:
        """What conformal prediction leaves possible: of classes [N, Y, 2] bool, whether no and yes.

        Of one class of several yes alone counts. Of a number [N, 2], its lowest and highest value.
        """
        raise NotImplementedError

    def covered(self, region: np.ndarray, y: Any) -> np.ndarray:
        """[N] float64: of each model, how much of the truth is in its `region`."""
        raise NotImplementedError

    @abstractmethod
    def promises(self, predictions: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities that were stated, and whether what they are of is so; [M] float64 each."""


class ClassTask(Task):
    """A task whose predictions are probabilities of classes.

    Example:
      >>> round(OneClass().mean_loss(np.zeros([3, 8]), np.array([0, 1, 7])), 4)
      2.0794
      >>> outputs, y = np.array([[0.1], [-0.1], [0.1], [0.1]]), np.array([[1], [0], [1], [0]])
      >>> 10 < SeveralClasses().best_factor(outputs, y)[0] < 12
      True
      >>> logits = np.tile([[30.0], [-30.0]], [50, 1])
      >>> T = SeveralClasses().best_temperature(logits, logits > 0)
      >>> round(float(SeveralClasses().predictions(logits, T)[0, 0]), 3) == round(51 / 52, 3)
      True
    """

    @abstractmethod
    def cross_entropy(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Mean negative log-likelihood of targets [N, Y], those of `targets` or `smoothed`."""

    @abstractmethod
    def smoothed(self, logits: np.ndarray, y: Any) -> np.ndarray:
        """[N, Y]: `targets`, short of certainty by what their number cannot tell.

        Of n entries that are all right nobody can tell whether the next one will be: they count as
        right at (n + 1) / (n + 2), as in Platt scaling. Of candidates the likeliest other one gets
        the rest. Otherwise models told apart without a mistake would ask for a temperature of 0.
        """

    def evidence(self, logits):
        return np.asarray(logits, np.float64)

    def region(self, logits, temperature, by):
        p_NY = self.predicted(logits, temperature)
        scores_NY2 = np.stack([p_NY, 1 - p_NY], axis=2)
        return scores_NY2 <= by.scores(p_NY.shape[1])[None, :, None]

    def mean_loss(self, logits, y):
        targets_NY = self.targets(y, np.shape(logits)[1])
        return self.cross_entropy(np.asarray(logits, np.float64), targets_NY)

    def best_factor(self, outputs, y, near=None):
        outputs_NY = np.asarray(outputs, np.float64)
        targets_NY = self.targets(y, outputs_NY.shape[1])
        return best_factor(lambda f: self.cross_entropy(f * outputs_NY, targets_NY), near)

    def best_temperature(self, logits, y):
        logits_NY = np.asarray(logits, np.float64)
        targets_NY = self.smoothed(logits_NY, y)
        return best_temperature(lambda T: self.cross_entropy(logits_NY / T, targets_NY))


class SeveralClasses(ClassTask):
    """Which of Y classes the model was trained on: any number of them, each answered for itself.

    Targets are [N, Y] of zeros and ones; the loss is a binary cross-entropy per class.

    Example:
      >>> print(SeveralClasses().score([[2.0, -1.0], [3.0, 1.0]], np.array([[1, 0], [1, 0]])))
      0.750 [0.500, 1.000]
    """

    name = "several_classes"
    promised = "probability that a model is of a class"

    def n_outputs(self, y):
        return int(np.shape(y)[-1]) if np.ndim(y) == 2 else 0

    def check(self, where, y, n_models, n_outputs):
        y = np.asarray(y)
        if y.shape != (n_models, n_outputs) or not n_outputs:
            expected = f"({n_models}, {n_outputs or 'Y'}), models by classes"
            raise ProbexError(f"{where} has shape {y.shape}, expected {expected}")
        if y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
            raise ProbexError(f"{where} of shape {y.shape} ({y.dtype}) is not of 0 and 1 alone")

    def loss(self, logits, y):
        return optax.sigmoid_binary_cross_entropy(logits, y).mean(axis=1)

    def correct(self, logits, y):
        return ((logits > 0) == (y > 0.5)).mean(axis=1)

    def accuracy_by_class(self, logits, y):
        correct_NY = (np.asarray(logits) > 0) == (np.asarray(y) > 0.5)
        return dict(enumerate(map(float, correct_NY.mean(axis=0))))

    def predictions(self, logits, temperature=1.0):
        return jax.nn.sigmoid(logits / temperature)

    def predicted(self, logits, temperature=1.0):
        return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64) / temperature))

    def targets(self, y, n_outputs):
        return np.asarray(y, np.float64)

    def regressed(self, y, n_outputs):
        return 2 * self.targets(y, n_outputs) - 1

    def chance(self, known, asked):
        return float(self.chance_by_class(known, asked).mean())

    def chance_by_class(self, known, asked):
        """As `Task`: "yes" is the answer where more than half of the others are of the class."""
        usual_Y = np.asarray(known).mean(axis=0) > 0.5
        return np.mean((np.asarray(asked) > 0.5) == usual_Y, axis=0)

    def cross_entropy(self, logits, targets):
        return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))

    def smoothed(self, logits, y):
        n_positive = np.count_nonzero(y)
        positive, negative = (n_positive + 1) / (n_positive + 2), 1 / (np.size(y) - n_positive + 2)
        return np.where(np.asarray(y) > 0.5, positive, negative)

    def prior(self, y, n_outputs):
        share_Y = (np.sum(y, axis=0) + 1) / (len(y) + 2)
        return np.log(share_Y / (1 - share_Y))

    def conformal(self, logits, y, temperature=1.0):
        p_NY, is_NY = self.predicted(logits, temperature), np.asarray(y) > 0.5
        scores_NY = np.where(is_NY, 1 - p_NY, p_NY)
        place_NY = np.broadcast_to(np.arange(p_NY.shape[1]), p_NY.shape)
        return conformal(scores_NY.ravel(), place_NY.ravel())

    def covered(self, region, y):
        is_NY1 = (np.asarray(y) > 0.5).astype(int)[..., None]
        return np.take_along_axis(region, is_NY1, axis=2).mean(axis=(1, 2))

    def promises(self, predictions, y):
        return predictions.ravel(), np.asarray(y, np.float64).ravel()


@dataclass(frozen=True)
class OneClass(ClassTask):
    """Which one of Y classes the model was trained on.

    Targets are [N] int, places among the classes; the loss is a softmax cross-entropy.

    Args:
      n_classes: Y; None for as many as the training targets name.

    Example:
      >>> OneClass().score([[2.0, -1.0], [3.0, 1.0]], np.array([0, 1])).value
      0.5
    """

    name = "one_class"
    promised = "probability of the most probable class"
    exclusive = True
    n_classes: int | None = None

    def n_outputs(self, y):
        y = np.asarray(y)  # of another type: `check` says so
        named = int(y.max(initial=-1)) + 1 if y.dtype.kind in "iu" else 1
        return self.n_classes or max(named, 1)

    def check(self, where, y, n_models, n_outputs):
        y = np.asarray(y)
        if y.shape != (n_models,) or not np.issubdtype(y.dtype, np.integer):
            raise ProbexError(
                f"{where} has shape {y.shape} of {y.dtype}, expected whole numbers of {n_models} "
                "models"
            )
        if y.min() < 0 or y.max() >= n_outputs:
            raise ProbexError(
                f"{where} of shape {y.shape} goes from {y.min()} to {y.max()}, expected places "
                f"among the {n_outputs} {self.predicts}, 0 to {n_outputs - 1}"
            )

    def loss(self, logits, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    def correct(self, logits, y):
        return (logits.argmax(axis=1) == y).astype(np.float32)

    def accuracy_by_class(self, logits, y):
        correct_N = self.accuracies(logits, y)
        return {int(each): float(correct_N[y == each].mean()) for each in np.unique(y)}

    def predictions(self, logits, temperature=1.0):
        return jax.nn.softmax(logits / temperature, axis=1)

    def predicted(self, logits, temperature=1.0):
        return np.exp(self.evidence(np.asarray(logits, np.float64) / temperature))

    def targets(self, y, n_outputs):
        return np.eye(n_outputs)[np.asarray(y)]

    def chance(self, known, asked):
        """As `Task.chance`; of several classes that are as common, the mean of theirs.

        Example:
          >>> OneClass().chance(np.array([0, 1, 1]), np.array([0, 0, 1, 2]))
          0.25
          >>> OneClass().chance(np.array([0, 1]), np.array([0, 0, 1, 2]))
          0.375
        """
        counts = np.bincount(known)
        commonest = np.flatnonzero(counts == counts.max())
        return float(np.isin(asked, commonest).mean() / len(commonest))

    def chance_by_class(self, known, asked):
        """As `Task`: guessing a class as often as it is known finds that share of its models."""
        n_outputs = self.n_outputs(np.concatenate([known, asked]))
        return np.bincount(known, minlength=n_outputs) / len(known)

    def evidence(self, logits):
        """As `ClassTask`: log-probabilities, since logits tell classes from each other alone."""
        exact_NY = np.asarray(logits, np.float64)
        return exact_NY - np.logaddexp.reduce(exact_NY, axis=1, keepdims=True)

    def cross_entropy(self, logits, targets):
        most_N1 = logits.max(axis=1, keepdims=True)  # a third of the time of `logaddexp.reduce`
        sums_N = np.log(np.exp(logits - most_N1).sum(axis=1)) + most_N1[:, 0]
        return float(np.mean(sums_N - np.einsum("ny,ny->n", targets, logits)))

    def smoothed(self, logits, y):
        targets_NY, place_N1 = np.zeros(logits.shape), np.asarray(y)[:, None]
        if logits.shape[1] > 1:
            # The doubt is whether it is the likeliest of the others: far ones do not count.
            others_NY = logits.copy()
            np.put_along_axis(others_NY, place_N1, -np.inf, axis=1)
            likeliest_N1 = others_NY.argmax(axis=1, keepdims=True)
            np.put_along_axis(targets_NY, likeliest_N1, 1 / (len(logits) + 2), axis=1)
        np.put_along_axis(targets_NY, place_N1, 1 - targets_NY.sum(axis=1, keepdims=True), axis=1)
        return targets_NY

    def prior(self, y, n_outputs):
        counts_Y = np.bincount(y, minlength=n_outputs) + 1
        return np.log(counts_Y / counts_Y.sum())

    def conformal(self, logits, y, temperature=1.0):
        p_NY, y = self.predicted(logits, temperature), np.asarray(y)
        return conformal(1 - p_NY[np.arange(len(y)), y], y)

    def covered(self, region, y):
        y = np.asarray(y)
        return region[np.arange(len(y)), y, 1].astype(np.float64)

    def promises(self, predictions, y):
        held_N = np.argmax(predictions, axis=1) == np.asarray(y)
        return predictions.max(axis=1), held_N.astype(np.float64)
