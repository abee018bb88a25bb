"""How well honest jobs and cheats are told apart: scores, areas under the curve, detection rates with their bounds.

Owns the statistics of an evaluation, over numbers that a comparison gave. A job's score is how rare it would be among
honest ones, −log₁₀ of the tail, by whichever statistic says most; it orders jobs and decides nothing. Refuses empty
samples. Resampling is seeded: the same measurements give the same table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocache.numerics.tails import FIT_COUNT_MIN, fit_limit
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import Bounds, Comparison, MatchingProfile
from pocache.protocol.matching_limits import GRADE_TAILS, MATCH_TAIL, MISMATCH_TAIL, RATE_ONE

SCORE_BOUNDS = (-2.0, 9.0)
"""Scores are cut to these where jobs are added up: no job says more than one in a billion."""
EVIDENCE_MIN = -9.0

JOB_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
TOKEN_COUNTS = (4, 8, 16, 32, 64, 100, 128, 200, 300, 512, 1_024, 2_048, 4_096)
RESAMPLE_COUNT = 20_000
RESAMPLE_SEED = 20_250_101
AUC_WANTED = 0.999
SHARE_WANTED = 0.999
REJECT_RATE = 1e-3
_SCORE_SCALE = 1 << 16

Floats = NDArray[np.float64]


def compute_score(profile: MatchingProfile, found: Comparison) -> float:
    """Return −log₁₀ of the share of honest jobs that would look so bad, by the statistic that says most."""
    bounds = found.bounds
    scores = [_score_mean(bounds, found.mean_q16)]
    tails = (math.log10(MATCH_TAIL), math.log10(MISMATCH_TAIL))
    if profile.limits.routing is None:
        anchors = ((bounds.peak_match_max_q16, tails[0]), (bounds.peak_mismatch_min_q16, tails[1]))
        scores.append(_interpolate(anchors, found.peak_q16))
    else:
        rate = profile.limits.routing.outlier_rate_q32 / RATE_ONE
        scores.append(compute_binomial_score(found.position_count, rate, found.outlier_count))
    tokens, limits = found.tokens, profile.limits.tokens
    if tokens is not None and limits is not None and tokens.mismatch_count:
        scores.append(
            compute_binomial_score(
                tokens.token_count, limits.mismatch_rate_q32 / RATE_ONE, tokens.mismatch_count
            )
        )
        missed = tokens.margin_sum_q16 >> 16
        if missed:
            scores.append(
                compute_binomial_score(tokens.token_count, limits.margin_rate_q32 / RATE_ONE, missed)
            )
        peak = math.log2(1 + tokens.margin_peak_q16)
        anchors_peak = (
            (math.log2(1 + limits.peak_match_max_q16), tails[0]),
            (math.log2(1 + limits.peak_mismatch_min_q16), tails[1]),
        )
        scores.append(_interpolate(anchors_peak, peak))
    return max(scores)


def compute_binomial_score(trial_count: int, rate: float, count: int) -> float:
    """Return −log₁₀ P(X ≥ count) of a binomial; 0 for a count of zero."""
    if count <= 0 or rate >= 1:
        return 0.0
    rate = max(rate, 1e-12)
    terms = [
        math.lgamma(trial_count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trial_count - k + 1)
        + k * math.log(rate)
        + (trial_count - k) * math.log1p(-rate)
        for k in range(count, trial_count + 1)
    ]
    largest = max(terms)
    total = largest + math.log(sum(math.exp(term - largest) for term in terms))
    return max(0.0, -total / math.log(10))


def compute_auc(honest: Sequence[float], cheats: Sequence[float]) -> float:
    """Return P(a cheat's score is above an honest one's), ties for half. MatchingError for an empty sample."""
    if not honest or not cheats:
        raise MatchingError("no area under a curve of nothing")
    ordered = np.sort(np.asarray(honest))
    values = np.asarray(cheats)
    below = np.searchsorted(ordered, values, side="left")
    upto = np.searchsorted(ordered, values, side="right")
    return float((below + upto).sum() / (2 * len(ordered) * len(values)))


def compute_auc_low(honest: Sequence[float], cheats: Sequence[float]) -> float:
    """Return the lower 95 % bound of an area under the curve (Hanley and McNeil 1982), at least that of no overlap.

    Where none overlapped the bound is that of the smaller sample's rule of three.
    """
    auc = compute_auc(honest, cheats)
    if auc >= 1:
        return 1 - 3 / min(len(honest), len(cheats)) / 2
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    spread = auc * (1 - auc) + (len(cheats) - 1) * (q1 - auc**2) + (len(honest) - 1) * (q2 - auc**2)
    return max(0.0, auc - 1.96 * math.sqrt(max(0.0, spread) / (len(honest) * len(cheats))))


def compute_wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    if trials < 1:
        raise MatchingError("no interval of no trials")
    z = 1.96
    share = hits / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = (middle - half) / scale, (middle + half) / scale
    return (0.0 if hits == 0 else max(0.0, low)), (1.0 if hits == trials else min(1.0, high))


def compute_threshold(honest: Sequence[float], rate: float = REJECT_RATE) -> float:
    """Return the score that a share ``rate`` of honest jobs is above: the fitted tail of what was seen."""
    if len(honest) < FIT_COUNT_MIN:
        return max(honest)
    limit = fit_limit([round(score * _SCORE_SCALE) for score in honest], round(1 / rate))
    return limit / _SCORE_SCALE


def count_jobs(honest: Sequence[tuple[float, float]], cheats: Sequence[tuple[float, float]]) -> int | None:
    """Return how many jobs must be added up to find 99.9 % of cheats at a false-reject rate of 10⁻³.

    Each job has a score and the evidence of its tokens; either sum finds, each at half of the rate. By resampling
    both; None when JOB_COUNTS does not reach so far.
    """
    source = np.random.default_rng(RESAMPLE_SEED)
    pools = [
        np.clip(np.asarray(jobs, dtype=np.float64), (SCORE_BOUNDS[0], EVIDENCE_MIN), SCORE_BOUNDS[1])
        for jobs in (honest, cheats)
    ]
    for count in JOB_COUNTS:
        sums = [_resample(source, pool, count) for pool in pools]
        rate = REJECT_RATE / sums[0].shape[1]
        thresholds = np.quantile(sums[0], 1 - rate, axis=0, method="higher")
        if float((sums[1] > thresholds).any(axis=1).mean()) >= SHARE_WANTED:
            return count
    return None


def count_tokens(
    honest: Sequence[int | None], cheats: Sequence[int | None], clip_q16: int
) -> tuple[int | None, list[tuple[int, float]]]:
    """Return how many tokens' clipped margins give an area under the curve above 0.999, and the curve.

    A token that is missed by nothing counts a little, so that mismatches by less than 2⁻¹⁶ are seen.
    """
    source = np.random.default_rng(RESAMPLE_SEED)
    pools = [
        np.asarray([0.0 if one is None else 0.01 + min(one, clip_q16) / clip_q16 for one in margins])
        for margins in (honest, cheats)
    ]
    curve: list[tuple[int, float]] = []
    for count in TOKEN_COUNTS:
        sums = [_resample(source, pool, count, rounds=4_000) for pool in pools]
        curve.append((count, compute_auc(sums[0].tolist(), sums[1].tolist())))
        if curve[-1][1] > AUC_WANTED:
            return count, curve
    return None, curve


def _resample(
    source: np.random.Generator, pool: Floats, count: int, *, rounds: int = RESAMPLE_COUNT
) -> Floats:
    total: Floats = pool[source.integers(len(pool), size=(rounds, count))].sum(axis=1)
    return total


def _score_mean(bounds: Bounds, mean_q16: int) -> float:
    anchors = [(limit, math.log10(tail)) for limit, tail in zip(bounds.grades_q16, GRADE_TAILS, strict=False)]
    anchors.append((bounds.mean_match_max_q16, math.log10(MATCH_TAIL)))
    anchors.append((bounds.mean_mismatch_min_q16, math.log10(MISMATCH_TAIL)))
    return _interpolate(anchors, mean_q16)


def _interpolate(anchors: Sequence[tuple[float, float]], value: float) -> float:
    """Return the piecewise linear function through ascending anchors, its ends continued."""
    kept = [anchors[0]]
    for place, height in anchors[1:]:
        if place > kept[-1][0]:
            kept.append((place, height))
    if len(kept) == 1:
        kept.append((kept[0][0] + 1, kept[0][1] + 1))
    index = next((at for at in range(1, len(kept) - 1) if value <= kept[at][0]), len(kept) - 1)
    (x0, y0), (x1, y1) = kept[index - 1], kept[index]
    return y0 + (value - x0) * (y1 - y0) / (x1 - x0)
