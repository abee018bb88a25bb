"""From measured honest runs to the limits of a matching profile (docs/protocol.md 7.6).

Owns the arithmetic; ``engine/calibrate.py`` measures. With enough jobs every limit is a fitted tail at the stated
false-reject rate (``tails``) and every row is standardised by its own spread; with few, a limit is the largest honest
value plus a stated margin, and the profile says so. Refuses to make a profile of no distances, of distances that do not
cover the same rows, and of a margin below ten times.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low

from pocache.numerics.tails import FIT_COUNT_MIN, bound_rate, fit_limit, fit_mean_limit
from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, get_row_format
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import (
    LOG2_FLOOR_Q16,
    KindThreshold,
    MatchingProfile,
    compute_mean_q16,
    compute_standard_q16,
)
from pocache.protocol.matching_limits import (
    GRADE_TAILS,
    MATCH_TAIL,
    MISMATCH_TAIL,
    RATE_ONE,
    Limits,
    MeanLimit,
    RoutingLimits,
    TokenLimits,
)

ONE_Q16 = 1 << 16
MARGIN_MIN_Q16 = 217_706
"""log2(10) in Q16, rounded up: the least margin of a limit over the largest honest value, where no tail is fitted."""

BAND_Q16 = ONE_Q16
"""Width of the inconclusive band there: one doubling of the distance."""

CENTRE_MIN_Q16 = {FloatFormat.F32: -24 * ONE_Q16, FloatFormat.F16: -11 * ONE_Q16}
"""Half a unit in the last place: rows that came out equal still differ by this on the next machine."""

BLIND_CENTRE_Q16 = -9 * ONE_Q16
"""Half a unit in the last place of bfloat16, where float16 rows showed no rounding at all: the next job's may."""

SCALE_MIN_Q16 = ONE_Q16 // 4
"""Least spread of a row: rows that always come out alike would turn rounding into a distance."""
NORMAL_DECILE = 1.2816
"""Upper decile of a normal distribution, in standard deviations."""

FIT_JOBS_MIN = FIT_COUNT_MIN
POSITION_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DRAW_COUNT = 2
"""Samples of each size from one job: more would be the same rows again."""

SLACK_Q16 = ONE_Q16 // 16
"""Added to every fitted limit of a mean: jobs whose rows all come out alike have no tail to fit."""

TRIM_PERMILLE = 100
OUTLIER_QUANTILE = 0.99
"""Routed models: the mean leaves out a tenth, and one honest position in a hundred is an outlier."""

