"""Hidden models: what the weights say of each, beside the truth."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HiddenModel:
    """One model whose classes an expert predicted.

    Args:
      id: name of the model.
      tree: its tree.
      probabilities: class to predicted probability.
      truth: the classes it was trained on.
    """

    id: str
    tree: str
    probabilities: dict[str, float]
    truth: tuple[str, ...]

    @property
    def predicted(self) -> tuple[str, ...]:
        """The classes at probability one half or more, the surest first."""
        likely = [name for name, p in self.probabilities.items() if p >= 0.5]
        return tuple(sorted(likely, key=lambda name: -self.probabilities[name]))

    @property
    def n_right(self) -> int:
        """Number of classes rightly said to be in or out."""
        return len(self.probabilities) - len(set(self.predicted) ^ set(self.truth))


def hidden_models(models: Sequence[HiddenModel]) -> str:
    """Each model's predicted classes, their probabilities, and the truth, as text.

    Example:
      >>> said = {"one": 0.98, "two": 0.61, "six": 0.2}
      >>> model = HiddenModel("m7", "MiniMAE", said, truth=("one", "six"))
      >>> print(hidden_models([model]))
      MiniMAE m7: 1 of 3 classes right
        predicted  one .98, two .61 (wrong)
        missed     six .20
    """
    return "\n".join(_one(model) for model in models)


def _one(model: HiddenModel) -> str:
    predicted = [
        _said(model, name) + ("" if name in model.truth else " (wrong)") for name in model.predicted
    ]
    missed = [_said(model, name) for name in model.truth if name not in model.predicted]
    lines = [
        f"{model.tree} {model.id}: {model.n_right} of {len(model.probabilities)} classes right",
        _wrapped("predicted", predicted),
        _wrapped("missed", missed),
    ]
    return "\n".join(lines)


def _said(model: HiddenModel, name: str) -> str:
    return f"{name} {model.probabilities[name]:.2f}".replace(" 0.", " .")


def _wrapped(title: str, items: Sequence[str]) -> str:
    return textwrap.fill(
        ", ".join(items) or "none",
        width=96,
        initial_indent=f"  {title:<11}",
        subsequent_indent=" " * 13,
    )
