"""The test over a worker's jobs ejects small cheats after a few jobs and honest workers almost never."""

from __future__ import annotations

import math
import random

import pytest

from pocache.protocol.errors import MatchingError
from pocache.protocol.sprt import (
    CHEAT_PERMILLE,
    CLEAR_Q16,
    EJECT_Q16,
    HONEST_PERMILLE,
    ONE_Q16,
    WEIGHTS_Q16,
    JobRecord,
    Standing,
    advance_record,
    judge_jobs,
)


def draw_grades(permille: tuple[int, ...], count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(4), weights=permille, k=count)


def test_weights_are_the_floors_of_their_logarithms_and_ascend() -> None:
    exact = [
        math.floor(math.log2(cheat / honest) * ONE_Q16)
        for cheat, honest in zip(CHEAT_PERMILLE, HONEST_PERMILLE, strict=True)
    ]
    assert list(WEIGHTS_Q16) == exact == sorted(exact)
    assert sum(HONEST_PERMILLE) == sum(CHEAT_PERMILLE) == 1_000


def test_the_expected_ratio_of_an_honest_worker_is_at_most_one() -> None:
    """What Ville's inequality needs: then the sum reaches 20 with a probability below 2^-20."""
    ratio = sum(
        share / 1_000 * 2.0 ** (weight / ONE_Q16)
        for share, weight in zip(HONEST_PERMILLE, WEIGHTS_Q16, strict=True)
    )
    assert 0.999 < ratio <= 1


@pytest.mark.parametrize(
    ("grades", "jobs"), [([3] * 9, 4), ([2] * 20, 9), ([1] * 100, 54), ([3, 3, 0] * 9, 7)]
)
def test_a_cheat_is_ejected_after_so_many_jobs(grades: list[int], jobs: int) -> None:
    record = judge_jobs(grades)
    assert record.standing is Standing.EJECTED
    assert record.job_count == jobs, "what comes after an ejection is not counted"
    assert record.sum_q16 >= EJECT_Q16
    assert advance_record(record, 0) is record


def test_a_clean_worker_is_cleared_again_and_again() -> None:
    record = judge_jobs([0] * 90)
    assert (record.cycle_count, record.sum_q16, record.standing) == (10, 0, Standing.CLEARED)
    assert record.grade_counts == (90, 0, 0, 0)
    assert advance_record(record, 1).standing is Standing.OPEN
    assert 9 * WEIGHTS_Q16[0] <= CLEAR_Q16 < 8 * WEIGHTS_Q16[0]


def test_good_jobs_beforehand_do_not_buy_bad_ones() -> None:
    """Credit ends with the cycle: a thousand clean jobs delay an ejection by no more than a few."""
    later = judge_jobs([*[0] * 1_000, *[3] * 6])
    assert later.standing is Standing.EJECTED


def test_no_honest_worker_of_two_thousand_is_ejected_and_every_cheat_is() -> None:
    honest = [judge_jobs(draw_grades(HONEST_PERMILLE, 200, seed)) for seed in range(2_000)]
    assert not [one for one in honest if one.standing is Standing.EJECTED]
    cheats = [judge_jobs(draw_grades(CHEAT_PERMILLE, 200, seed)) for seed in range(500)]
    assert all(one.standing is Standing.EJECTED for one in cheats)
    assert sorted(one.job_count for one in cheats)[250] < 35


@pytest.mark.parametrize("grade", [-1, 4, True, 1.0])
def test_no_other_grades(grade: object) -> None:
    with pytest.raises(MatchingError, match="no grade"):
        advance_record(JobRecord(), grade)  # type: ignore[arg-type]
