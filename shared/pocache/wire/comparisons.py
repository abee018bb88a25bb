"""A comparison as a message: the one place where the numbers of ``protocol.matching`` get their names on the wire."""

from __future__ import annotations

from collections.abc import Iterable

from pocache.protocol.matching import Comparison
from pocache.protocol.sprt import Look
from pocache.wire.messages import ComparisonV1, TokenCheckV1


def make_comparison(found: Comparison, *, stage: int, retry: int, left: str, right: str) -> ComparisonV1:
    """Return the message about one comparison of a stage: its statistics, and the limits that held for them."""
    bounds = found.bounds
    return ComparisonV1(
        stage=stage,
        retry=retry,
        left=left,
        right=right,
        verdict=found.verdict.value,
        mean_q16=found.mean_q16,
        peak_q16=found.peak_q16,
        mean_match_max_q16=bounds.mean_match_max_q16,
        peak_match_max_q16=bounds.peak_match_max_q16,
        mean_mismatch_min_q16=bounds.mean_mismatch_min_q16,
        peak_mismatch_min_q16=bounds.peak_mismatch_min_q16,
        distance_peak_q16=max(log2_q16 for _, _, _, log2_q16 in found.rows),
        row_count=found.row_count,
        position_count=found.position_count,
        outlier_count=found.outlier_count,
        is_too_exact=found.is_too_exact,
        grade=found.grade,
        tokens=_make_token_check(found),
    )


def read_looks(comparisons: Iterable[ComparisonV1], generator: str) -> tuple[Look, ...]:
    """Return the comparisons that a job's generator has a part in, as the test over its jobs takes them."""
    return tuple(
        Look(
            stage=one.stage,
            retry=one.retry,
            grade=one.grade,
            tokens=None if one.tokens is None else (one.tokens.token_count, one.tokens.margin_sum_q16),
        )
        for one in comparisons
        if generator in (one.left, one.right)
    )


def _make_token_check(found: Comparison) -> TokenCheckV1 | None:
    tokens, bounds = found.tokens, found.bounds.tokens
    if tokens is None or bounds is None:
        return None
    return TokenCheckV1(
        token_count=tokens.token_count,
        mismatch_count=tokens.mismatch_count,
        mismatch_match_max=bounds.mismatch_match_max,
        mismatch_mismatch_min=bounds.mismatch_mismatch_min,
        margin_sum_q16=tokens.margin_sum_q16,
        margin_sum_match_max_q16=bounds.margin_sum_match_max_q16,
        margin_sum_mismatch_min_q16=bounds.margin_sum_mismatch_min_q16,
        margin_peak_q16=tokens.margin_peak_q16,
        margin_peak_match_max_q16=bounds.margin_peak_match_max_q16,
        margin_peak_mismatch_min_q16=bounds.margin_peak_mismatch_min_q16,
    )
