"""Thresholds come from the measured maximum, keep their margin, and refuse to come from nothing."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from pocache.engine.measure import list_rows
from pocache.numerics.calibration import (
    BAND_Q16,
    BLIND_CENTRE_Q16,
    CENTRE_MIN_Q16,
    FIT_JOBS_MIN,
    MARGIN_MIN_Q16,
    ONE_Q16,
    Distances,
    HonestRun,
    compute_false_reject_ppm,
    compute_profile,
    draw_positions,
)
from pocache.numerics.tails import bound_rate, fit_limit
from pocache.protocol.encoding import FloatFormat, RowKey, RowKind
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import LOG2_FLOOR_Q16, MatchingProfile, Verdict, judge

K0, V0, K1, V1 = (RowKind.K, 0), (RowKind.V, 0), (RowKind.K, 1), (RowKind.V, 1)


def build_leaf(*distances: float) -> Distances:
    return {key: int(value * ONE_Q16) for key, value in zip((K0, V0, K1, V1), distances, strict=True)}


def profile_of(*leaves: Distances, margin_q16: int = MARGIN_MIN_Q16) -> MatchingProfile:
    return compute_profile(
        [HonestRun((leaf,), 1) for leaf in leaves],
        float_format=FloatFormat.F32,
        margin_q16=margin_q16,
        about={"model_id": "m"},
    )


def test_the_margin_is_at_least_ten_times() -> None:
    assert 2 ** (MARGIN_MIN_Q16 / ONE_Q16) >= 10 > 2 ** ((MARGIN_MIN_Q16 - 1) / ONE_Q16)
    with pytest.raises(MatchingError, match="ten times"):
        profile_of(build_leaf(-20, -20, -20, -20), margin_q16=MARGIN_MIN_Q16 - 1)


def test_limits_are_the_largest_honest_values_plus_margin_and_band() -> None:
    """Centres are medians (-20); the third leaf is 3, 1, 0, 0 above them."""
    leaf = build_leaf(-20, -20, -20, -20)
    profile = profile_of(leaf, leaf, build_leaf(-17, -19, -20, -20))
    assert {row.centre_q16 for row in profile.thresholds} == {-20 * ONE_Q16}
    assert profile.peak_match_max_q16 == 3 * ONE_Q16 + MARGIN_MIN_Q16
    assert profile.mean_match_max_q16 == 2 * ONE_Q16 + MARGIN_MIN_Q16, "its layer 0 alone has the mean 2"
    assert profile.peak_mismatch_min_q16 == profile.peak_match_max_q16 + BAND_Q16
    assert profile.mean_mismatch_min_q16 == profile.mean_match_max_q16 + BAND_Q16


def test_equal_rows_do_not_pull_a_centre_below_rounding() -> None:
    equal = dict.fromkeys((K0, V0, K1, V1), LOG2_FLOOR_Q16)
    floors = {FloatFormat.F32: CENTRE_MIN_Q16[FloatFormat.F32], FloatFormat.F16: BLIND_CENTRE_Q16}
    for float_format, floor in floors.items():
        profile = compute_profile([HonestRun((equal,), 1)], float_format=float_format, about={})
        assert {row.centre_q16 for row in profile.thresholds} == {floor}
        assert profile.peak_match_max_q16 == MARGIN_MIN_Q16, "a threshold never lies below the centre"


def test_score_rows_are_float32_whatever_the_others_are() -> None:
    leaf = dict.fromkeys((K0, V0, (RowKind.SCORES, 0)), LOG2_FLOOR_Q16)
    rounded = dict.fromkeys(leaf, -23 * ONE_Q16)  # one in eight: too few to move a centre
    profile = compute_profile([HonestRun((*[leaf] * 7, rounded), 1)], float_format=FloatFormat.F16, about={})
    centres = {row.kind: row.centre_q16 for row in profile.thresholds}
    assert centres[RowKind.SCORES] == CENTRE_MIN_Q16[FloatFormat.F32]
    assert centres[RowKind.K] == CENTRE_MIN_Q16[FloatFormat.F16]


def test_the_profile_says_what_it_is() -> None:
    leaf = build_leaf(-20, -20, -20, -20)
    about = profile_of(leaf, build_leaf(-17, -20, -20, -20), leaf).about
    assert about["model_id"] == "m"
    assert about["honest_leaf_count"] == 3
    assert about["honest_row_count"] == 12
    assert about["honest_peak_max_q16"] == 3 * ONE_Q16
    assert about["margin_q16"] == MARGIN_MIN_Q16


def test_the_bound_on_false_rejects_is_the_rule_of_three() -> None:
    assert compute_false_reject_ppm(3_000) == 1_000
    assert compute_false_reject_ppm(7) == 428_572
    assert compute_false_reject_ppm(1) == 1_000_000


@pytest.mark.parametrize("leaves", [[], [{}], [{K0: 0}], [{K0: 0, V0: 0, K1: 0}], [{K1: 0, V1: 0}]])
def test_distances_that_cover_no_whole_layers_are_refused(leaves: list[Distances]) -> None:
    with pytest.raises(MatchingError, match="every layer"):
        profile_of(*leaves)


def build_jobs(count: int, spread: float = 0.5, *, missed: float = 0.0) -> list[HonestRun]:
    """Return full-depth runs of 24 positions, 8 of them prompt, whose distances scatter around 2^-9."""
    source = random.Random(7)
    keys = (K0, V0, K1, V1, (RowKind.HIDDEN, 0), (RowKind.SCORES, 0))
    runs = []
    for _ in range(count):
        leaves = tuple(
            {
                key: int(source.gauss(-9, spread) * ONE_Q16)
                for key in keys
                if key[0] is not RowKind.SCORES or position >= 7
            }
            for position in range(24)
        )
        margins = tuple(source.randrange(900) if source.random() < missed else None for _ in range(17))
        runs.append(HonestRun(leaves, 8, margins))
    return runs


def judge_jobs(profile: MatchingProfile, runs: list[HonestRun], sample_count: int) -> Counter[Verdict]:
    source = random.Random(3)
    found: Counter[Verdict] = Counter()
    for run in runs:
        chosen = draw_positions(source, len(run.distances), run.prompt_count, sample_count)
        rows = [
            (position, kind, layer, distance)
            for position in chosen
            for (kind, layer), distance in run.distances[position].items()
        ]
        margins = [run.margins[position - 7] for position in chosen if position >= 7]
        found[judge(profile, rows, margins).verdict] += 1
    return found


def test_enough_jobs_have_their_tails_fitted_and_few_have_not() -> None:
    few, many = (
        compute_profile(build_jobs(count), float_format=FloatFormat.F16, about={})
        for count in (FIT_JOBS_MIN - 1, FIT_JOBS_MIN)
    )
    assert few.limits.means == ()
    assert "fitted" in str(many.about["method"])
    counts = [(one.is_full_depth, one.position_count) for one in many.limits.means]
    assert counts == [(full, count) for full in (False, True) for count in (1, 2, 4, 8, 16)]
    for one in many.limits.means:
        assert one.grades_q16[-1] <= one.match_max_q16 < one.mismatch_min_q16
    full = [one.mismatch_min_q16 for one in many.limits.means if one.is_full_depth]
    assert full == sorted(full, reverse=True), "more positions allow less"
    assert full[-1] < full[0] // 2
    scales = [row.scale_q16 for row in many.thresholds]
    assert all(abs(scale - ONE_Q16 // 2) < ONE_Q16 // 12 for scale in scales), "the spread that was put in"


def test_fitted_limits_pass_what_is_honest_and_not_what_is_a_little_off() -> None:
    """Rows that all lie one spread too far are told from honest ones over 16 positions, by their mean alone."""
    profile = compute_profile(build_jobs(400, missed=0.01), float_format=FloatFormat.F16, about={})
    honest = judge_jobs(profile, build_jobs(600, missed=0.01), 16)
    assert honest[Verdict.MISMATCH] == 0
    assert honest[Verdict.INCONCLUSIVE] <= 6
    moved = [
        replace(
            run,
            distances=tuple(
                {key: distance + ONE_Q16 // 2 for key, distance in leaf.items()} for leaf in run.distances
            ),
        )
        for run in build_jobs(100, missed=0.01)
    ]
    assert judge_jobs(profile, moved, 16)[Verdict.MISMATCH] >= 95
    assert judge_jobs(profile, moved, 1)[Verdict.MISMATCH] < 50, "one position is not enough"


def test_token_limits_are_bounds_on_measured_rates() -> None:
    profile = compute_profile(build_jobs(100, missed=0.05), float_format=FloatFormat.F16, about={})
    tokens = profile.limits.tokens
    assert tokens is not None
    seen = profile.about["honest_token_mismatch_count"]
    assert isinstance(seen, int)
    assert tokens.mismatch_rate_q32 * 1_700 > seen << 32
    assert tokens.clip_q16 == ONE_Q16 // 16, "no honest margin reaches the least clip"
    assert tokens.margin_rate_q32 < tokens.mismatch_rate_q32, "small margins count for little"
    assert (tokens.peak_match_max_q16, tokens.peak_mismatch_min_q16) == (ONE_Q16 // 4, ONE_Q16)


def test_rows_nearer_than_decoding_comes_are_said_to_be_too_exact() -> None:
    profile = compute_profile(build_jobs(100), float_format=FloatFormat.F16, about={})
    run = build_jobs(1)[0]
    rows = [
        (position, kind, layer, distance)
        for position, leaf in enumerate(run.distances)
        for (kind, layer), distance in leaf.items()
    ]
    assert not judge(profile, rows).is_too_exact
    exact = [(position, kind, layer, LOG2_FLOOR_Q16) for position, kind, layer, _ in rows]
    result = judge(profile, exact)
    assert result.is_too_exact
    assert result.verdict is Verdict.MATCH, "a signal, never a verdict"


def test_a_routed_model_is_judged_without_a_maximum() -> None:
    """One row in forty is a whole norm off, as honest routing flips are: matched; nine in ten: not."""

    def flip(runs: list[HonestRun], share: float) -> list[HonestRun]:
        source = random.Random(5)

        def push(leaf: Distances) -> Distances:
            return {
                key: -source.randrange(ONE_Q16) if key == K1 else distance for key, distance in leaf.items()
            }

        return [
            replace(
                run,
                distances=tuple((push(leaf) if source.random() < share else leaf) for leaf in run.distances),
            )
            for run in runs
        ]

    profile = compute_profile(
        flip(build_jobs(200), 0.025), float_format=FloatFormat.F16, about={}, is_routed=True
    )
    assert profile.limits.routing is not None
    assert judge_jobs(profile, flip(build_jobs(300), 0.025), 16)[Verdict.MISMATCH] == 0
    assert judge_jobs(profile, flip(build_jobs(50), 0.9), 16)[Verdict.MISMATCH] == 50


def test_a_fit_needs_values() -> None:
    with pytest.raises(MatchingError, match="too few"):
        fit_limit([1] * (FIT_JOBS_MIN - 1), 1_000)
    with pytest.raises(MatchingError, match="no trials"):
        bound_rate(0, 0, one=1)


def test_a_fitted_limit_covers_an_exponential_tail() -> None:
    """Of 200,000 values of the same law, about 20 may exceed the limit of one in 10,000 that 500 gave."""
    source = random.Random(11)
    limits = [
        fit_limit([int(source.expovariate(1) * ONE_Q16) for _ in range(500)], 10_000) for _ in range(40)
    ]
    tail = -math.log(1e-4) * ONE_Q16
    assert sum(limit > tail for limit in limits) >= 38
    assert max(limits) < 2 * tail


def test_a_rate_is_bounded_from_above() -> None:
    assert bound_rate(0, 1_000, one=1_000_000) == 4_000
    assert bound_rate(50, 1_000, one=1_000) == 67
    assert bound_rate(1_000, 1_000, one=1_000) == 1_000


def test_rows_that_all_came_out_equal_reject_no_job_that_rounds() -> None:
    """Sixty jobs without any rounding fit no limit; the next one differs as bfloat16 does, and is no mismatch."""
    keys: list[RowKey] = [(kind, layer) for layer in range(2) for kind in (RowKind.K, RowKind.V)]
    keys += [(RowKind.HIDDEN, 0), (RowKind.SCORES, 0)]

    def make_run(distance: int) -> HonestRun:
        return HonestRun(tuple(dict.fromkeys(keys, distance) for _ in range(40)), 1, (None,) * 40)

    equal = make_run(LOG2_FLOOR_Q16)
    profile = compute_profile([equal] * 60, float_format=FloatFormat.F16, about={})
    assert profile.about["false_reject_per_job"] == "not fitted"
    rows = list(list_rows(make_run(int(-7.3 * ONE_Q16)).distances))
    assert judge(profile, rows).verdict is Verdict.MATCH
    far = list(list_rows(make_run(-3 * ONE_Q16).distances))
    assert judge(profile, far).verdict is Verdict.MISMATCH
