"""The token check: are the delivered tokens the ones that the right model would have drawn? (docs/protocol.md 7.7)

Owns the statistics over the score rows of a generator and of a verifier, and what they say by calibrated limits, in
exact integers. Rows of K and V cannot show a cheap model's tokens that the right one then prefilled; a token's margin
below the verifier's own best can. Refuses score rows that are none. Says nothing without output positions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pocache.protocol.encoding import SCORE_FORMAT, SCORE_WIDTH
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching_limits import (
    BOUND_FACTOR,
    GRADE_TAILS,
    MARGIN_CEIL_Q16,
    MATCH_TAIL,
    MISMATCH_TAIL,
    TokenLimits,
    compute_binomial_limit,
)

_FRACTION_BITS: Final = 16
_MANTISSA_BITS: Final = 23
_EXPONENT_ZERO: Final = 150
"""A float32 is mantissa · 2^(exponent − 150)."""
_EXPONENT_FULL: Final = 0xFF


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What the margins of a job's opened output tokens add up to."""

    token_count: int
    mismatch_count: int
    """Tokens that are not the best, by the verifier's or by the generator's own score row."""
    margin_sum_q16: int
    """Σ min(margin, clip) / clip: how many tokens were missed, a small margin counting for less."""
    margin_peak_q16: int


@dataclass(frozen=True, slots=True)
class TokenBounds:
    """The limits that follow for so many tokens; up to ``match`` it matches, above ``mismatch`` it mismatches."""

    mismatch_match_max: int
    mismatch_mismatch_min: int
    margin_sum_match_max_q16: int
    margin_sum_mismatch_min_q16: int
    margin_peak_match_max_q16: int
    margin_peak_mismatch_min_q16: int


def compute_margin_q16(ours: bytes, theirs: bytes) -> int | None:
    """Return a token's margin ⌊2¹⁶ · gap⌋ by the verifier's and the generator's score row; None for the best token.

    The larger of the two gaps: an honest generator drew its token as the best of its own scores, so a gap that it
    commits itself is a confession. A gap that is not zero, however small, is a mismatch. MatchingError.
    """
    gaps = [_read_gap(row) for row in (ours, theirs)]
    return max((gap for gap in gaps if gap is not None), default=None)


def compute_token_statistics(limits: TokenLimits, margins: Iterable[int | None]) -> TokenStatistics:
    """Return the statistics over the margins of output tokens."""
    count, mismatched, total, peak = 0, 0, 0, 0
    for margin in margins:
        count += 1
        if margin is None:
            continue
        mismatched += 1
        total += (min(margin, limits.clip_q16) << _FRACTION_BITS) // limits.clip_q16
        peak = max(peak, margin)
    return TokenStatistics(count, mismatched, total, peak)


def compute_token_bounds(limits: TokenLimits, token_count: int) -> TokenBounds:
    """Return the limits for a number of tokens: exact binomial tails of the calibrated rates.

    The margin sum is a sum of values between 0 and 1, whose tail is at most BOUND_FACTOR times that of as many coin
    flips with the same mean.
    """
    sums = [
        compute_binomial_limit(token_count, limits.margin_rate_q32, BOUND_FACTOR * tail) << _FRACTION_BITS
        for tail in (MATCH_TAIL, MISMATCH_TAIL)
    ]
    return TokenBounds(
        mismatch_match_max=compute_binomial_limit(token_count, limits.mismatch_rate_q32, MATCH_TAIL),
        mismatch_mismatch_min=compute_binomial_limit(token_count, limits.mismatch_rate_q32, MISMATCH_TAIL),
        margin_sum_match_max_q16=sums[0],
        margin_sum_mismatch_min_q16=sums[1],
        margin_peak_match_max_q16=limits.peak_match_max_q16,
        margin_peak_mismatch_min_q16=limits.peak_mismatch_min_q16,
    )


def is_token_mismatch(found: TokenStatistics, bounds: TokenBounds) -> bool:
    """Whether any statistic is above its mismatch limit."""
    return (
        found.mismatch_count > bounds.mismatch_mismatch_min
        or found.margin_sum_q16 > bounds.margin_sum_mismatch_min_q16
        or found.margin_peak_q16 > bounds.margin_peak_mismatch_min_q16
    )


def is_token_match(found: TokenStatistics, bounds: TokenBounds) -> bool:
    """Whether every statistic is within its match limit."""
    return (
        found.mismatch_count <= bounds.mismatch_match_max
        and found.margin_sum_q16 <= bounds.margin_sum_match_max_q16
        and found.margin_peak_q16 <= bounds.margin_peak_match_max_q16
    )


def compute_token_grade(limits: TokenLimits, found: TokenStatistics) -> int:
    """Return how rare the count or the sum is among honest jobs: 0, or the number of GRADE_TAILS that it exceeds."""
    grade = 0
    for number, tail in enumerate(GRADE_TAILS, 1):
        count_limit = compute_binomial_limit(found.token_count, limits.mismatch_rate_q32, tail)
        sum_limit = compute_binomial_limit(found.token_count, limits.margin_rate_q32, BOUND_FACTOR * tail)
        if found.mismatch_count > count_limit or found.margin_sum_q16 > sum_limit << _FRACTION_BITS:
            grade = number
    return grade


def _read_gap(score_row: bytes) -> int | None:
    """Return ⌊2¹⁶ · gap⌋ up to MARGIN_CEIL_Q16; None where the gap is zero or below. MatchingError."""
    if len(score_row) != SCORE_FORMAT.size * SCORE_WIDTH:
        raise MatchingError(f"a score row has {SCORE_FORMAT.size * SCORE_WIDTH} bytes, not {len(score_row)}")
    bits: int = struct.unpack_from("<I", score_row, SCORE_FORMAT.size * (SCORE_WIDTH - 1))[0]
    exponent, mantissa = (bits >> _MANTISSA_BITS) & 0xFF, bits & ((1 << _MANTISSA_BITS) - 1)
    if exponent == _EXPONENT_FULL:
        raise MatchingError("a score row has a gap that is not finite")
    if bits >> 31 or not bits:
        return None
    if exponent:
        mantissa |= 1 << _MANTISSA_BITS
    shift = max(exponent, 1) - _EXPONENT_ZERO + _FRACTION_BITS
    value = mantissa << shift if shift >= 0 else mantissa >> -shift
    return min(value, MARGIN_CEIL_Q16)
