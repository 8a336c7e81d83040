"""The task of telling which text says what a model was trained on."""

from dataclasses import dataclass

from probex_jax.fitting.task import OneClass


@dataclass(frozen=True)
class Texts(OneClass):
    """Which of some texts says what the model was trained on: alignment of weights and language.

    Targets are [N] int, places among the candidates, whose embeddings [Y, D] stand beside them
    (`Split.texts`); the loss is a softmax cross-entropy over the candidates.

    Args:
      logit_scale: scale of the cosines in the softmax.

    Example:
      >>> import numpy as np
      >>> Texts(logit_scale=20.0).predictions(np.zeros([2, 4])).shape
      (2, 4)
    """

    name = "texts"
    predicts = "texts"
    head = "text"
    logit_scale: float = 1.0  # type: ignore[misc]

    def conformal(self, logits, y, temperature=1.0):
        return None  # candidates are others each time
