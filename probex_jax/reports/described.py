"""Described models beside the truth, as HTML."""

from collections.abc import Iterable, Sequence

from probex_jax.forest import Prediction
from probex_jax.reports.hidden import HiddenModel
from probex_jax.reports.html import escaped


def described_models(models: Sequence[HiddenModel]) -> str:
    """What was said of each model whose labels were hidden, and what is true.

    Args:
      models: the models; their names and labels may be text of strangers.

    Returns:
      A piece of HTML.
    """
    n_right = sum(model.description.tree == model.tree for model in models)
    about = (
        f"<p>The tree is right for {n_right} of {len(models)}. ✓ and ✗ say whether it is so; "
        "probabilities are calibrated.</p>"
    )
    return f'{about}<div class="side">{"".join(map(_model, models))}</div>'


def _model(model: HiddenModel) -> str:
    said = model.description
    right = said.tree == model.tree
    verdict = f"{'✓' if right else '✗'} {escaped(said.tree) or 'of no tree of the forest'}"
    if not right:
        verdict += f"; it is {escaped(model.tree) or 'of no tree of the forest'}"
    lines = [("tree", verdict)]
    if not said.tree:
        lines.append(("why", escaped(said.route.reason)))
    lines += _classes(model)
    if said.neighbours:
        nearest = (f"{near.text} ({near.similarity:.2f})" for near in said.neighbours[:3])
        lines.append(("nearest documented", escaped(", ".join(nearest))))
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{text}</td></tr>' for name, text in lines)
    return (
        f'<div class="model"><h3>{escaped(said.id)}</h3><table><tbody>{rows}</tbody></table></div>'
    )


def _classes(model: HiddenModel) -> list[tuple[str, str]]:
    said = model.description
    found = said.compared_with(model.labels)
    truth = ("truth", ", ".join(map(escaped, model.labels)) or "not known")
    if found is None:
        return [truth] if said.tree else []
    if said.expert is not None and said.expert.chosen == "one":
        missed = {p.label for p in found.missed} | set(found.unknown)
        verdict = "✗" if missed else "✓"
        return [("said", f"{verdict} {_listed(said.predictions[:3])}"), truth]
    wrong = {p.label for p in found.extra}
    return [
        ("right", f"{found.n_right} of {found.n_classes} classes"),
        ("said", _listed(said.predicted, wrong)),
        ("missed", _listed([*found.missed, *found.unknown]) or "none"),
        truth,
    ]


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
