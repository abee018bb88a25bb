"""The test over a worker's jobs ejects small cheats after a few jobs and honest workers almost never."""

from __future__ import annotations

import math
import random

import pytest

from pocache.protocol.errors import MatchingError
from pocache.protocol.matching_limits import RATE_ONE, TokenLimits
from pocache.protocol.sprt import (
    CHEAT_PERMILLE,
    CLEAR_Q16,
    EJECT_Q16,
    HONEST_PERMILLE,
    ONE_Q16,
    TOKEN_CHEAT_Q32,
    TOKEN_EVIDENCE_MAX_Q16,
    WEIGHTS_Q16,
    JobEvidence,
    JobRecord,
    JobTest,
    Look,
    Standing,
    advance_record,
    compute_bond,
    compute_token_evidence_q16,
    judge_job,
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


def make_limits(honest: float) -> TokenLimits:
    return TokenLimits(4_096, int(honest * RATE_ONE), int(honest * RATE_ONE), 1, 1)


def draw_evidence(limits: TokenLimits, rate: float, jobs: int, tokens: int, seed: int) -> list[int]:
    """Return the evidence of jobs whose tokens are wholly missed at a rate, a few by half."""
    source = random.Random(seed)
    found = []
    for _ in range(jobs):
        missed = sum(
            source.choice((ONE_Q16, ONE_Q16, 0)) for _ in range(tokens) if source.random() < 1.5 * rate
        )
        found.append(compute_token_evidence_q16(limits, tokens, missed))
    return found


@pytest.mark.parametrize("honest", [0.0, 1e-5, 0.001, 0.01, 0.2])
def test_evidence_of_tokens_is_the_likelihood_ratio_rounded_down(honest: float) -> None:
    limits = make_limits(honest)
    p0 = max(limits.margin_rate_q32, 1) / RATE_ONE
    p1 = max(TOKEN_CHEAT_Q32 / RATE_ONE, 4 * p0)
    for count, missed in ((1, 0), (1, 1), (11, 0), (11, 2), (64, 7)):
        exact = missed * math.log2(p1 / p0) + (count - missed) * math.log2((1 - p1) / (1 - p0))
        found = compute_token_evidence_q16(limits, count, missed * ONE_Q16) / ONE_Q16
        assert exact - count / 16_384 < found <= exact
    for part in range(
        0, ONE_Q16 + 1, 4_096
    ):  # of one token, however far it was missed: a line below coin flips
        hit, none = (compute_token_evidence_q16(limits, 1, one) / ONE_Q16 for one in (part, 0))
        chance = part / ONE_Q16
        assert 2**hit <= (1 - chance) * 2**none + chance * p1 / p0 + 1e-9
    assert (1 - p0) * 2 ** (compute_token_evidence_q16(limits, 1, 0) / ONE_Q16) + p1 <= 1 + 1e-9


def test_no_evidence_where_honest_tokens_are_missed_too_often() -> None:
    assert compute_token_evidence_q16(make_limits(0.3), 16, 9 * ONE_Q16) == 0


def test_tokens_of_many_jobs_eject_what_no_job_shows_and_nobody_honest() -> None:
    limits = make_limits(0.002)
    for seed in range(100):
        honest = judge_jobs([0] * 500, draw_evidence(limits, 0.002, 500, 11, seed))
        assert honest.standing is not Standing.EJECTED
    counts = []
    for seed in range(100):
        cheat = judge_jobs([0] * 500, draw_evidence(limits, 0.08, 500, 11, seed))
        assert cheat.standing is Standing.EJECTED
        assert max(cheat.grade_counts) == cheat.job_count, "by its tokens alone"
        counts.append(cheat.job_count)
    assert sorted(counts)[50] <= 20
    assert max(counts) <= 60


def test_one_jobs_tokens_eject_nobody_and_good_ones_buy_no_bad_ones() -> None:
    assert judge_jobs([0], [1 << 40]).standing is Standing.OPEN
    assert judge_jobs([0] * 4, [1 << 40] * 4).standing is Standing.EJECTED
    assert 3 * TOKEN_EVIDENCE_MAX_Q16 < EJECT_Q16
    assert judge_jobs([0] * 1_004, [*[-ONE_Q16] * 1_000, *[1 << 40] * 4]).standing is Standing.OPEN
    assert judge_jobs([0] * 1_006, [*[-ONE_Q16] * 1_000, *[1 << 40] * 6]).standing is Standing.EJECTED


@pytest.mark.parametrize(("short", "standing"), [(0, Standing.EJECTED), (1, Standing.OPEN)])
def test_it_crosses_at_the_threshold_and_not_below(short: int, standing: Standing) -> None:
    """Of either test, which is named; where both cross, it is the one over grades."""
    grades = JobRecord(sum_q16=EJECT_Q16 - WEIGHTS_Q16[3] - short)
    after = advance_record(grades, 3)
    assert (after.standing, after.sum_q16) == (standing, EJECT_Q16 - short)
    assert after.crossed == (None if short else JobTest.GRADES)
    tokens = JobRecord(token_sum_q16=EJECT_Q16 - 1_000 - short)
    after = advance_record(tokens, 0, 1_000)
    assert (after.standing is Standing.EJECTED, after.token_sum_q16) == (not short, EJECT_Q16 - short)
    assert after.crossed == (None if short else JobTest.TOKENS)
    both = JobRecord(sum_q16=grades.sum_q16, token_sum_q16=tokens.token_sum_q16)
    assert advance_record(both, 3, 1_000).crossed == (None if short else JobTest.GRADES)


@pytest.mark.parametrize(
    ("grades", "expected"), [((0,), 0), ((3,), 3), ((3, 0), 0), ((3, 0, 0), 0), ((3, 2, 0), 2)]
)
def test_one_liar_moves_no_grade(grades: tuple[int, ...], expected: int) -> None:
    """The lower median of the stages, each at its last try."""
    shown = [Look(stage, 0, 1) for stage in range(len(grades))]
    again = [Look(stage, 1, grade) for stage, grade in enumerate(grades)]
    assert judge_job([*again, *shown], None) == JobEvidence(expected)


def test_the_tokens_of_a_job_count_by_the_same_median() -> None:
    limits = make_limits(0.002)
    missed, clean = (Look(stage, 0, 0, (11, total)) for stage, total in ((1, 3 * ONE_Q16), (2, 0)))
    against, for_it = (compute_token_evidence_q16(limits, 11, total) for total in (3 * ONE_Q16, 0))
    assert against > 0 > for_it
    assert judge_job([missed], limits) == JobEvidence(0, against)
    assert judge_job([missed, clean], limits) == JobEvidence(0, for_it)
    assert judge_job([Look(1, 0, 0)], limits) == judge_job([missed], None) == JobEvidence(0)


def test_an_outcome_that_shows_no_comparison_says_nothing() -> None:
    """Silence and contradiction are convictions of their own."""
    assert judge_job([], make_limits(0.002)) is None


def test_a_bond_is_rounded_down_and_never_more_than_the_stake() -> None:
    assert [compute_bond(stake, (1, 2)) for stake in (0, 1, 2, 101)] == [0, 0, 1, 50]
    assert (compute_bond(7, (0, 1)), compute_bond(7, (1, 1))) == (0, 7)
