"""Margins are read exactly, limits are exact binomial tails, and tokens alone can convict."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from math import comb

import pytest

from pocache.protocol.encoding import FloatFormat, RowKey, RowKind
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import ONE_Q16, KindThreshold, MatchingProfile, Verdict, compare
from pocache.protocol.matching_limits import (
    MARGIN_CEIL_Q16,
    MISMATCH_TAIL,
    RATE_ONE,
    Limits,
    TokenLimits,
    compute_binomial_limit,
)
from pocache.protocol.token_check import (
    TokenStatistics,
    compute_margin_q16,
    compute_token_bounds,
    compute_token_grade,
    compute_token_statistics,
    is_token_match,
    is_token_mismatch,
)

LIMITS = TokenLimits(
    clip_q16=ONE_Q16 // 16,
    mismatch_rate_q32=RATE_ONE // 100,
    margin_rate_q32=RATE_ONE // 1_000,
    peak_match_max_q16=ONE_Q16 // 4,
    peak_mismatch_min_q16=ONE_Q16,
)
PROFILE = MatchingProfile(
    thresholds=(
        KindThreshold(RowKind.K, 0, -20 * ONE_Q16, ONE_Q16),
        KindThreshold(RowKind.SCORES, 0, -20 * ONE_Q16, ONE_Q16),
    ),
    mean_match_max_q16=2 * ONE_Q16,
    mean_mismatch_min_q16=4 * ONE_Q16,
    peak_match_max_q16=3 * ONE_Q16,
    peak_mismatch_min_q16=5 * ONE_Q16,
    about={},
    limits=Limits(tokens=LIMITS),
)
BEST = struct.pack("<3f", 3.0, 5.0, 0.0)


def score(gap: float) -> bytes:
    return struct.pack("<3f", 3.0, 5.0, gap)


@pytest.mark.parametrize(
    ("gap", "margin"),
    [
        (0.0, None),
        (-0.0, None),
        (-3.0, None),
        (2.0**-149, 0),
        (2.0**-17, 0),
        (2.0**-16, 1),
        (1.0, ONE_Q16),
        (1.99999, int(Fraction(struct.unpack("<f", struct.pack("<f", 1.99999))[0]) * ONE_Q16)),
        (1e30, MARGIN_CEIL_Q16),
    ],
)
def test_margins_are_exact_and_the_larger_of_both_sides(gap: float, margin: int | None) -> None:
    assert compute_margin_q16(score(gap), BEST) == margin
    assert compute_margin_q16(BEST, score(gap)) == margin, "a generator's own gap is a confession"


@pytest.mark.parametrize("row", [b"", BEST[:-1], BEST + b"\0", score(float("inf")), score(float("nan"))])
def test_what_is_no_score_row_has_no_margin(row: bytes) -> None:
    with pytest.raises(MatchingError):
        compute_margin_q16(row, BEST)


@pytest.mark.parametrize("rate", [0, 1, RATE_ONE // 3, RATE_ONE // 1_000, RATE_ONE - 1, RATE_ONE])
@pytest.mark.parametrize("trials", [0, 1, 8, 40])
def test_a_binomial_limit_is_the_smallest_with_so_little_above_it(trials: int, rate: int) -> None:
    share = Fraction(rate, RATE_ONE)

    def above(count: int) -> Fraction:
        return sum(
            (comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(count + 1, trials + 1)),
            Fraction(0),
        )

    for tail in (10, 5_000, 500_000):
        limit = compute_binomial_limit(trials, rate, tail)
        assert above(limit) * tail <= 1
        assert limit == 0 or above(limit - 1) * tail > 1


def test_statistics_count_sum_and_find_the_largest() -> None:
    margins = [None, 0, LIMITS.clip_q16 // 2, 5 * ONE_Q16, None]
    found = compute_token_statistics(LIMITS, margins)
    assert found == TokenStatistics(5, 3, ONE_Q16 + ONE_Q16 // 2, 5 * ONE_Q16)


@pytest.mark.parametrize("name", ["mismatch_count", "margin_sum_q16", "margin_peak_q16"])
def test_each_statistic_decides_by_itself(name: str) -> None:
    bounds = compute_token_bounds(LIMITS, 16)
    match, mismatch = {
        "mismatch_count": (bounds.mismatch_match_max, bounds.mismatch_mismatch_min),
        "margin_sum_q16": (bounds.margin_sum_match_max_q16, bounds.margin_sum_mismatch_min_q16),
        "margin_peak_q16": (bounds.margin_peak_match_max_q16, bounds.margin_peak_mismatch_min_q16),
    }[name]
    assert match < mismatch
    clean = TokenStatistics(16, 0, 0, 0)
    verdicts = []
    for value in (match, match + 1, mismatch, mismatch + 1):
        found = replace(clean, **{name: value})
        verdicts.append((is_token_match(found, bounds), is_token_mismatch(found, bounds)))
    assert verdicts == [(True, False), (False, False), (False, False), (False, True)]


def test_grades_are_how_rare_a_count_is() -> None:
    grades = [compute_token_grade(LIMITS, TokenStatistics(16, count, 0, 0)) for count in range(5)]
    assert grades == [0, 0, 1, 3, 3]
    assert compute_token_grade(LIMITS, TokenStatistics(16, 0, 16 * ONE_Q16, 0)) == 3


def build_sides(gaps: list[float]) -> tuple[dict[int, dict[RowKey, bytes]], dict[int, dict[RowKey, bytes]]]:
    """Rows that are equal on both sides, and true gaps of the delivered tokens."""
    key = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
    side: dict[int, dict[RowKey, bytes]] = {
        place: {(RowKind.K, 0): key, (RowKind.SCORES, 0): score(gap)} for place, gap in enumerate(gaps)
    }
    return side, side


def test_a_spoof_with_true_rows_is_convicted_by_its_tokens_alone() -> None:
    """A cheap model's tokens, the right model's rows and its true scores: no row differs by a bit."""
    ours, theirs = build_sides([1.5, 0.0, 0.7, 2.0, 0.0, 3.1, 0.4, 0.0])
    rows_alone = compare(PROFILE, ours, theirs, FloatFormat.F32)
    assert (rows_alone.verdict, rows_alone.tokens) == (Verdict.MATCH, None)
    checked = compare(PROFILE, ours, theirs, FloatFormat.F32, checks_tokens=True)
    assert checked.verdict is Verdict.MISMATCH
    assert checked.tokens is not None
    assert (checked.tokens.token_count, checked.tokens.mismatch_count) == (8, 5)
    assert checked.grade == 3


def test_an_honest_near_tie_matches_and_one_false_token_does_not() -> None:
    near = compare(PROFILE, *build_sides([0.0] * 15 + [0.01]), FloatFormat.F32, checks_tokens=True)
    assert near.verdict is Verdict.MATCH
    false = compare(PROFILE, *build_sides([0.0] * 15 + [1.5]), FloatFormat.F32, checks_tokens=True)
    assert false.verdict is Verdict.MISMATCH, "an EOS that was not drawn, an edited token"


def test_tokens_cannot_be_judged_without_limits() -> None:
    with pytest.raises(MatchingError, match="no token limits"):
        compare(replace(PROFILE, limits=Limits()), *build_sides([0.0]), FloatFormat.F32, checks_tokens=True)


def test_no_output_position_says_nothing_about_tokens() -> None:
    side: dict[int, dict[RowKey, bytes]] = {0: {(RowKind.K, 0): struct.pack("<1f", 1.0)}}
    found = compare(PROFILE, side, side, FloatFormat.F32, checks_tokens=True)
    assert (found.verdict, found.tokens) == (Verdict.MATCH, None)


def test_the_tails_are_one_in_a_hundred_thousand_jobs_over_all_statistics() -> None:
    assert Fraction(5, MISMATCH_TAIL) == Fraction(1, 100_000)
