"""The test over a worker's jobs: cheats too small for one job, and jobs too short to judge, add up (docs/protocol.md 7.8).

Owns the sequential probability ratio test (Wald 1945) over the grades of a worker's audited jobs, in integers: one pure
function, record × grade → record. Refuses grades that do not exist. It ejects; what an ejection costs is the rule set's.
Not covered: jobs that nobody audited, and a worker that comes back under another key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pocache.protocol.errors import MatchingError
from pocache.protocol.matching_limits import GRADE_TAILS

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

    @property
    def job_count(self) -> int:
        """Return the audited jobs."""
        return sum(self.grade_counts)


def advance_record(record: JobRecord, grade: int) -> JobRecord:
    """Return the record after one more audited job; an ejected worker stays so. MatchingError for no grade."""
    if type(grade) is not int or not 0 <= grade <= len(GRADE_TAILS):
        raise MatchingError(f"{grade!r} is no grade: 0 to {len(GRADE_TAILS)}")
    if record.standing is Standing.EJECTED:
        return record
    counts = [count + (place == grade) for place, count in enumerate(record.grade_counts)]
    total = record.sum_q16 + WEIGHTS_Q16[grade]
    grade_counts = (counts[0], counts[1], counts[2], counts[3])
    if total >= EJECT_Q16:
        return JobRecord(total, record.cycle_count, grade_counts, Standing.EJECTED)
    if total <= CLEAR_Q16:
        return JobRecord(0, record.cycle_count + 1, grade_counts, Standing.CLEARED)
    return JobRecord(total, record.cycle_count, grade_counts, Standing.OPEN)


def judge_jobs(grades: Iterable[int]) -> JobRecord:
    """Return the record of a worker whose audited jobs had these grades, in order."""
    record = JobRecord()
    for grade in grades:
        record = advance_record(record, grade)
    return record