CLIP_QUANTILE = 0.999
CLIP_MIN_Q16 = {FloatFormat.F32: ONE_Q16 // 1_024, FloatFormat.F16: ONE_Q16 // 16}
"""Least margin at which a token is wholly missed: above what rounding of the logits does in either format."""
PEAK_MATCH_FACTOR, PEAK_MISMATCH_FACTOR = 4, 16
"""Largest honest margin, or the clip, times this: a margin grows in proportion to the noise of the logits."""

Distances = Mapping[RowKey, int]
"""The log2 distances (Q16) of the rows of one position."""


@dataclass(frozen=True, slots=True)
class HonestRun:
    """One verification of one honest job: its distances by position, and its output tokens' margins (Q16).

    A margin is ``None`` for a token that is the best; one that is not has a margin of at least 0.
    """

    distances: tuple[Distances, ...]
    prompt_count: int
    margins: tuple[int | None, ...] = ()

    @property
    def is_full_depth(self) -> bool:
        """Whether the pass went through all layers and to the scores."""
        return (RowKind.HIDDEN, 0) in self.distances[0] or (RowKind.SCORES, 0) in self.distances[-1]


def compute_profile(
    runs: Sequence[HonestRun],
    *,
    float_format: FloatFormat,
    about: Mapping[str, str | int],
    margin_q16: int = MARGIN_MIN_Q16,
    is_routed: bool = False,
    job_count: int | None = None,
) -> MatchingProfile:
    """Return the profile of honest runs; MatchingError.

    centre = median per kind and layer. From FIT_JOBS_MIN jobs on, scale = upper decile minus median in standard
    deviations and limits are fitted tails; below, scale = 1 doubling and limits are largest value + ``margin_q16``.
    """
    if margin_q16 < MARGIN_MIN_Q16:
        raise MatchingError(f"a margin of {margin_q16} (Q16) is less than ten times")
    jobs = len(runs) if job_count is None else job_count
    is_blind = _is_blind(runs, float_format)
    is_fitted = jobs >= FIT_JOBS_MIN and not is_blind
    thresholds = _compute_thresholds(runs, float_format, is_fitted=is_fitted)
    if is_blind:
        thresholds = {
            key: replace(row, centre_q16=max(row.centre_q16, BLIND_CENTRE_Q16))
            for key, row in thresholds.items()
        }
    standards = [_standardise(thresholds, run) for run in runs]
    routing = _compute_routing(standards) if is_routed else None
    trim = 0 if routing is None else routing.trim_permille
    peaks = [max(max(leaf.values()) for leaf in run.distances) for run in standards]
    honest_mean = max(max(_compute_corner_means(leaf)) for run in standards for leaf in run.distances)
    base = _widen(honest_mean, margin_q16)
    peak = (
        (
            max(0, fit_limit(peaks, MATCH_TAIL)) + ONE_Q16,
            max(0, fit_limit(peaks, MISMATCH_TAIL)) + 2 * ONE_Q16,
        )
        if is_fitted
        else _widen(max(peaks), margin_q16)
    )
    means = _compute_means(standards, trim) if is_fitted else ()
    tokens, token_about = _compute_tokens(runs, float_format)
    leaf_count = sum(len(run.distances) for run in runs)
    return MatchingProfile(
        thresholds=tuple(thresholds[key] for key in sorted(thresholds)),
        mean_match_max_q16=base[0],
        mean_mismatch_min_q16=base[1],
        peak_match_max_q16=peak[0],
        peak_mismatch_min_q16=peak[1],
        about={
            **about,
            **token_about,
            "method": (
                "tail fitted to the largest tenth, exponential for the peak, normal for means, + 2 standard errors;"
                " scale by kind and layer"
                if is_fitted
                else "largest honest value plus margin; one doubling inconclusive; scale 1"
            ),
            "honest_run_count": len(runs),
            "honest_leaf_count": leaf_count,
            "honest_row_count": sum(len(leaf) for run in runs for leaf in run.distances),
            "honest_peak_max_q16": max(peaks),
            "honest_mean_max_q16": honest_mean,
            "margin_q16": margin_q16,
            "false_reject_per_job": "1e-5 over all statistics, from a fitted tail"
            if is_fitted
            else "not fitted",
            "false_reject_ppm_bound95": compute_false_reject_ppm(jobs),
        },
        limits=Limits(
            means=means, routing=routing, tokens=tokens, exact_max_q16=_compute_exact(standards, is_fitted)
        ),
    )


def compute_false_reject_ppm(job_count: int) -> int:
    """Return the 95 % upper bound (ppm) on the share of honest jobs over the limits when none of n was: 3/n."""
    return min(1_000_000, -(-3_000_000 // job_count))


def draw_positions(source: random.Random, leaf_count: int, prompt_count: int, count: int) -> list[int]:
    """Return ``count`` positions as an audit draws them: the last one, and at least half in the output (6.5)."""
    last, first_output = leaf_count - 1, prompt_count - 1
    chosen = {last}
    output = [position for position in range(first_output, last) if position not in chosen]
    chosen.update(source.sample(output, min(len(output), max(0, (count + 1) // 2 - 1))))
    rest = [position for position in range(leaf_count) if position not in chosen]
    chosen.update(source.sample(rest, min(len(rest), max(0, count - len(chosen)))))
    return sorted(chosen)


def _standardise(thresholds: Mapping[RowKey, KindThreshold], run: HonestRun) -> HonestRun:
    """Return the run with standardised distances."""
    leaves = tuple(
        {key: compute_standard_q16(thresholds[key], distance) for key, distance in leaf.items()}
        for leaf in run.distances
    )
    return HonestRun(leaves, run.prompt_count, run.margins)


def _widen(largest: int, margin_q16: int) -> tuple[int, int]:
    match = max(0, largest) + margin_q16
    return match, match + BAND_Q16


def _is_blind(runs: Sequence[HonestRun], float_format: FloatFormat) -> bool:
    """Whether nine tenths of float16 rows came out bit for bit equal: there is no spread to fit a limit to.

    A stack of bfloat16 that decodes and prefills alike in all jobs seen still rounds in one job of hundreds.
    """
    distances = [value for run in runs for leaf in run.distances for value in leaf.values()]
    equal = sum(value <= LOG2_FLOOR_Q16 for value in distances)
    return float_format is FloatFormat.F16 and 10 * equal > 9 * len(distances)


def _compute_thresholds(
    runs: Sequence[HonestRun], float_format: FloatFormat, *, is_fitted: bool
) -> dict[RowKey, KindThreshold]:
    distances: dict[RowKey, list[int]] = {}
    for run in runs:
        for leaf in run.distances:
            for key, distance in leaf.items():
                distances.setdefault(key, []).append(distance)
    layers = {kind: {layer for found, layer in distances if found is kind} for kind in (RowKind.K, RowKind.V)}
    if (
        not distances
        or layers[RowKind.K] != layers[RowKind.V]
        or layers[RowKind.K] != set(range(len(layers[RowKind.K])))
    ):
        raise MatchingError("honest distances must cover K and V of every layer")
    found = {}
    for (kind, layer), values in distances.items():
        centre = max(median_low(values), CENTRE_MIN_Q16[get_row_format(kind, float_format)])
        decile = sorted(values)[len(values) * 9 // 10]
        scale = max(SCALE_MIN_Q16, int((decile - centre) / NORMAL_DECILE)) if is_fitted else ONE_Q16
        found[kind, layer] = KindThreshold(kind=kind, layer=layer, centre_q16=centre, scale_q16=scale)
    return found


def _compute_means(standards: Sequence[HonestRun], trim: int) -> tuple[MeanLimit, ...]:
    """Return the limits of the mean by sample size, in shallower corners and at full depth.

    A shallower corner's rows are those of the full pass up to its layer, so each depth is measured on every job; the
    limits are those of the depth that needs the widest.
    """
    full = [run for run in standards if run.is_full_depth]
    layer_count = 1 + max(layer for _, layer in full[0].distances[0])
    found: list[MeanLimit] = []
    depths: tuple[tuple[bool, tuple[int, ...]], ...] = (
        (False, tuple(sorted({0, layer_count // 2, layer_count - 1}))),
        (True, (layer_count,)),
    )
    for is_full, layer_ends in depths:
        for count in POSITION_COUNTS:
            pools = [_draw_means(full, count, end, trim, is_full=is_full) for end in layer_ends]
            if any(len(pool) < FIT_COUNT_MIN for pool in pools):
                break
            limits = [
                max(0, *(fit_mean_limit(pool, tail) for pool in pools)) + SLACK_Q16
                for tail in (*GRADE_TAILS, MATCH_TAIL, MISMATCH_TAIL)
            ]
            # What few positions allow, more of them allow as well: a limit never rises with the sample.
            previous = found[-1] if found and found[-1].is_full_depth == is_full else None
            if previous is not None:
                before = (*previous.grades_q16, previous.match_max_q16, previous.mismatch_min_q16)
                limits = [min(pair) for pair in zip(limits, before, strict=True)]
            first, second, third, match, mismatch = limits
            found.append(MeanLimit(is_full, count, (first, second, third), match, mismatch))
    return tuple(found)


def _draw_means(
    runs: Sequence[HonestRun], count: int, layer_end: int, trim: int, *, is_full: bool
) -> list[int]:
    """Return the means over samples of ``count`` positions, for jobs that have so many."""
    means = []
    for index, run in enumerate(runs):
        if len(run.distances) < count:
            continue
        source = random.Random(f"{index} {count} {layer_end}")  # noqa: S311 - a sample of measurements
        for _ in range(DRAW_COUNT):
            chosen = draw_positions(source, len(run.distances), run.prompt_count, count)
            rows = [
                standard
                for position in chosen
                for (kind, layer), standard in run.distances[position].items()
                if is_full or (kind in (RowKind.K, RowKind.V) and layer <= layer_end)
            ]
            means.append(compute_mean_q16(rows, trim))
    return means


def _compute_routing(standards: Sequence[HonestRun]) -> RoutingLimits:
    peaks = sorted(max(leaf.values()) for run in standards for leaf in run.distances)
    cut = peaks[min(len(peaks) - 1, int(len(peaks) * OUTLIER_QUANTILE))]
    outliers = sum(peak > cut for peak in peaks)
    return RoutingLimits(TRIM_PERMILLE, cut, bound_rate(outliers, len(peaks), one=RATE_ONE))


def _compute_tokens(
    runs: Sequence[HonestRun], float_format: FloatFormat
) -> tuple[TokenLimits | None, dict[str, str | int]]:
    """Return the token limits and what they rest on; none for a schema without scores."""
    margins = [margin for run in runs for margin in run.margins]
    if not margins:
        return None, {}
    missed = sorted(margin for margin in margins if margin is not None)
    least = CLIP_MIN_Q16[float_format]
    clip = max(least, missed[min(len(missed) - 1, int(len(missed) * CLIP_QUANTILE))] if missed else 0)
    clipped = sum(min(margin, clip) for margin in missed) / clip
    mismatch_rate = bound_rate(len(missed), len(margins), one=RATE_ONE)
    # A margin in units of the clip is between 0 and 1, so its sum is bounded as a count of as many hits is.
    margin_rate = min(mismatch_rate, bound_rate(-int(-clipped // 1), len(margins), one=RATE_ONE))
    largest = max(clip, missed[-1] if missed else 0)
    limits = TokenLimits(
        clip, mismatch_rate, margin_rate, PEAK_MATCH_FACTOR * largest, PEAK_MISMATCH_FACTOR * largest
    )
    return limits, {
        "honest_token_count": len(margins),
        "honest_token_mismatch_count": len(missed),
        "honest_margin_max_q16": missed[-1] if missed else 0,
    }


def _compute_exact(standards: Sequence[HonestRun], is_fitted: bool) -> int | None:
    """Return the mean below which output rows are nearer than one honest job in a thousand decodes; None unfitted."""
    if not is_fitted:
        return None
    means = [-mean for mean in _draw_output_means(standards)]
    return -fit_mean_limit(means, GRADE_TAILS[-1]) if len(means) >= FIT_COUNT_MIN else None


def _draw_output_means(standards: Sequence[HonestRun]) -> Iterator[int]:
    for index, run in enumerate(standards):
        output = range(run.prompt_count - 1, len(run.distances))
        if not run.is_full_depth or len(output) < max(POSITION_COUNTS[:4]):
            continue
        source = random.Random(f"exact {index}")  # noqa: S311 - a sample of measurements
        chosen = source.sample(output, max(POSITION_COUNTS[:4]))
        rows = [
            standard
            for position in chosen
            for (kind, _), standard in run.distances[position].items()
            if kind in (RowKind.K, RowKind.V)
        ]
        yield sum(rows) // len(rows)


def _compute_corner_means(leaf: Distances) -> Iterable[int]:
    """Yield one leaf's mean, rounded up, in each corner it can be part of: depth by depth, then all."""
    total, count = 0, 0
    while (RowKind.K, count // 2) in leaf:
        total += leaf[RowKind.K, count // 2] + leaf[RowKind.V, count // 2]
        count += 2
        yield -(-total // count)
    yield -(-sum(leaf.values()) // len(leaf))
