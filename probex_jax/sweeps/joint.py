"""Several attributes of a tree's models, asked at once: one expert, fitted to all of them.

    attributes/<name>/predictions.safetensors    what it answers for the test models

What is read of the layers, their inner products and the factorisations of these are the same for
all attributes; penalties, weights of layers, calibration and figures are each one's own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts.card import Card
from probex_jax.experts.card_parts import Attribute
from probex_jax.experts.evaluation import Answers, calibrated_by, is_told
from probex_jax.experts.expert import Expert
from probex_jax.experts.predictions import Predictions, attribute_folder, stored_logits
from probex_jax.files import write_json
from probex_jax.fitting.number import Number
from probex_jax.fitting.ridge import Regression, enough_folds, folds
from probex_jax.integrity import sealed
from probex_jax.layer_store import LayerStore
from probex_jax.sweeps.select import figures_on_test
from probex_jax.sweeps.settings import told_task
from probex_jax.sweeps.source import Source

CLASSES = "classes"  # the attribute of labels that no column names


class Columns(Number):
    """Numbers [N, Y] at once, by whose squares features are chosen that all attributes read."""

    def targets(self, y, n_outputs):
        return np.asarray(y, np.float64)


def attribute_views(
    store: LayerStore, split: str = "", names: Sequence[str] = ()
) -> tuple[dict[str, LayerStore], dict[str, str]]:
    """Each attribute of a store with its view, and why others are left out.

    Args:
      store: its tables say what is known of its models.
      split: as `LayerStore.view` takes it.
      names: of the attributes, `CLASSES` among them; none for all.

    Returns:
      Attribute to its view, what headers or folders say of classes under `CLASSES`; and attribute
      to why it cannot be trained on: too few models know it, or all are the same.

    Raises:
      ProbexError: if no attribute is left, or one that is named cannot be trained on.

    Example:
      >>> import tempfile
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import pack, scan
      >>> folder, rows = Path(tempfile.mkdtemp()), ["model,rate,kind"]
      >>> for number in range(20):
      ...     (folder / "Mini" / ("train", "test")[number % 2]).mkdir(parents=True, exist_ok=True)
      ...     path = folder / "Mini" / ("train", "test")[number % 2] / f"m{number}.safetensors"
      ...     save_file({"fc.weight": np.full([2, 3], number, np.float32)}, path)
      ...     kind = "" if number < 5 else "ab"[number % 3 == 0]
      ...     rows.append(f"m{number},{0.1 * number:.1f},{kind}")
      >>> _ = (folder / "Mini" / "labels.csv").write_text(chr(10).join(rows))
      >>> stores, _ = attribute_views(pack(scan(folder / "Mini"), folder / "store").store)
      >>> {name: (view.is_number, len(view.models)) for name, view in stores.items()}
      {'kind': (False, 15), 'rate': (True, 20)}
    """
    found, left_out = dict[str, LayerStore](), {}
    for name in names or (CLASSES, *store.attributes):
        is_own = name == CLASSES and name not in store.attributes
        try:
            found[name] = _checked(store.view("" if is_own else name, split))
        except ProbexError as error:
            if names:
                raise
            if not is_own:
                left_out[name] = str(error)
    if not found:
        raise ProbexError(
            f"{store.path}: no attribute to train on{''.join(f'; {v}' for v in left_out.values())}"
        )
    return found, left_out


def _checked(view: LayerStore) -> LayerStore:
    """A view that can be trained on; a ProbexError if it cannot."""
    where = f"{view.path}: column {view.label_set!r}" if view.label_set else view.path
    if not (view.classes or view.is_number):
        raise ProbexError(f"{where}: there are no classes")
    if not (view.has("train") and view.has("test")):
        raise ProbexError(f"{where}: no training or no test model has a value")
    if told_task(view).exclusive:
        counts = Counter(model.labels[0] for model in view.split("train"))
        if sum(count > 1 for count in counts.values()) < 2:
            raise ProbexError(f"{where}: fewer than two classes have two training models")
    return view


def joint_store(stores: Mapping[str, LayerStore]) -> LayerStore:
    """All models of some views of one store."""
    first = next(iter(stores.values()))
    columns = [(view.label_set, view.is_number) for view in stores.values()]
    return first.view_of_any(columns, first.split_set)


def joint_card(card: Card, sources: Mapping[str, Source]) -> Card:
    """The card of a joint expert before it is trained."""
    attributes = tuple(
        Attribute(name, source.store.classes, source.task, n_train=_n_fitted(source.store))
        for name, source in sources.items()
    )
    hashes = [source.store.hash for source in sources.values()]
    return replace(
        card,
        classes=tuple(name for each in attributes for name in each.classes),
        attributes=attributes,
        store_hash=hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
        more={"label_set": ", ".join(sources)},
    )


def places(store: LayerStore, models: LayerStore, splits: Sequence[str]) -> np.ndarray:
    """[M] int: where the models of a view's splits stand among those of the whole store's."""
    place = {m.id: n for n, m in enumerate(m for split in splits for m in store.split(split))}
    return np.array([place[m.id] for s in splits if models.has(s) for m in models.split(s)])


def regressions(
    whole: LayerStore,
    asked: Sequence[Source],
    splits: Sequence[str],
    penalties: Sequence[float],
    reduced: bool,
) -> list[Regression]:
    """What is regressed, and by which models it is chosen.

    Args:
      whole: the store, with all models of the kernels.
      asked: of each attribute, its view and task; or the one source of an expert of its own.
      splits: those whose models are fitted to.
      penalties: those tried.
      reduced: whether features of layers are chosen by targets, of which all attributes read one
        set: then all have the same parts of models.
    """
    if len(asked) == 1 and asked[0].store is whole:
        y = np.concatenate([asked[0].targets(split).y for split in splits])
        fold_N = folds(asked[0].task, y)
        return [_regression(asked[0], y, penalties, enough_folds(fold_N) if reduced else fold_N)]
    shared_N = folds(Columns(), np.zeros(sum(len(whole.split(split)) for split in splits)))
    shared_N = enough_folds(shared_N) if reduced else shared_N
    found = []
    for each in asked:
        place_N = places(whole, each.store, splits)
        y = np.concatenate([each.targets(split).y for split in splits if each.store.has(split)])
        fold_N = shared_N[place_N] if reduced else folds(Columns(), np.zeros(len(y)))
        models = None if len(y) == len(shared_N) else place_N
        found.append(_regression(each, y, penalties, fold_N, models))
    return found


def _regression(
    asked: Source,
    y: np.ndarray,
    penalties: Sequence[float],
    fold_N: np.ndarray,
    models: np.ndarray | None = None,
) -> Regression:
    targets_NY = asked.task.regressed(y, len(asked.store.classes))
    return Regression(asked.task, y, targets_NY, penalties, fold_N, models=models)


def of_features(regressions: Sequence[Regression], n_models: int) -> Regression:
    """The regression by which features are chosen: of one its own, of several of all targets.

    Each attribute counts as much as another one; where a model has none, it says nothing.
    """
    if len(regressions) == 1 and regressions[0].models is None:
        return regressions[0]
    columns, fold_N = [], np.full(n_models, -1)
    for each in regressions:
        own = slice(None) if each.models is None else each.models
        targets_NY = each.targets_NY - each.targets_NY.mean(axis=0)
        size = np.sqrt(np.mean(np.sum(targets_NY**2, axis=1)))
        whole_NY = np.zeros([n_models, targets_NY.shape[1]])
        whole_NY[own] = targets_NY / max(size, 1e-12)
        columns.append(whole_NY)
        fold_N[own] = each.fold_N
    targets_NY = np.concatenate(columns, axis=1)
    return Regression(Columns(), targets_NY, targets_NY, regressions[0].penalties, fold_N)


def finish(
    source: Source,
    workdir: Path,
    expert: Expert,
    asked: Mapping[str, Source],
    chosen: Sequence[tuple[Answers, Mapping[str, Any], Mapping[str, Any]]],
    left_out: Mapping[str, str],
) -> None:
    """Tests a joint expert, once, calibrates each attribute, and writes all that there is to say.

    Args:
      source: of the models of all attributes.
      workdir: where the result goes.
      expert: the joint one.
      asked: attribute to its view and task.
      chosen: of each what it answered for the models that chose, and figures of that and of layers.
      left_out: layer to why it does not answer.
    """
    by, whole = str(expert.card.selected_on), source.store
    logits_NY = stored_logits(expert, whole, "test")
    attributes, metrics = [], {}
    for (name, each), (answered, *figures) in zip(asked.items(), chosen, strict=True):
        own, test_N = expert.card.outputs(name), places(whole, each.store, ("test",))
        found = {by: answered, "test": Answers(logits_NY[test_N, own], each.targets("test").y)}
        part = calibrated_by(expert.part(name), found, by)
        told = is_told(each.task, answered, each.targets("train").y)
        folder = attribute_folder(workdir, name)
        folder.mkdir(parents=True, exist_ok=True)
        given = each.store, part.card.classes, each.task, found["test"]
        Predictions.of(*given).believed(part.card).write(folder)
        known = {**figures[0], **figures_on_test(part, each.store, found["test"]), **figures[1]}
        card = replace(part.card, told=told, metrics=known)
        attributes.append(Attribute.of(name, card))
        said = {key: value for key, value in attributes[-1].to_json().items() if key != "metrics"}
        metrics[name] = {**said, **known, "n_models": _counts(each.store)}
    first = expert.card.members[0]
    expert = expert.with_card(attributes=tuple(attributes), n_train=_n_fitted(whole))
    expert.save(workdir / "expert")
    about = {
        "tree": expert.card.tree,
        "encoder": first.encoder,
        "head": expert.card.head,
        "selected_on": by,
        "normalise": first.normalise,
        "recipe": first.recipe,
        "store_hash": expert.card.store_hash,
        "versions": expert.card.versions,
        "layers": {"expert": list(expert.layers)},
        "n_models": _counts(whole),
        "left_out": dict(left_out),
        "attributes": metrics,
    }
    write_json(workdir / "metrics.json", sealed(about))


def _n_fitted(store: LayerStore) -> int:
    return sum(model.split in ("train", "val") for model in store.models)


def _counts(store: LayerStore) -> dict[str, int]:
    return dict(sorted(Counter(model.split for model in store.models).items()))
