"""The words of `fixed-fee-committee`: its seats, and the products that its settlements add up (docs/economics.md 5).

Owns plain values only; ``committee`` has the parameters, ``committee_settlement`` the payouts, ``dispute_committee``
the way to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pocache.protocol.errors import PayoffError
from pocache.protocol.limits import SEAT_COUNT_MAX

FIXED_FEE_COMMITTEE: Final = "fixed-fee-committee"

TRIES: Final = 3
"""How many verifiers are asked one after the other for an audit, and for a recheck, when one stays silent."""

AUDIT_SEAT: Final = 1
RECHECK_SEAT: Final = AUDIT_SEAT + TRIES
COMMITTEE_SEAT: Final = RECHECK_SEAT + TRIES
"""First seats of an audit, of its recheck, and of the first committee."""

COMMITTEE_SIZE_MAX: Final = 15
"""A larger committee would have more pairs to compare than a dispute should cost."""

COMMITTEE_COUNT_MAX: Final = 2

assert COMMITTEE_SEAT - 1 + COMMITTEE_COUNT_MAX * COMMITTEE_SIZE_MAX <= SEAT_COUNT_MAX


class Part(StrEnum):
    """What a seat is for."""

    AUDIT = "audit"
    RECHECK = "recheck"
    COMMITTEE = "committee"


@dataclass(frozen=True, slots=True)
class SeatPlan:
    """How the seats of one job are numbered: 1 … 3 audit, 4 … 6 recheck, then M for each committee.

    What concerns a whole stage carries the number of its first seat. A try of an audit or recheck is a stage of its
    own, with one seat.
    """

    committee_size: int
    committee_count: int

    @property
    def seat_max(self) -> int:
        """The last seat of the last committee."""
        return COMMITTEE_SEAT - 1 + self.committee_count * self.committee_size

    @property
    def majority(self) -> int:
        """How many of a committee decide: more than M/2."""
        return self.committee_size // 2 + 1

    def get_part(self, seat: int) -> Part:
        """Return what a seat is for; PayoffError where there is no such seat."""
        if type(seat) is not int or not AUDIT_SEAT <= seat <= self.seat_max:
            message = f"1 ≤ seat ≤ {self.seat_max} is violated: seat = {seat!r}"
            raise PayoffError(message)
        if seat < RECHECK_SEAT:
            return Part.AUDIT
        return Part.RECHECK if seat < COMMITTEE_SEAT else Part.COMMITTEE

    def get_stage(self, seat: int) -> int:
        """Return the number of the stage that a seat belongs to."""
        if self.get_part(seat) is not Part.COMMITTEE:
            return seat
        return seat - (seat - COMMITTEE_SEAT) % self.committee_size

    def get_draw(self, seat: int) -> int:
        """Return the number of the draw that fills a seat: one for all tries of a part, one for each committee."""
        match self.get_part(seat):
            case Part.AUDIT:
                return AUDIT_SEAT
            case Part.RECHECK:
                return RECHECK_SEAT
            case _:
                return self.get_stage(seat)

    def get_told_stage(self, seat: int) -> int:
        """Return the number by which a verifier is told of its seat: 1 for an audit and for a recheck alike."""
        return self.get_stage(seat) if self.get_part(seat) is Part.COMMITTEE else AUDIT_SEAT

    def get_seats(self, stage: int) -> range:
        """Return the numbers of a stage's seats, from the number of its first."""
        return range(stage, stage + (self.committee_size if self.get_part(stage) is Part.COMMITTEE else 1))


@dataclass(frozen=True, slots=True)
class CommitteeProducts:
    """Every product that a settlement adds and subtracts, in micro-units."""

    a_cg: int
    a_cv: int
    levy: int
    b_cg: int
    b_cv: int
    fee: int
    bounty: int
    bonus: int

    @property
    def deposit(self) -> int:
        """What the user puts into the pool: αCg + αCv + λCv."""
        return self.a_cg + self.a_cv + self.levy

    @property
    def generator_stake(self) -> int:
        """What the generator puts into the pool: βCg of its own β."""
        return self.b_cg

    @property
    def verifier_stake(self) -> int:
        """What each verifier puts into the pool: βCv of its own β."""
        return self.b_cv
