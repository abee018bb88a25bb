"""Thresholds come from the measured maximum, keep their margin, and refuse to come from nothing."""

from __future__ import annotations

import pytest

from pocache.numerics.calibration import (
    BAND_Q16,
    CENTRE_MIN_Q16,
    MARGIN_MIN_Q16,
    ONE_Q16,
    LeafDistances,
    compute_false_reject_ppm,
    compute_profile,
)
from pocache.protocol.encoding import FloatFormat, RowKind
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import LOG2_FLOOR_Q16, MatchingProfile

K0, V0, K1, V1 = (RowKind.K, 0), (RowKind.V, 0), (RowKind.K, 1), (RowKind.V, 1)


def build_leaf(*distances: float) -> LeafDistances:
    return {key: int(value * ONE_Q16) for key, value in zip((K0, V0, K1, V1), distances, strict=True)}


def profile_of(*leaves: LeafDistances, margin_q16: int = MARGIN_MIN_Q16) -> MatchingProfile:
    return compute_profile(
        leaves, float_format=FloatFormat.F32, margin_q16=margin_q16, about={"model_id": "m"}
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
    for float_format, floor in CENTRE_MIN_Q16.items():
        profile = compute_profile([equal], float_format=float_format, about={})
        assert {row.centre_q16 for row in profile.thresholds} == {floor}
        assert profile.peak_match_max_q16 == MARGIN_MIN_Q16, "a threshold never lies below the centre"


def test_score_rows_are_float32_whatever_the_others_are() -> None:
    leaf = dict.fromkeys((K0, V0, (RowKind.SCORES, 0)), LOG2_FLOOR_Q16)
    profile = compute_profile([leaf], float_format=FloatFormat.F16, about={})
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
def test_distances_that_cover_no_whole_layers_are_refused(leaves: list[LeafDistances]) -> None:
    with pytest.raises(MatchingError, match="every layer"):
        profile_of(*leaves)
