"""Distances with known answers, verdicts at and beside each limit, and comparisons that have no numbers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, lp
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import (
    LOG2_CEIL_Q16,
    LOG2_FLOOR_Q16,
    ONE_Q16,
    STANDARD_FLOOR_Q16,
    KindThreshold,
    MatchingProfile,
    Verdict,
    compare,
    compute_log2_distance_q16,
    compute_profile_set_digest,
    compute_standard_q16,
)

F16, F32 = FloatFormat.F16, FloatFormat.F32
LETTER = {F16: "e", F32: "f"}
formats = pytest.mark.parametrize("fmt", [F16, F32])


def pack(fmt: FloatFormat, *values: float) -> bytes:
    return struct.pack(f"<{len(values)}{LETTER[fmt]}", *values)


def distance(fmt: FloatFormat, ours: tuple[float, ...], theirs: tuple[float, ...]) -> int:
    return compute_log2_distance_q16(pack(fmt, *ours), pack(fmt, *theirs), fmt)


@formats
def test_known_distances(fmt: FloatFormat) -> None:
    """Computed apart: 65536 times log₂ of the ratio of norms, floored."""
    assert distance(fmt, (2.0, 0.0), (1.0, 0.0)) == 0
    assert distance(fmt, (3.0, 4.0), (1.0, 4.0)) == -68402  # 65536·log₂(2/√17) = −68401.98…
    assert distance(fmt, (1.5, 0.0), (1.0, 0.0)) == -ONE_Q16
    assert distance(fmt, (5.0, 0.0), (1.0, 0.0)) == 2 * ONE_Q16
    assert distance(fmt, (4.0, 0.0), (1.0, 0.0)) == 103872  # 65536·log₂3 = 103872.4…
    assert distance(fmt, (1.0, 1.0), (1.0, 0.0)) == 0
    assert distance(fmt, (1.0, 1.0), (0.0, 1.0)) == 0
    assert distance(fmt, (2.0, 2.0), (1.0, 2.0)) == -76085  # −½·65536·log₂5 = −76084.93…


@formats
def test_a_sign_flip_is_twice_the_norm(fmt: FloatFormat) -> None:
    row = (0.75, -3.0, 1.25)
    assert distance(fmt, row, tuple(-value for value in row)) == ONE_Q16


@formats
def test_equal_rows_are_the_floor_also_when_zero_or_negative_zero(fmt: FloatFormat) -> None:
    for ours, theirs in (
        ((1.0, -2.0), (1.0, -2.0)),
        ((0.0, 0.0), (0.0, 0.0)),
        ((0.0, -0.0), (-0.0, 0.0)),
        ((-0.0, 1.0), (0.0, 1.0)),
    ):
        assert distance(fmt, ours, theirs) == LOG2_FLOOR_Q16


@formats
def test_anything_against_the_zero_row_is_the_ceiling(fmt: FloatFormat) -> None:
    smallest = (2.0**-24,) if fmt is F16 else (2.0**-149,)
    assert distance(fmt, smallest, (0.0,)) == LOG2_CEIL_Q16
    assert distance(fmt, (0.0, 1.0), (-0.0, 0.0)) == LOG2_CEIL_Q16


@formats
def test_the_zero_forgery_is_one_whole_norm_away(fmt: FloatFormat) -> None:
    assert distance(fmt, (0.1, -7.0, 3.0), (0.0, 0.0, 0.0)) == LOG2_CEIL_Q16
    assert distance(fmt, (0.0, 0.0, 0.0), (0.1, -7.0, 3.0)) == 0


def test_extreme_float32_ratios_are_clamped() -> None:
    huge, tiny = 1.5 * 2.0**127, 2.0**-149
    assert distance(F32, (huge, 0.0), (tiny, 0.0)) == LOG2_CEIL_Q16
    assert distance(F32, (huge, tiny), (huge, 0.0)) == LOG2_FLOOR_Q16
    assert distance(F32, (huge, -huge), (-huge, huge)) == ONE_Q16
    assert distance(F32, (2.0**41, 0.0), (1.0, 0.0)) == LOG2_CEIL_Q16
    assert distance(F32, (2.0**39, 0.0), (1.0, 0.0)) < LOG2_CEIL_Q16


@pytest.mark.parametrize(("fmt", "unit"), [(F16, 2.0**-24), (F32, 2.0**-149)])
def test_subnormals_are_numbers_like_others(fmt: FloatFormat, unit: float) -> None:
    assert distance(fmt, (4 * unit,), (1 * unit,)) == distance(fmt, (4.0,), (1.0,))
    assert distance(fmt, (1024 * unit,), (1023 * unit,)) == distance(fmt, (1024.0,), (1023.0,))
    least_normal = 2.0**-14 if fmt is F16 else 2.0**-126
    expected = (-10 if fmt is F16 else -23) * ONE_Q16
    assert distance(fmt, (least_normal + unit,), (least_normal,)) == expected
    assert distance(fmt, (least_normal - unit,), (least_normal,)) == expected


@pytest.mark.parametrize("shift", [-126, -100, -48, -16, 0, 15, 16, 17, 64, 126])
def test_float32_distance_does_not_depend_on_a_common_power_of_two(shift: int) -> None:
    """Also across the multiples of 16 where another table serves the row."""
    ours, theirs = (1.25, -0.5, 1.9), (1.3, -0.5, 1.75)
    factor = 2.0**shift
    scaled = (tuple(value * factor for value in ours), tuple(value * factor for value in theirs))
    assert distance(F32, *scaled) == distance(F32, ours, theirs)


def test_formats_agree_on_what_both_can_hold() -> None:
    ours, theirs = (1.5, -0.25, 1024.0, 2.0**-24), (1.25, 0.25, 1023.0, 0.0)
    assert distance(F16, ours, theirs) == distance(F32, ours, theirs)


@formats
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_has_no_distance(fmt: FloatFormat, value: float) -> None:
    good, bad = pack(fmt, 1.0, 2.0), pack(fmt, 1.0, value)
    for ours, theirs in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(MatchingError, match="not finite"):
            compute_log2_distance_q16(ours, theirs, fmt)


@formats
def test_rows_of_no_different_or_broken_size_have_no_distance(fmt: FloatFormat) -> None:
    for ours, theirs in ((b"", b""), (bytes(4), bytes(8)), (bytes(8), bytes(4)), (bytes(5), bytes(5))):
        with pytest.raises(MatchingError, match="cannot be compared"):
            compute_log2_distance_q16(ours, theirs, fmt)


# Verdicts

K0: RowKey = (RowKind.K, 0)
V0: RowKey = (RowKind.V, 0)
SCORES: RowKey = (RowKind.SCORES, 0)


def make_profile(**changes: Any) -> MatchingProfile:
    profile = MatchingProfile(
        thresholds=(
            KindThreshold(RowKind.K, 0, -10 * ONE_Q16, ONE_Q16),
            KindThreshold(RowKind.V, 0, -8 * ONE_Q16, 2 * ONE_Q16),
            KindThreshold(RowKind.SCORES, 0, -20 * ONE_Q16, ONE_Q16),
        ),
        mean_match_max_q16=ONE_Q16,
        mean_mismatch_min_q16=2 * ONE_Q16,
        peak_match_max_q16=3 * ONE_Q16,
        peak_mismatch_min_q16=5 * ONE_Q16,
        about={"model_id": "ab" * 32, "honest_rows": 4096, "generator_stack": "fake"},
    )
    return replace(profile, **changes)


PROFILE = make_profile()


def apart(log2: int, fmt: FloatFormat = F32) -> tuple[bytes, bytes]:
    """Two rows exactly 2^log2 apart."""
    return pack(fmt, 1.0, 2.0**log2), pack(fmt, 1.0, 0.0)


def run(*positions: dict[RowKey, int], profile: MatchingProfile = PROFILE) -> Any:
    """Compare rows at the given base-2 log distances, one mapping for each position."""
    rows = [{key: apart(log2) for key, log2 in keys.items()} for keys in positions]
    ours = {place: {key: pair[0] for key, pair in row.items()} for place, row in enumerate(rows)}
    theirs = {place: {key: pair[1] for key, pair in row.items()} for place, row in enumerate(rows)}
    return compare(profile, ours, theirs, F32)


def test_rows_are_standardised_by_their_own_kind_and_layer() -> None:
    result = run({K0: -10, V0: -6})
    assert result.verdict is Verdict.MATCH
    assert (result.mean_q16, result.peak_q16, result.row_count) == (ONE_Q16 // 2, ONE_Q16, 2)
    assert result.worst == (0, RowKind.V, 0)
    assert result.rows == ((0, RowKind.K, 0, -10 * ONE_Q16), (0, RowKind.V, 0, -6 * ONE_Q16))


@pytest.mark.parametrize(
    ("mean", "peak", "verdict"),
    [
        (-1, -1, Verdict.MATCH),
        (0, -1, Verdict.INCONCLUSIVE),
        (-1, 0, Verdict.INCONCLUSIVE),
        (0, 0, Verdict.INCONCLUSIVE),
        (1, 0, Verdict.MISMATCH),
        (0, 1, Verdict.MISMATCH),
        (-1, 1, Verdict.MISMATCH),
    ],
)
def test_limits_belong_to_the_better_side(mean: int, peak: int, verdict: Verdict) -> None:
    """Each statistic below both of its limits by 1 in 65,536 (−1), on its mismatch limit (0), or above it (1)."""
    limits = {-1: (ONE_Q16, ONE_Q16), 0: (ONE_Q16 - 1, ONE_Q16), 1: (0, ONE_Q16 - 1)}
    profile = make_profile(
        mean_match_max_q16=limits[mean][0],
        mean_mismatch_min_q16=limits[mean][1],
        peak_match_max_q16=limits[peak][0],
        peak_mismatch_min_q16=limits[peak][1],
    )
    assert run({K0: -9}, profile=profile).verdict is verdict


def test_one_bad_row_among_many_is_a_mismatch_by_its_peak() -> None:
    honest = [{K0: -10} for _ in range(40)]
    result = run(*honest, {K0: -4}, *honest)
    assert (result.verdict, result.peak_q16, result.worst) == (
        Verdict.MISMATCH,
        6 * ONE_Q16,
        (40, RowKind.K, 0),
    )
    assert result.mean_q16 < ONE_Q16


def test_a_small_shift_of_all_rows_is_a_mismatch_by_their_mean() -> None:
    result = run(*[{K0: -7} for _ in range(4)])
    assert (result.verdict, result.mean_q16, result.peak_q16) == (Verdict.MISMATCH, 3 * ONE_Q16, 3 * ONE_Q16)
    assert run(*[{K0: -8} for _ in range(4)]).verdict is Verdict.INCONCLUSIVE


def test_rows_that_are_too_exact_cannot_hide_bad_ones() -> None:
    """Eight rows three scales off, one bit for bit equal: unclamped, its −30 would outweigh them all."""
    bad = [{K0: -7} for _ in range(8)]
    equal = pack(F32, 1.0, 1.0)
    ours = {place: {K0: apart(-7)[0]} for place in range(len(bad))} | {8: {K0: equal}}
    theirs = {place: {K0: apart(-7)[1]} for place in range(len(bad))} | {8: {K0: equal}}
    result = compare(PROFILE, ours, theirs, F32)
    assert result.rows[-1][3] == LOG2_FLOOR_Q16
    assert result.mean_q16 == (8 * 3 * ONE_Q16 + STANDARD_FLOOR_Q16) // 9
    assert result.verdict is Verdict.MISMATCH


def test_standardising_floors_and_clamps() -> None:
    threshold = KindThreshold(RowKind.K, 0, 10, 3 * ONE_Q16)
    assert compute_standard_q16(threshold, 10) == 0
    assert compute_standard_q16(threshold, 9) == -1
    assert compute_standard_q16(threshold, 14) == 1
    assert compute_standard_q16(threshold, LOG2_FLOOR_Q16) == STANDARD_FLOOR_Q16


def test_mean_is_floored() -> None:
    result = run({K0: -10, V0: -8, SCORES: -20}, profile=make_profile())
    assert result.mean_q16 == 0
    thresholds = (KindThreshold(RowKind.K, 0, -10 * ONE_Q16 + 1, ONE_Q16), *PROFILE.thresholds[1:])
    assert run({K0: -10, V0: -8}, profile=make_profile(thresholds=thresholds)).mean_q16 == -1


def test_score_rows_are_float32_beside_float16_rows() -> None:
    k_ours, k_theirs = apart(-10, F16)
    s_ours, s_theirs = apart(-20, F32)
    result = compare(PROFILE, {3: {K0: k_ours, SCORES: s_ours}}, {3: {K0: k_theirs, SCORES: s_theirs}}, F16)
    assert [row[3] for row in result.rows] == [-10 * ONE_Q16, -20 * ONE_Q16]
    assert result.verdict is Verdict.MATCH


def test_the_committed_side_divides() -> None:
    one, four = pack(F32, 1.0), pack(F32, 4.0)
    assert compare(PROFILE, {0: {K0: four}}, {0: {K0: one}}, F32).rows[0][3] == 103872
    assert compare(PROFILE, {0: {K0: one}}, {0: {K0: four}}, F32).rows[0][3] == 103872 - 2 * ONE_Q16


ROW = pack(F32, 1.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({0: {}}, {0: {}}),
        ({0: {K0: ROW}}, {}),
        ({0: {K0: ROW}}, {1: {K0: ROW}}),
        ({0: {K0: ROW}}, {0: {K0: ROW}, 1: {K0: ROW}}),
        ({0: {K0: ROW}}, {0: {V0: ROW}}),
        ({0: {K0: ROW, V0: ROW}}, {0: {K0: ROW}}),
        ({0: {K0: ROW}}, {0: {K0: ROW + ROW}}),
        ({0: {(RowKind.K, 1): ROW}}, {0: {(RowKind.K, 1): ROW}}),
        ({0: {(RowKind.HIDDEN, 0): ROW}}, {0: {(RowKind.HIDDEN, 0): ROW}}),
        ({0: {K0: ROW}}, {0: {K0: pack(F32, float("nan"))}}),
    ],
)
def test_no_verdict_without_numbers(ours: dict[int, Any], theirs: dict[int, Any]) -> None:
    with pytest.raises(MatchingError):
        compare(PROFILE, ours, theirs, F32)


# Profiles


def test_profile_survives_json() -> None:
    data = json.loads(json.dumps(PROFILE.to_dict()))
    again = MatchingProfile.from_dict(data)
    assert again == PROFILE
    assert again.digest() == PROFILE.digest()
    assert hash(again) == hash(PROFILE)


def test_profile_digest_does_not_depend_on_the_order_of_about() -> None:
    assert make_profile(about=dict(sorted(PROFILE.about.items(), reverse=True))).digest() == PROFILE.digest()


def test_profile_digest_binds_every_field() -> None:
    k, v, s = PROFILE.thresholds
    variants = [
        PROFILE,
        make_profile(thresholds=(k, v)),
        make_profile(thresholds=(replace(k, layer=1), v, s)),
        make_profile(thresholds=(replace(k, centre_q16=0), v, s)),
        make_profile(thresholds=(replace(k, scale_q16=1), v, s)),
        make_profile(thresholds=(k, v, replace(s, kind=RowKind.HIDDEN))),
        make_profile(mean_match_max_q16=0),
        make_profile(mean_mismatch_min_q16=ONE_Q16),
        make_profile(peak_match_max_q16=0),
        make_profile(peak_mismatch_min_q16=4 * ONE_Q16),
        make_profile(about={}),
        make_profile(about={**PROFILE.about, "honest_rows": "4096"}),
        make_profile(about={**PROFILE.about, "honest_rows": 4097}),
        make_profile(about={**PROFILE.about, "more": ""}),
    ]
    assert len({profile.digest() for profile in variants}) == len(variants)


def test_profile_keeps_its_own_about() -> None:
    about: dict[str, str | int] = {"model_id": "x"}
    profile = make_profile(about=about)
    before = profile.digest()
    about["model_id"] = "y"
    assert profile.digest() == before


def test_profile_set_digest_is_of_a_set() -> None:
    other = make_profile(about={})
    both = compute_profile_set_digest([PROFILE, other])
    assert both == compute_profile_set_digest([other, PROFILE, other])
    assert both != compute_profile_set_digest([PROFILE])
    assert compute_profile_set_digest([]) != lp()


@pytest.mark.parametrize(
    "make",
    [
        lambda: KindThreshold(RowKind.RAW_DIGEST, 0, 0, 1),
        lambda: KindThreshold(1, 0, 0, 1),  # type: ignore[arg-type]
        lambda: KindThreshold(RowKind.K, -1, 0, 1),
        lambda: KindThreshold(RowKind.K, 512, 0, 1),
        lambda: KindThreshold(RowKind.K, 0, LOG2_CEIL_Q16 + 1, 1),
        lambda: KindThreshold(RowKind.K, 0, 0, 0),
        lambda: KindThreshold(RowKind.K, 0, 0, -1),
        lambda: KindThreshold(RowKind.K, 0, 0.0, 1),  # type: ignore[arg-type]
        lambda: make_profile(thresholds=()),
        lambda: make_profile(thresholds=PROFILE.thresholds[::-1]),
        lambda: make_profile(thresholds=PROFILE.thresholds[:1] * 2),
        lambda: make_profile(mean_match_max_q16=2 * ONE_Q16 + 1),
        lambda: make_profile(peak_match_max_q16=5 * ONE_Q16 + 1),
        lambda: make_profile(mean_match_max_q16=1.0),
        lambda: make_profile(peak_mismatch_min_q16=2**63),
        lambda: make_profile(about=[]),
        lambda: make_profile(about={"a": 1.5}),
        lambda: make_profile(about={"a": True}),
        lambda: make_profile(about={1: "a"}),
        lambda: make_profile(about={"a": "\ud800"}),
        lambda: make_profile(about={"a": "x" * 5000}),
        lambda: make_profile(about={"a": 2**63}),
    ],
)
def test_profiles_out_of_bounds_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(MatchingError):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "matching-profile.v2"},
        {"extra": 1},
        {"thresholds": "K"},
        {"thresholds": [["K", 0, 0]]},
        {"thresholds": [["Q", 0, 0, 1]]},
        {"thresholds": [[1, 0, 0, 1]]},
        {"thresholds": [["K", "0", 0, 1]]},
        {"thresholds": [["RAW_DIGEST", 0, 0, 1]]},
        {"thresholds": [None]},
        {"mean_match_max_q16": "1"},
        {"mean_match_max_q16": None},
        {"about": None},
    ],
)
def test_from_dict_is_strict(change: dict[str, object]) -> None:
    with pytest.raises(MatchingError):
        MatchingProfile.from_dict({**PROFILE.to_dict(), **change})


def test_from_dict_misses_no_field() -> None:
    data = PROFILE.to_dict()
    for name in data:
        with pytest.raises(MatchingError, match="exactly the fields"):
            MatchingProfile.from_dict({key: value for key, value in data.items() if key != name})
