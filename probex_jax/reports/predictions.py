"""Predictions beside the truth, as text for a terminal and as HTML."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probex_jax.forest import Answer, Description, Prediction
from probex_jax.forest.comparison import compared, predicted
from probex_jax.reports import attributes
from probex_jax.reports.html import escaped

_SHOWN_OF_ONE = 3
_SHOWN_NEAR = 3


@dataclass(frozen=True)
class LabelledDescription:
    """The description of a model that was made without its labels, and the truth.

    Args:
      description: what was predicted.
      tree: the model's true tree, "" if no tree of the forest.
      labels: what it was trained on.
    """

    description: Description
    tree: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ModelAnswers:
    """A model and lines about it.

    Args:
      name: of the model.
      lines: title to items, all plain text.
    """

    name: str
    lines: Sequence[tuple[str, Sequence[str]]]


def as_text(models: Iterable[LabelledDescription]) -> str:
    """What was predicted of each model, how surely, and where that is wrong.

    Example:
      >>> from probex_jax.forest import Answer, Prediction, Route
      >>> from probex_jax.forest.description import ExpertFacts
      >>> from probex_jax.forest.stated_facts import StatedFacts
      >>> said = StatedFacts((), "", "", "", "", "", False, parameters=9, dtype="F32", layers=1)
      >>> expert = ExpertFacts("", (), "", 9, None, {}, "several")
      >>> found = [Prediction(name, name, p) for name, p in
      ...          (("one", 0.98), ("two", 0.61), ("six", 0.2))]
      >>> m7 = Description("m7", "", said, Route("MiniMAE"), "", (Answer(tuple(found), expert),))
      >>> print(as_text([LabelledDescription(m7, "MiniMAE", ("one", "six"))]))
      m7
        tree        ✓ MiniMAE
        correct     1 of 3 classes
        predicted   ✓ one 0.98, ✗ two 0.61
        missed      six 0.20
        truth       one, six
    """
    return "\n".join(
        line
        for model in map(of_description, models)
        for line in (model.name, *(_wrapped(title, items) for title, items in model.lines))
    )


def _wrapped(title: str, items: Sequence[str]) -> str:
    text = ", ".join(item.replace(" ", "\xa0") for item in items)  # lines break between items
    filled = textwrap.fill(text, 96, initial_indent=f"  {title:<11} ", subsequent_indent=" " * 14)
    return filled.replace("\xa0", " ")


def as_html(about: str, models: Iterable[ModelAnswers]) -> str:
    """The same as HTML, under a sentence in plain text."""
    marks = "✓ and ✗ mark what is right and wrong; probabilities are calibrated."
    shown = "".join(map(_model, models))
    return f'<p>{escaped(about)} {marks}</p><div class="side">{shown}</div>'


def _model(model: ModelAnswers) -> str:
    rows = "".join(
        f'<tr><th scope="row">{title}</th><td>{_items(items)}</td></tr>'
        for title, items in model.lines
    )
    name = escaped(model.name)
    return f'<div class="model"><h3>{name}</h3><table><tbody>{rows}</tbody></table></div>'


def _items(items: Sequence[str]) -> str:
    return ", ".join(f'<span class="nb">{escaped(item)}</span>' for item in items)


def of_description(model: LabelledDescription) -> ModelAnswers:
    """The lines about a described model."""
    said, true = model.description, model.tree or "no tree of the forest"
    if said.tree == model.tree:
        verdict = f"✓ {true}"
    else:
        verdict = f"✗ {said.tree or 'no tree of the forest'}; it is {true}"
    lines: list[tuple[str, Sequence[str]]] = [("tree", [verdict])]
    if not said.tree:
        lines.append(("why", [said.route.reason]))
    else:
        lines += _of_answers(said.answers, model.labels)
    # Models of many classes have long texts, which say little of the neighbours.
    if said.neighbours and all(one.chooses_one for one in said.answers):
        nearest = [f"{near.text} {near.similarity:.2f}" for near in said.neighbours[:_SHOWN_NEAR]]
        lines.append(("nearest", nearest))
    return ModelAnswers(said.id, lines)


def _of_answers(found: Sequence[Answer], labels: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """The labels beside what has no name of its own, or is alone; other attributes by name."""
    alone = [one for one in found if not one.label_set or len(found) == 1]
    main = next((one for one in alone if one.quantity is None), None)
    named = [(one.title, _predicted(one)) for one in found if one is not main]
    if main is None and found:
        return [*named, ("truth", list(labels) or ["not known"])]
    *lines, truth = answers(
        main.predictions if main else (), labels, main.expert.chosen if main else "several"
    )
    return [*lines, *named, truth]


def _predicted(answer: Answer) -> list[str]:
    if answer.quantity is not None:
        return [f"{attributes.predicted(answer)} ({attributes.held(answer)})"]
    shown = answer.predictions[:_SHOWN_OF_ONE] if answer.chooses_one else answer.predicted
    return [_shown(p) for p in shown] or ["none"]


def answers(
    predictions: Sequence[Prediction], labels: Sequence[str], chosen: str
) -> list[tuple[str, Sequence[str]]]:
    """What was predicted, and what is true, as lines.

    Args:
      predictions: of every class, the most probable first.
      labels: what is true; none where that is not known.
      chosen: "one" where a class was chosen, "several" where each has its own probability.
    """
    truth = ("truth", list(labels) or ["not known"])
    found = compared(predictions, labels, chosen)
    if found is None:
        return [truth]
    if chosen == "one":
        first, *others = map(_shown, predictions[:_SHOWN_OF_ONE])
        mark = "✗" if found.missed or found.unknown else "✓"
        return [("predicted", [f"{mark} {first}", *others]), truth]
    wrong = {p.label for p in found.extra}
    said = [
        f"{'✗' if p.label in wrong else '✓'} {_shown(p)}" for p in predicted(predictions, chosen)
    ]
    return [
        ("correct", [f"{found.n_right} of {found.n_classes} classes"]),
        ("predicted", said or ["none"]),
        ("missed", [*map(_shown, found.missed), *found.unknown] or ["none"]),
        truth,
    ]


def _shown(prediction: Prediction) -> str:
    return f"{prediction.text} {prediction.probability:.2f}"
