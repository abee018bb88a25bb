"""Tails of measured statistics: what one honest job in so many is above, beyond what was seen.

Owns the fits and their confidence. Single log-distances have exponential tails or lighter ones, so maxima are taken for
such; means over many rows are nearly normal, so the square of their distance from the median is. The mean excess of the
largest tenth is raised by two of its standard errors, and no limit lies below what was seen. Refuses too few values: an
extrapolation from ten jobs to a hundred thousand would be an invention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pocache.protocol.errors import MatchingError

FIT_COUNT_MIN = 60
"""Fewest values that are fitted."""

TAIL_COUNT_MIN = 10
"""Fewest values that a tail is fitted to."""

ERROR_COUNT = 2.0
"""Standard errors that are added: about the 97.5 % bound."""


def fit_limit(values: Sequence[int], tail: int) -> int:
    """Return what one value in ``tail`` is above, at least the largest seen unless the tail lies inside the sample.

    u + β · ln(tail · k / n), u the largest value below the upper k of n, β their mean excess over u times
    1 + 2/√k. MatchingError for fewer than FIT_COUNT_MIN values.
    """
    count = len(values)
    if count < FIT_COUNT_MIN:
        raise MatchingError(f"{count} values are too few to fit a tail to: at least {FIT_COUNT_MIN}")
    ascending = sorted(values)
    above = max(TAIL_COUNT_MIN, count // 10)
    threshold = ascending[count - above - 1]
    excess = sum(value - threshold for value in ascending[-above:]) / above
    raised = excess * (1 + ERROR_COUNT / math.sqrt(above))
    limit = threshold + math.ceil(raised * max(0.0, math.log(tail * above / count)))
    return max(limit, ascending[-1]) if tail >= count else limit


def fit_mean_limit(values: Sequence[int], tail: int) -> int:
    """Return the same for a mean over many rows: median + √(fit_limit of (value − median)²); above the median alone.

    For a normal distribution the square's tail is all but exponential. MatchingError.
    """
    median = sorted(values)[len(values) // 2]
    squares = [max(0, value - median) ** 2 for value in values]
    return median + math.isqrt(fit_limit(squares, tail)) + 1


def bound_rate(hits: int, trials: int, *, one: int) -> int:
    """Return the 97.5 % upper bound on a rate of which ``hits`` in ``trials`` were seen, in units of 1/``one``.

    Poisson by its square root: (√(hits + 1) + 1)² is at least the exact bound for every count.
    """
    if trials < 1:
        raise MatchingError("a rate of no trials has no bound")
    bound = (math.sqrt(hits + 1) + 1.0) ** 2
    return min(one, math.ceil(bound * one / trials))
