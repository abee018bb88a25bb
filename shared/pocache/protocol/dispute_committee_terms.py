"""The words of a dispute under `fixed-fee-committee`: its state, and what its own events and commands are.

Owns plain values only; ``dispute_committee`` says how one leads to the other. What both rule sets have in common is in
``dispute_terms``; a *stage* there is the number of a seat here, or of a stage's first seat where all of it is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from pocache.protocol.challenge import Corner
from pocache.protocol.committee_terms import SeatPlan
from pocache.protocol.dispute_terms import (
    AssignTask,
    AuditOpened,
    AwaitDraw,
    ClaimSealed,
    Compare,
    Decide,
    Deepened,
    Equivocated,
    HoldPlaced,
    HoldRefused,
    OpeningsClosed,
    OrderDrawn,
    Outcome,
    Party,
    Phase,
    RequestHold,
    SealExpired,
    SealStage,
)
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.matching import Verdict


class Judging(StrEnum):
    """Which comparisons a stage is at."""

    AGAINST_GENERATOR = "against_generator"
    """Every verifier's rows with the generator's."""
    AMONG_MEMBERS = "among_members"
    """Those members with each other who differ from the generator."""
    AGAINST_MAJORITY = "against_majority"
    """Everybody else with the first of those who convict."""


@dataclass(frozen=True, slots=True)
class CommitteeSeat:
    """A verifier whose stake is locked, and what it has done."""

    participant: ParticipantId
    stage: int
    """The number of the seat."""
    corner: Corner | None = None
    """What its latest claim covers; None before it sealed one."""
    root: Digest | None = None
    is_silent: bool = False
    """It did not seal, or not open, in time: it has lost, and is not asked again."""
    verdict: Verdict | None = None
    """Its rows against the generator's, as they were compared last."""

    @property
    def is_standing(self) -> bool:
        """Whether its claim counts: sealed, opened whenever it was asked."""
        return self.root is not None and not self.is_silent


@dataclass(frozen=True, slots=True)
class CommitteeState:
    """All that decides what comes next; the fields are explained where they are used, in dispute_committee.py."""

    generator: Party
    plan: SeatPlan
    sample_count: int
    corner: Corner
    """What the current stage runs."""
    widest: Corner
    """What all corners given out span together: verification is priced by it."""
    phase: Phase = Phase.WAITING
    stage: int = 0
    retry: int = 0
    order: tuple[ParticipantId, ...] = ()
    """Sortition's order of the candidates of this draw."""
    candidates_used: int = 0
    pending: tuple[tuple[ParticipantId, int], ...] = ()
    """Whose stake was asked for and for which seat, while it is not known whether it is locked."""
    seats: tuple[CommitteeSeat, ...] = ()
    sealed: tuple[int, ...] = ()
    """Seats whose claim of this stage and retry is in."""
    is_challenged: bool = False
    is_full_depth_agreed: bool = False
    """Some verifier agreed with the generator through all layers."""
    finder: int | None = None
    """The seat whose mismatch called the committee."""
    equivocation: str | None = None
    positions: tuple[int, ...] = ()
    judging: Judging = Judging.AGAINST_GENERATOR
    pairs: tuple[tuple[int, int], ...] = ()
    """Seats still to be compared, in order; 0 is the generator."""
    matched: tuple[tuple[int, int], ...] = ()
    """Pairs of members, of this stage, whose rows match."""
    majority: tuple[int, ...] = ()
    """Members who differ from the generator and match each other, when they are enough to convict."""
    confirmed: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    """Other seats whose rows match, or do not match, those of the majority's first."""
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class RecheckDrawn:
    """The round after an agreement: whether its lottery is won, and whom and what it draws if so.

    The order and the corner are given in any case: a challenge that came meanwhile needs them.
    """

    is_drawn: bool
    order: tuple[ParticipantId, ...]
    corner: Corner


@dataclass(frozen=True, slots=True)
class PairCompared:
    """The verdict on the pair that the last `Compare` named; seats are compared again at every later stage."""

    stage: int
    """The stage's, not the seat's: a verdict of an earlier stage that comes again is told apart."""
    retry: int
    ours: int
    against: int
    verdict: Verdict


CommitteeEvent: TypeAlias = (
    AuditOpened
    | RecheckDrawn
    | OrderDrawn
    | HoldPlaced
    | HoldRefused
    | ClaimSealed
    | SealExpired
    | OpeningsClosed
    | PairCompared
    | Deepened
    | Equivocated
)

CommitteeCommand: TypeAlias = AwaitDraw | RequestHold | AssignTask | SealStage | Compare | Decide


@dataclass(frozen=True, slots=True)
class CommitteeStep:
    """The state after an event, and what is to be done."""

    state: CommitteeState
    commands: tuple[CommitteeCommand, ...] = ()
