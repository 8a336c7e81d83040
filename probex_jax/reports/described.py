"""Models and what was said of them beside the truth, as HTML."""

from collections.abc import Iterable, Sequence

from probex_jax.forest import Prediction
from probex_jax.forest.description import compared, predicted
from probex_jax.reports.hidden import HiddenModel
from probex_jax.reports.html import escaped

_SHOWN_OF_ONE = 3
_SHOWN_NEAR = 3


def described_models(models: Sequence[HiddenModel]) -> str:
    """What was said of each model whose labels were hidden, and what is true.

    Args:
      models: the models; their names and labels may be text of strangers.

    Returns:
      A piece of HTML.
    """
    n_right = sum(model.description.tree == model.tree for model in models)
    return side_by_side(
        f"The tree is right for {n_right} of {len(models)}.", [_model(model) for model in models]
    )


def side_by_side(about: str, models: Iterable[str]) -> str:
    """Pieces of HTML, as `one_model` makes them, under a sentence in plain text."""
    marks = "✓ and ✗ say whether it is so; probabilities are calibrated."
    return f'<p>{escaped(about)} {marks}</p><div class="side">{"".join(models)}</div>'


def one_model(name: str, lines: Iterable[tuple[str, str]]) -> str:
    """A model: what is said of it, as names in plain text and values in HTML."""
    rows = "".join(f'<tr><th scope="row">{title}</th><td>{text}</td></tr>' for title, text in lines)
    return f'<div class="model"><h3>{escaped(name)}</h3><table><tbody>{rows}</tbody></table></div>'


def answers(
    predictions: Sequence[Prediction], labels: Sequence[str], chosen: str
) -> list[tuple[str, str]]:
    """Lines of `one_model`: what was answered, and what is true.

    Args:
      predictions: of every class, the most probable first.
      labels: what is true; none where that is not known.
      chosen: "one" where a class was chosen, "several" where each was answered for itself.
    """
    truth = ("truth", ", ".join(map(escaped, labels)) or "not known")
    found = compared(predictions, labels, chosen)
    if found is None:
        return [truth]
    if chosen == "one":
        verdict = "✗" if found.missed or found.unknown else "✓"
        return [("said", f"{verdict} {_listed(predictions[:_SHOWN_OF_ONE])}"), truth]
    said, wrong = predicted(predictions, chosen), {p.label for p in found.extra}
    return [
        ("right", f"{found.n_right} of {found.n_classes} classes"),
        ("said", _listed(said, wrong) or "none"),
        ("missed", _listed([*found.missed, *found.unknown]) or "none"),
        truth,
    ]


def _model(model: HiddenModel) -> str:
    said = model.description
    right = said.tree == model.tree
    verdict = f"{'✓' if right else '✗'} {escaped(said.tree) or 'of no tree of the forest'}"
    if not right:
        verdict += f"; it is {escaped(model.tree) or 'of no tree of the forest'}"
    lines = [("tree", verdict)]
    if not said.tree:
        lines.append(("why", escaped(said.route.reason)))
    else:
        chosen = "several" if said.expert is None else said.expert.chosen
        lines += answers(said.predictions, model.labels, chosen)
    if said.neighbours:
        # Of models of many classes each, the words would be longer than all else.
        of_one = said.expert is not None and said.expert.chosen == "one"
        nearest = (
            f"{near.text if of_one else near.id} ({near.similarity:.2f})"
            for near in said.neighbours[:_SHOWN_NEAR]
        )
        lines.append(("nearest documented", escaped(", ".join(nearest))))
    return one_model(said.id, lines)


def _listed(predictions: Iterable[Prediction | str], wrong: Iterable[str] | None = None) -> str:
    """Classes with their probabilities; with a mark each where it is given which are wrong."""
    shown = []
    for p in predictions:
        if isinstance(p, str):
            shown.append(escaped(p))
            continue
        mark = "" if wrong is None else "✗ " if p.label in wrong else "✓ "
        shown.append(f"{mark}{escaped(p.text)} {p.probability:.2f}")
    return " ".join(f'<span class="nb">{text}</span>' for text in _with_commas(shown))


def _with_commas(items: Sequence[str]) -> list[str]:
    return [*(f"{item}," for item in items[:-1]), *items[-1:]]
