"""How sure an edge is."""

from __future__ import annotations

import math

# Where nothing is known of other models.
_USUALLY_MISPLACED = 0.3
_MOST_DIRECTION, _MOST_MISFIT, _MOST_MARGIN = 6.0, 4.0, 4.0


def confidence(direction: float, misfit: float, misplaced: float | None, margin: float) -> float:
    """The probability that an edge is right, calibrated on families of known descent.

    Args:
      direction: the log odds of its direction.
      misfit: how badly the child fits as the parent's, of `Relation.misfits`.
      misplaced: how badly the distances of other models fit, of `tree.misplaced`; None if there
        are no others.
      margin: how much dearer the child's next best parent is.

    Returns:
      From 0 to 1.

    Example:
      >>> confidence(6.0, 0.1, 0.1, 2.0) > 0.9 > 0.5 > confidence(0.0, 1.0, 0.9, 0.1)
      True

    References:
      results/lineage.md, "Confidence".
    """
    off = _USUALLY_MISPLACED if misplaced is None else misplaced
    logit = (
        0.5
        + 0.5 * min(direction, _MOST_DIRECTION)
        - 1.0 * min(misfit, _MOST_MISFIT)
        - 4.0 * (off - 0.2)
        + 1.0 * min(margin, _MOST_MARGIN)
    )
    return 1 / (1 + math.exp(-logit))
