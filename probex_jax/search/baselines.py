"""What a sceptic would run: scikit-learn's methods on all tensors, beside the expert.

The baselines see the same models, classes and splits as the expert. Their settings are those of the
lowest cross-validated log loss in `train` and `val`; fitted to both, each is asked once about the
queried split. Of what they are given only the centre and the spread of each tensor, which know no
label, are of all known models while some are left out.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from probex_jax.errors import ProbexError
from probex_jax.experts import versions
from probex_jax.experts.chance import chance, targets
from probex_jax.experts.evaluation import answers
from probex_jax.files import one_writer, read_json, write_json
from probex_jax.fitting import OneClass, Score, SeveralClasses
from probex_jax.fitting.random_forest import forest_probabilities
from probex_jax.fitting.ridge import FOLDS, folds
from probex_jax.fitting.task import ClassTask
from probex_jax.layer_store import LayerStore
from probex_jax.search.downstream import Subject, kept_baselines
from probex_jax.search.tensors import Tensors, read_tensors

_KNOWN = ("train", "val")
_NEVER = 1e-6  # the least probability of a class that no known model is of

_N_TREES = 200

Setting = Mapping[str, float]


@dataclass(frozen=True)
class Compared:
    """A method's figures on the queried models.

    Args:
      method: its name.
      accuracy: top-1 where one class is right, else the share of (model, class) entries.
      auc: macro AUC; None where no class can be told from the rest.
      log_loss: the task's, mean over the models.
      setting: what cross-validation chose, in words; of the expert, what it reads.
      seconds: of choosing and fitting, without reading the tensors; None of the expert.
    """

    method: str
    accuracy: Score
    auc: Score | None
    log_loss: float
    setting: str
    seconds: float | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Compared":
        """From what `dataclasses.asdict` made of one."""
        scores = {name: value[name] and Score(**value[name]) for name in ("accuracy", "auc")}
        return cls(**{**value, **scores})


class Baselines(NamedTuple):
    """What `compare` found.

    Args:
      ours: the expert.
      others: the baselines.
      left_out: baseline to the reason why it was not run.
      reading_s: seconds of reading all tensors and of their inner products.
    """

    ours: Compared
    others: tuple[Compared, ...]
    left_out: Mapping[str, str]
    reading_s: float


@dataclass(frozen=True)
class _Models:
    """Known models, then those asked about, and all that is read of them."""

    task: ClassTask
    store: LayerStore
    classes: tuple[str, ...]
    split: str

    @cached_property
    def known(self) -> tuple[str, ...]:
        found = tuple(s for s in _KNOWN if s != self.split and self.store.has(s))
        if sum(len(self.store.split(split)) for split in found) < FOLDS:
            raise ProbexError(f"{self.store.path}: baselines need {FOLDS} models of train and val")
        return found

    @cached_property
    def y(self) -> np.ndarray:
        return np.concatenate([self.targets_of(split) for split in self.known])

    def targets_of(self, split: str) -> np.ndarray:
        return targets(self.task, self.store, split, self.classes)

    @cached_property
    def targets_NY(self) -> np.ndarray:
        return self.task.targets(self.y, len(self.classes))

    @cached_property
    def tensors(self) -> Tensors:
        return read_tensors(self.store, self.known, self.split)

    @cached_property
    def matrices_MR(self) -> np.ndarray:
        return self.tensors.matrices.coordinates()

    @cached_property
    def everything_MR(self) -> np.ndarray:
        return self.tensors.everything.coordinates()

    @cached_property
    def cosines_MM(self) -> np.ndarray:
        return self.tensors.everything.cosines()


def _commonest(models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting) -> Any:
    prior_Y = models.targets_NY[known].mean(axis=0)
    return np.tile(_logits(models, prior_Y), (len(asked), 1))


def _ridge(models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting) -> Any:
    return _ridge_on(models.everything_MR, models, known, asked, setting)


def _ridge_of_matrices(
    models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting
) -> Any:
    return _ridge_on(models.matrices_MR, models, known, asked, setting)


def _ridge_on(
    x_MR: np.ndarray, models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting
) -> np.ndarray:
    from sklearn.linear_model import Ridge

    t_NY = models.task.regressed(models.y, len(models.classes))
    # The penalty of N models whose mean square norm is 1: in units of the mean of K's diagonal.
    fitted = Ridge(setting["penalty"], solver="cholesky").fit(x_MR[known], t_NY[known])
    return fitted.predict(x_MR[asked]).reshape(len(asked), -1)


def _logistic(models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting) -> Any:
    from sklearn.linear_model import LogisticRegression

    x_MR, logits_QY = models.everything_MR, _commonest(models, known, asked, setting)
    solver = "lbfgs" if models.task.exclusive else "newton-cholesky"
    fitted = LogisticRegression(C=setting["C"], solver=solver, max_iter=1000)
    if models.task.exclusive:
        if np.ptp(models.y[known]):
            fitted.fit(x_MR[known], models.y[known])
            logits_QY[:, fitted.classes_] = fitted.predict_log_proba(x_MR[asked])
        return logits_QY
    for column, t_N in enumerate(models.targets_NY[known].T):
        if np.ptp(t_N):
            fitted.fit(x_MR[known], t_N)
            logits_QY[:, column] = fitted.decision_function(x_MR[asked])
    return logits_QY


def _svm(models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting) -> Any:
    from sklearn.svm import SVC

    # Between models of unit length.
    kernel_MM = np.exp(-2 * setting["gamma"] * (1 - models.cosines_MM))
    outputs_QY = np.zeros([len(asked), len(models.classes)])
    for column, t_N in enumerate(models.targets_NY[known].T):
        outputs_QY[:, column] = 2 * t_N.mean() - 1
        if np.ptp(t_N):
            fitted = SVC(kernel="precomputed", C=setting["C"])
            fitted.fit(kernel_MM[np.ix_(known, known)], t_N)
            outputs_QY[:, column] = fitted.decision_function(kernel_MM[np.ix_(asked, known)])
    return outputs_QY


def _neighbours(models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting) -> Any:
    k = min(int(setting["k"]), len(known))
    order_QN = np.argsort(-models.cosines_MM[np.ix_(asked, known)], axis=1, kind="stable")
    shares_QY = models.targets_NY[known][order_QN[:, :k]].mean(axis=1)
    return _logits(models, _smoothed(models, known, shares_QY, k))


def _forest(models: _Models, known: np.ndarray, asked: np.ndarray, setting: Setting) -> Any:
    x_MF, t_NY = models.tensors.statistics, models.targets_NY[known].astype(int)
    assert x_MF is not None
    leaf = int(setting["min_samples_leaf"])
    p_QY = forest_probabilities(
        x_MF[known], t_NY, x_MF[asked], n_trees=_N_TREES, min_samples_leaf=leaf
    )
    return _logits(models, _smoothed(models, known, p_QY, len(known)))


def _smoothed(models: _Models, known: np.ndarray, p_QY: np.ndarray, count: int) -> np.ndarray:
    """With one more observation, of how common classes are: no probability is 0."""
    return (count * p_QY + models.targets_NY[known].mean(axis=0)) / (count + 1)


def _logits(models: _Models, p: np.ndarray) -> np.ndarray:
    p = np.clip(p, _NEVER, 1 - _NEVER)
    return np.log(p) if models.task.exclusive else np.log(p) - np.log1p(-p)


class _Method(NamedTuple):
    answer: Callable[[_Models, np.ndarray, np.ndarray, Setting], Any]
    settings: Sequence[Setting] = ({},)


def _each(name: str, *values: float) -> list[Setting]:
    return [{name: value} for value in values]


_PENALTIES = _each("penalty", *10.0 ** np.arange(-5, 1.5, 0.5))
METHODS: Mapping[str, _Method] = {
    "commonest class": _Method(_commonest),
    "ridge, matrices": _Method(_ridge_of_matrices, _PENALTIES),
    "ridge, everything": _Method(_ridge, _PENALTIES),
    "logistic regression, everything": _Method(_logistic, _each("C", 1.0, 10.0, 100.0, 1e3, 1e4)),
    "RBF SVM, unit length": _Method(
        _svm,
        [{"C": C, "gamma": gamma} for C in (1.0, 10.0, 100.0) for gamma in (0.01, 0.1, 1.0)],
    ),
    "kNN, cosine": _Method(_neighbours, _each("k", 1, 3, 5, 9, 15, 25)),
    "forest on statistics": _Method(_forest, _each("min_samples_leaf", 1, 3)),
}


def compare(
    subject: Subject,
    workdir: Path,
    *,
    methods: Sequence[str] = tuple(METHODS),
    on_method: Callable[[str], None] = lambda name: None,
) -> Baselines:
    """The expert beside the baselines; each is kept in `metrics.json` as soon as it is measured.

    Args:
      subject: expert and models.
      workdir: created if missing. Baselines that its `metrics.json` has of the same models are not
        run again.
      methods: some of `METHODS`.
      on_method: called with the name of each baseline that is done.

    Returns:
      The expert, and the baselines in the order of `METHODS`.

    Raises:
      ProbexError: if scikit-learn is missing (extra `search`), there is no such method, the expert
        does not tell classes or does not fit the store, there are too few known models, or the
        folder is being written.
    """
    _check_sklearn()
    for name in methods:
        if name not in METHODS:
            raise ProbexError(f"methods: {name!r} is not one of {', '.join(METHODS)}")
    card, store = subject.experts["val"].card, subject.store
    if not isinstance(card.task, ClassTask):
        raise ProbexError(f"{store.path}: baselines tell classes, the expert a {card.task.name}")
    one = card.task.exclusive or all(len(model.labels) == 1 for model in store.models)
    task = OneClass(len(card.classes)) if one else SeveralClasses()
    models = _Models(task, store, card.classes, subject.split)
    found = answers(subject.experts["val"], store, (subject.split,), subject.encoder)
    logits_QY = found[subject.split].logits / card.temperature
    ours = _compared("ours", models, logits_QY, subject.experts["val"].reading)
    with one_writer(workdir):
        return Baselines(ours, *_others(models, methods, workdir / "metrics.json", on_method))


def _others(
    models: _Models, methods: Sequence[str], path: Path, on_method: Callable[[str], None]
) -> tuple[tuple[Compared, ...], Mapping[str, str], float]:
    """The baselines, those left out, and the seconds of reading."""
    of = {
        "store_hash": models.store.hash,
        "split": models.split,
        "known": list(models.known),
        "task": models.task.name,
        "classes": list(models.classes),
    }
    found, reading_s = _kept(path, of)
    left_out = _left_out(models.store)
    metrics = read_json(path) if path.exists() else {}
    for name in methods:
        if name in left_out:
            continue
        if name not in found:
            if "tensors" not in vars(models):
                start = time.monotonic()
                _ = models.tensors
                reading_s = time.monotonic() - start
            with threadpool_limits(1):  # many small products, for which threads only wait
                found[name] = _measured(name, models)
            measured = {method: asdict(figures) for method, figures in found.items()}
            about = {"versions": versions(), "reading_s": reading_s, "left_out": left_out}
            write_json(path, metrics | {"baselines": of | about | {"methods": measured}})
        on_method(name)
    return tuple(found[name] for name in METHODS if name in found), left_out, reading_s


def _left_out(store: LayerStore) -> dict[str, str]:
    """Baseline to the reason why it says nothing of a store."""
    found = {}
    if not any(1 in shape for shape in store.layers.values()):
        found["ridge, matrices"] = "the store holds nothing else"
    if store.ranks:
        found["forest on statistics"] = "factors do not tell the quantiles of their product"
    return found


def _kept(path: Path, of: Mapping[str, Any]) -> tuple[dict[str, Compared], float]:
    """The baselines that were measured of the same, and the seconds of reading."""
    kept = kept_baselines(path)
    if {name: kept.get(name) for name in of} != of:
        return {}, 0.0
    try:
        found = {name: Compared.from_json(figures) for name, figures in kept["methods"].items()}
        return found, float(kept["reading_s"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbexError(f"{path}: damaged ({error}); remove it to measure anew") from error


def _measured(name: str, models: _Models) -> Compared:
    """Chooses, fits to all known models, and asks once."""
    start, n_known, method = time.monotonic(), len(models.y), METHODS[name]
    fold_N = folds(models.task, models.y)

    def left_out(setting: Setting) -> np.ndarray:
        outputs_NY = np.empty([n_known, len(models.classes)])
        for fold in np.unique(fold_N):
            rest, out = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
            outputs_NY[out] = method.answer(models, rest, out, setting)
        return outputs_NY

    tried = [(*models.task.best_factor(left_out(s), models.y), s) for s in method.settings]
    factor, _, setting = min(tried, key=lambda found: found[1])
    asked = np.arange(n_known, n_known + len(models.store.split(models.split)))
    logits_QY = factor * method.answer(models, np.arange(n_known), asked, setting)
    chosen = ", ".join(f"{field} {value:g}" for field, value in setting.items())
    return _compared(name, models, logits_QY, chosen, time.monotonic() - start)


def _compared(
    name: str, models: _Models, logits_QY: np.ndarray, setting: str, seconds: float | None = None
) -> Compared:
    task, y = models.task, models.targets_of(models.split)
    score = task.score(logits_QY, y)
    beside = chance(task, models.store, models.split, models.classes)
    return Compared(
        name,
        Score(**asdict(score) | {"chance": beside}),
        task.auc(logits_QY, y),
        task.mean_loss(logits_QY, y),
        setting,
        seconds,
    )


def _check_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ProbexError("baselines need scikit-learn: pip install scikit-learn") from None
