"""The test over a worker's jobs: cheats too small for one job, and jobs too short to judge, add up (docs/protocol.md 7.8).

Owns two sequential probability ratio tests (Wald 1945) over a worker's audited jobs, in integers: one over their grades, one
over all their judged tokens together, so that a cheat that shows in one token of fifty adds up over short jobs. What a job
says is computed from the comparisons that its outcome shows; then one pure function, record × grade × evidence → record. The
pool that ejects, the audit that checks it and the explorer that shows it call this and nothing else. Refuses grades that do
not exist. It ejects; what an ejection costs is the network's (``compute_bond``).
Not covered: jobs that nobody audited, and a worker that comes back under another key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import repeat
from statistics import median_low
from typing import Final

from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import compute_half_log2_q16
from pocache.protocol.matching_limits import GRADE_TAILS, RATE_ONE, TokenLimits

ONE_Q16: Final = 1 << 16

HONEST_PERMILLE: Final = (700, 270, 27, 3)
"""Most that an honest worker's grades weigh: three statistics reach grade 1, 2, 3 in 1 of 10, 100, 1,000 jobs each."""
CHEAT_PERMILLE: Final = (400, 350, 150, 100)
"""What is tested against: a cheat that one job in ten shows clearly and most show hardly."""

WEIGHTS_Q16: Final = (-52_911, 24_536, 162_131, 331_539)
"""⌊2¹⁶ · log₂(cheat / honest)⌋ by grade. They ascend, so a worker with fewer high grades than HONEST gains nothing."""

EJECT_Q16: Final = 20 * ONE_Q16
"""Sum at which a worker is ejected: an honest one gets there in fewer than one cycle in 2²⁰ (Ville's inequality)."""
CLEAR_Q16: Final = -7 * ONE_Q16
"""Sum at which a cycle ends in its favour: a cheat of CHEAT_PERMILLE gets there in fewer than one cycle in 2⁷."""

TOKEN_CHEAT_Q32: Final = RATE_ONE // 32
"""What is tested against in tokens: one in so many is missed, as by a temperature that is off by a tenth."""
TOKEN_CHEAT_FACTOR: Final = 4
"""Or so many times the honest rate, where that is more."""
TOKEN_EVIDENCE_MAX_Q16: Final = 6 * ONE_Q16
"""Most that one job's tokens say against a worker, so that no single job ejects it."""


class Standing(StrEnum):
    """What the test says of a worker."""

    OPEN = "open"
    CLEARED = "cleared"
    """The last cycle ended in its favour, and no job has come since."""
    EJECTED = "ejected"
    """For good."""


class JobTest(StrEnum):
    """Which of the two tests."""

    GRADES = "grades"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Look:
    """One comparison with a job's generator, as its outcome shows it."""

    stage: int
    retry: int
    grade: int
    tokens: tuple[int, int] | None = None
    """How many tokens were judged, and their margin sum in Q16; None where none were."""


@dataclass(frozen=True, slots=True)
class JobEvidence:
    """What one audited job says of its generator."""

    grade: int
    token_evidence_q16: int = 0


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A worker's record with one model: the running sum of its cycle, and how many jobs had which grade."""

    sum_q16: int = 0
    cycle_count: int = 0
    """Cycles that ended in its favour."""
    grade_counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    standing: Standing = Standing.OPEN
    token_sum_q16: int = 0
    """The running sum of the test over tokens, in a cycle of its own."""

    @property
    def job_count(self) -> int:
        """Return the audited jobs."""
        return sum(self.grade_counts)

    @property
    def crossed(self) -> JobTest | None:
        """The test that ejected it, the one over grades where both did; None of a worker that is not ejected."""
        if self.standing is not Standing.EJECTED:
            return None
        return JobTest.GRADES if self.sum_q16 >= EJECT_Q16 else JobTest.TOKENS


def judge_job(looks: Sequence[Look], limits: TokenLimits | None) -> JobEvidence | None:
    """Return a job's grade and what its tokens say, each the lower median of its stages' last tries; None without a look.

    So one lying verifier among several moves nothing. Without limits of tokens these say nothing.
    """
    last: dict[int, Look] = {}
    for one in sorted(looks, key=lambda one: one.retry):
        last[one.stage] = one
    if not last:
        return None
    evidence_q16 = [
        0 if limits is None or one.tokens is None else compute_token_evidence_q16(limits, *one.tokens)
        for one in last.values()
    ]
    return JobEvidence(median_low(one.grade for one in last.values()), median_low(evidence_q16))


def compute_bond(stake_micro: int, share: tuple[int, int]) -> int:
    """Return ⌊share · stake⌋ in micro-units: what an ejection costs who has this much staked, a share of at most one."""
    numerator, denominator = share
    assert 0 <= numerator <= denominator, "a share is at most the whole"
    return stake_micro * numerator // denominator


def advance_record(record: JobRecord, grade: int, token_evidence_q16: int = 0) -> JobRecord:
    """Return the record after one more audited job; an ejected worker stays so. MatchingError for no grade."""
    if type(grade) is not int or not 0 <= grade <= len(GRADE_TAILS):
        raise MatchingError(f"{grade!r} is no grade: 0 to {len(GRADE_TAILS)}")
    if record.standing is Standing.EJECTED:
        return record
    counts = [count + (place == grade) for place, count in enumerate(record.grade_counts)]
    grade_counts = (counts[0], counts[1], counts[2], counts[3])
    total = record.sum_q16 + WEIGHTS_Q16[grade]
    tokens = record.token_sum_q16 + min(token_evidence_q16, TOKEN_EVIDENCE_MAX_Q16)
    if max(total, tokens) >= EJECT_Q16:
        return JobRecord(total, record.cycle_count, grade_counts, Standing.EJECTED, tokens)
    kept = 0 if tokens <= CLEAR_Q16 else tokens
    if total <= CLEAR_Q16:
        return JobRecord(0, record.cycle_count + 1, grade_counts, Standing.CLEARED, kept)
    return JobRecord(total, record.cycle_count, grade_counts, Standing.OPEN, kept)


def compute_token_evidence_q16(limits: TokenLimits, token_count: int, margin_sum_q16: int) -> int:
    """Return at most 2¹⁶ · (Σx · log₂(p₁/p₀) + (n − Σx) · log₂((1 − p₁)/(1 − p₀))), x a token's clipped margin over the clip.

    p₀ is the calibrated bound on the honest mean of x, p₁ the larger of TOKEN_CHEAT_Q32 and TOKEN_CHEAT_FACTOR · p₀. As 2 to
    the power of a line in x is convex, its honest mean is at most that of coin flips with the same mean, which is 1.
    """
    honest = max(1, limits.margin_rate_q32)
    cheat = max(TOKEN_CHEAT_Q32, TOKEN_CHEAT_FACTOR * honest)
    if cheat >= RATE_ONE:
        return 0
    hit = compute_half_log2_q16(cheat**2, honest**2)
    miss = compute_half_log2_q16((RATE_ONE - cheat) ** 2, (RATE_ONE - honest) ** 2)
    # One less: the difference of two floors may lie above that of what they are the floors of.
    return token_count * miss + ((margin_sum_q16 * (hit - miss - 1)) >> 16)


def judge_jobs(grades: Iterable[int], evidence_q16: Iterable[int] | None = None) -> JobRecord:
    """Return the record of a worker whose audited jobs had these grades and evidence of tokens, by default none, in order."""
    record = JobRecord()
    said = repeat(0) if evidence_q16 is None else evidence_q16
    for grade, evidence in zip(grades, said, strict=False):
        record = advance_record(record, grade, evidence)
    return record
