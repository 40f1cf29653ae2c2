"""How far scores can be trusted: their binomial errors, and which of them these tell apart.

A score counts right answers, so that it has the standard error of a share of a sample. Networks
of one search are scored on the same images, though: what one gets wrong the others mostly get
wrong too, and the difference of two scores varies less than that of two samples. So what is told
apart here is told apart, and of what is not some still differs.
"""

from __future__ import annotations

import math
from fractions import Fraction

from mmscale.search.entry import Score

# Standard errors to either side that hold 95 % of a normal distribution.
WIDTH = 1.96


def standard_error(share: Fraction | float, images: int) -> float:
    """Standard error of a share of right answers.

    Args:
        share: Between 0 and 1.
        images: What it is a share of.
    """
    return math.sqrt(share * (1 - share) / images)


def shares_told_apart(one: Fraction | float, other: Fraction | float, images: int) -> bool:
    """Whether two shares, or weighted means of shares, differ by more than their error.

    A mean of shares of the same images is taken to have the error of a share of its size, which
    is the largest that it can have.

    Args:
        one: Between 0 and 1.
        other: Between 0 and 1.
        images: What each is a share of.
    """
    errors = (standard_error(share, images) for share in (one, other))
    return abs(one - other) > WIDTH * math.hypot(*errors)


def told_apart(one: Score, other: Score) -> bool:
    """Whether two scores differ by more than their error: 1.96 standard errors of the difference.

    The scores are taken to be of images of their own. Where they are of the same ones, as in a
    search, that is careful: the error is smaller than it is taken to be.

    Example:
        >>> told_apart(Score(700, 1000), Score(720, 1000)), told_apart(Score(7, 10), Score(1, 10))
        (False, True)
    """
    return abs(one.value - other.value) > WIDTH * math.hypot(one.error, other.error)


def with_error(share: Fraction | float, error: float | None, digits: int = 4) -> str:
    """A share with 1.96 standard errors, as ``0.7100 ± 0.0281``; without, if there is no error."""
    shown = f'{float(share):.{digits}f}'
    return shown if error is None else f'{shown} ± {WIDTH * error:.{digits}f}'
