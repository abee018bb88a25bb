"""The test over a worker's jobs: cheats too small for one job, and jobs too short to judge, add up (docs/protocol.md 7.8).

Owns two sequential probability ratio tests (Wald 1945) over a worker's audited jobs, in integers: one over their grades, one
over all their judged tokens together, so that a cheat that shows in one token of fifty adds up over short jobs. One pure
function, record × grade × evidence → record. Refuses grades that do not exist. It ejects; what an ejection costs is the rule set's.
Not covered: jobs that nobody audited, and a worker that comes back under another key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import repeat
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
