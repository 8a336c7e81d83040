"""How sure an edge is."""

from __future__ import annotations

import math

# Where there are no other models that could tell.
_USUALLY_MISPLACED = 0.3
_MOST_DIRECTION, _MOST_MARGIN = 6.0, 4.0
# Logistic regression on edges of families of seeds 100 and 300, with and without their roots, and
# of planted trees and stars.
_CONSTANT, _OF_DIRECTION, _OF_EDGE, _OF_MARGIN, _OF_FAMILY = 4.1, 0.28, -2.3, 0.7, -10.5


def confidence(
    direction: float, margin: float, misplaced: float | None, family: float | None
) -> float:
    """The probability that an edge is right, calibrated on families of known descent.

    Args:
      direction: the log odds of its direction.
      margin: how much dearer the child's next best parent is; infinite if there is no other.
      misplaced: how badly the distances of other models fit, of `tree.misplaced`; None if there
        are no others.
      family: the mean of `misplaced` over the edges of the family: children of a parent that is not
        there fit no tree.

    Returns:
      From 0 to 1.

    Example:
      >>> sure, unsure = confidence(5.0, 1.0, 0.1, 0.2), confidence(1.0, 0.1, 0.6, 0.55)
      >>> sure > 0.9, unsure < 0.1
      (True, True)

    References:
      docs/lineage.md, "What is told".
    """
    of_edge = _USUALLY_MISPLACED if misplaced is None else misplaced
    of_family = _USUALLY_MISPLACED if family is None else family
    logit = (
        _CONSTANT
        + _OF_DIRECTION * min(direction, _MOST_DIRECTION)
        + _OF_MARGIN * (min(margin, _MOST_MARGIN) if math.isfinite(margin) else 0)
        + _OF_EDGE * of_edge
        + _OF_FAMILY * of_family
    )
    return 1 / (1 + math.exp(-logit))
