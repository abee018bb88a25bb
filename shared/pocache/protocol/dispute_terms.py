"""The words of a dispute: its state, what happens to it, what it asks for, how it ends (docs/protocol.md 8).

Owns plain values only; ``dispute.py`` says how one leads to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from pocache.protocol.challenge import Corner
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff import Case, VerifierStanding

GENERATOR_STAGE: Final = 0


class Phase(StrEnum):
    """What a dispute waits for."""

    WAITING = "waiting"
    """No audit was opened: only an equivocation can decide the job."""
    DRAWING = "drawing"
    """The order of a later stage's candidates, from a round that nobody knew when the stage before ended."""
    HOLDING = "holding"
    """The ledger's word on the stake of one candidate, or of several."""
    SEALING = "sealing"
    """The claims of the stage's verifiers."""
    OPENING = "opening"
    """The openings of everybody in the stage."""
    COMPARING = "comparing"
    """The verdict on the first pair that is still to be compared."""
    DECIDED = "decided"


@dataclass(frozen=True, slots=True)
class Seat:
    """A verifier whose stake is locked, and what it has done: one per stage."""

    participant: ParticipantId
    stage: int
    corner: Corner | None = None
    """What its latest claim covers; None before it sealed one."""
    root: Digest | None = None
    has_opened: bool = False
    is_silent: bool = False
    """It did not seal, or not open, in time: it has lost, and is not asked again."""

    @property
    def is_standing(self) -> bool:
        """Whether its claim counts: sealed, opened whenever it was asked."""
        return self.has_opened and not self.is_silent


@dataclass(frozen=True, slots=True)
class Party:
    """Who must open in a stage, the root that it opens, and what its leaves cover; the generator's stage is 0."""

    participant: ParticipantId
    stage: int
    root: Digest
    corner: Corner


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the dispute ended; ``verifiers`` are all whose stake is in the pool, in order of their stages."""

    case: Case
    corner: Corner
    verifiers: tuple[VerifierStanding, ...]
    deciding: ParticipantId | None
    prior: ParticipantId | None
    reason: str
    is_challenged: bool = False
    """`fixed-fee-committee` only: the user asked for the audit, so that it pays for it."""

    @property
    def stage(self) -> int:
        """The last stage or seat whose verifier's stake was locked; 0 when there was none."""
        return self.verifiers[-1].stage if self.verifiers else 0


@dataclass(frozen=True, slots=True)
class DisputeState:
    """All that decides what comes next; its order, seats and stages are explained where they are used, in dispute.py."""

    generator: Party
    stage_max: int
    sample_count: int
    corner: Corner
    """What the current stage runs, or the last one that was given out; it never becomes smaller."""
    phase: Phase = Phase.WAITING
    order: tuple[ParticipantId, ...] = ()
    """Sortition's order of the current stage's candidates."""
    candidates_used: int = 0
    """How many of the order were asked."""
    drawn: tuple[ParticipantId, ...] = ()
    """Everybody who was asked at any stage, in order: nobody is asked twice."""
    candidate: ParticipantId | None = None
    """Whose stake was asked for, while it is not known whether it is locked."""
    seats: tuple[Seat, ...] = ()
    stage: int = 0
    retry: int = 0
    is_deepened: bool = False
    equivocation: str | None = None
    positions: tuple[int, ...] = ()
    against: tuple[int, ...] = ()
    """Stages with which the current one is still to be compared, in order; 0 is the generator."""
    outcome: Outcome | None = None


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditOpened:
    """The commitment is to be verified in this corner; the order is that of the first stage's candidates."""

    order: tuple[ParticipantId, ...]
    corner: Corner


@dataclass(frozen=True, slots=True)
class OrderDrawn:
    """The round that a later stage waited for gave its candidates this order; who was drawn before is not in it."""

    stage: int
    order: tuple[ParticipantId, ...]


@dataclass(frozen=True, slots=True)
class HoldPlaced:
    """The candidate's stake is locked."""

    participant: ParticipantId
    stage: int


@dataclass(frozen=True, slots=True)
class HoldRefused:
    """The candidate's stake cannot be locked."""

    participant: ParticipantId
    stage: int


@dataclass(frozen=True, slots=True)
class ClaimSealed:
    """A verifier's root over its own rows."""

    participant: ParticipantId
    stage: int
    retry: int
    corner: Corner
    leaf_count: int
    root: Digest


@dataclass(frozen=True, slots=True)
class SealExpired:
    """The time for the claim of a stage is over."""

    stage: int
    retry: int


@dataclass(frozen=True, slots=True)
class OpeningsClosed:
    """The openings of a stage are in or their time is over: which positions were drawn, and who opened all of its."""

    stage: int
    retry: int
    positions: tuple[int, ...]
    opened: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class Compared:
    """The verdict on the pair that the last :class:`Compare` named."""

    stage: int
    retry: int
    against: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Deepened:
    """The user challenged: nothing that was seen at partial depth acquits."""


@dataclass(frozen=True, slots=True)
class Equivocated:
    """The generator signed two different commitments."""

    reason: str


Event: TypeAlias = (
    AuditOpened
    | OrderDrawn
    | HoldPlaced
    | HoldRefused
    | ClaimSealed
    | SealExpired
    | OpeningsClosed
    | Compared
    | Deepened
    | Equivocated
)


# --- commands -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AwaitDraw:
    """Bind a later stage to a round to come, and draw its candidates' order once it is there."""

    stage: int


@dataclass(frozen=True, slots=True)
class RequestHold:
    """Say who was drawn, at which place of the stage's order (0 is the first), and ask the ledger for its stake."""

    participant: ParticipantId
    stage: int
    place: int


@dataclass(frozen=True, slots=True)
class AssignTask:
    """Give a verifier the corner to run, and a deadline for its claim."""

    participant: ParticipantId
    stage: int
    retry: int
    corner: Corner


@dataclass(frozen=True, slots=True)
class SealStage:
    """All claims of the stage are in: have positions drawn and everybody open them."""

    stage: int
    retry: int
    corner: Corner
    parties: tuple[Party, ...]
    sample_count: int


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare two parties' leaves of this stage: at these positions, on the rows within this corner."""

    stage: int
    retry: int
    ours: Party
    theirs: Party
    corner: Corner
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decide:
    """Announce the outcome; given once, with nothing beside or after it."""

    outcome: Outcome


Command: TypeAlias = AwaitDraw | RequestHold | AssignTask | SealStage | Compare | Decide


@dataclass(frozen=True, slots=True)
class Step:
    """The state after an event, and what is to be done."""

    state: DisputeState
    commands: tuple[Command, ...] = ()
