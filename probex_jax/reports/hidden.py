"""Models whose labels were hidden: what the weights gave away, beside the truth."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from probex_jax.forest import Description, Prediction


@dataclass(frozen=True)
class HiddenModel:
    """One model that was described without its labels.

    Args:
      description: what was said of it.
      tree: its true tree, "" if no tree of the forest.
      labels: what it was trained on.
    """

    description: Description
    tree: str
    labels: tuple[str, ...]


def hidden_models(models: Sequence[HiddenModel]) -> str:
    """What was said of each model, how surely, and where that is wrong.

    Args:
      models: descriptions, each with the truth.

    Returns:
      Lines of text, some for each model.

    Example:
      >>> from probex_jax.forest import Prediction, Route
      >>> from probex_jax.forest.description import ExpertFacts
      >>> from probex_jax.forest.stated import Stated
      >>> said = Stated((), "", "", "", "", "", is_lora=False, parameters=9, dtype="F32", layers=1)
      >>> expert = ExpertFacts("", (), "", 9, None, {}, "several")
      >>> found = [Prediction(name, name, p) for name, p in
      ...          (("one", 0.98), ("two", 0.61), ("six", 0.2))]
      >>> m7 = Description("m7", "", said, Route("MiniMAE"), "", tuple(found), expert)
      >>> print(hidden_models([HiddenModel(m7, "MiniMAE", ("one", "six"))]))
      m7: tree MiniMAE, right; 1 of 3 classes right
        predicted  one .98, two .61 (wrong)
        missed     six .20
    """
    return "\n".join(line for model in models for line in _lines(model))


def _lines(model: HiddenModel) -> Iterator[str]:
    said = model.description
    verdict = "right" if said.tree == model.tree else f"wrong, it is {model.tree or 'unknown'}"
    found = said.compared_with(model.labels)
    if not said.tree:
        yield f"{said.id}: tree unknown, {verdict}: {said.route.reason}"
    elif found is None:
        yield f"{said.id}: tree {said.tree}, {verdict}"
    elif said.expert is not None and said.expert.chosen == "one":
        of_class = "wrong" if found.missed or found.unknown else "right"
        yield f"{said.id}: tree {said.tree}, {verdict}; its class {of_class}"
        yield _wrapped("predicted", map(_shown, said.predictions[:3]))
        yield _wrapped("truth", model.labels)
    else:
        classes = f"{found.n_right} of {found.n_classes} classes right"
        yield f"{said.id}: tree {said.tree}, {verdict}; {classes}"
        predicted = [_shown(p) + (" (wrong)" if p in found.extra else "") for p in said.predicted]
        yield _wrapped("predicted", predicted)
        yield _wrapped("missed", [*map(_shown, found.missed), *found.unknown])
    # Of models of many classes each the list would be longer than all else.
    if said.neighbours and said.expert is not None and said.expert.chosen == "one":
        nearest = [f"{near.text} {near.similarity:.2f}" for near in said.neighbours[:3]]
        yield _wrapped("nearest", nearest)


def _shown(prediction: Prediction) -> str:
    return f"{prediction.text} {prediction.probability:.2f}".replace(" 0.", " .")


def _wrapped(title: str, items: Iterable[str]) -> str:
    return textwrap.fill(
        ", ".join(items) or "none",
        width=96,
        initial_indent=f"  {title:<11}",
        subsequent_indent=" " * 13,
    )
