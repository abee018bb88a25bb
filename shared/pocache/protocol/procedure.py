"""How a dispute goes under either rule set: one face of the two state machines (docs/protocol.md 8).

Owns nothing of how a dispute is decided; that is ``dispute`` for `unified-pool` and ``dispute_committee`` for
`fixed-fee-committee`. Owns what a service or a judge of the record has to know besides: by which number a verifier is
told of its stage, which draw fills a seat, by which tag, and which event a verdict is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pocache.protocol import dispute, dispute_committee
from pocache.protocol.challenge import Corner, Tag
from pocache.protocol.committee_terms import AUDIT_SEAT, RECHECK_SEAT, TRIES, Part, SeatPlan
from pocache.protocol.dispute_committee_terms import (
    CommitteeEvent,
    CommitteeState,
    CommitteeStep,
    PairCompared,
    RecheckDrawn,
)
from pocache.protocol.dispute_terms import (
    ClaimSealed,
    Compare,
    Compared,
    Deepened,
    DisputeState,
    Event,
    OrderDrawn,
    Party,
    Phase,
    Step,
)
from pocache.protocol.errors import NotAuthorizedError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.matching import Verdict

State: TypeAlias = DisputeState | CommitteeState
AnyEvent: TypeAlias = Event | CommitteeEvent
AnyStep: TypeAlias = Step | CommitteeStep

LOOKS_PER_TRY = 2
"""An audit's verifier may be asked for a second look."""


class Procedure(Protocol):
    """The state machine of a rule set, and what belongs to it."""

    @property
    def look_max(self) -> int:
        """How many looks, each with its claims and openings, a dispute can take at most."""

    def start(self, *, generator: Party, sample_count: int) -> State:
        """Return the state of a job that is committed and not audited."""

    def advance(self, state: State, event: AnyEvent) -> AnyStep:
        """Return the next state and commands; errors as in :meth:`verify_claim`."""

    def verify_claim(self, state: State, claim: ClaimSealed) -> None:
        """Refuse a claim that is not the one asked for; errors as in ``dispute.verify_claim``."""

    def get_parties(self, state: State) -> tuple[Party, ...]:
        """Return who opens in the current stage."""

    def find_seat(self, state: State, participant: ParticipantId, told_stage: int) -> int:
        """Return the seat of a verifier that speaks of the stage it was told of; NotAuthorizedError."""

    def get_told_stage(self, seat: int) -> int:
        """Return the number by which the verifier of a seat is told of it."""

    def get_stage(self, seat: int) -> int:
        """Return the number of the stage that a seat belongs to."""

    def get_draw(self, seat: int) -> int:
        """Return the number of the draw that fills a seat."""

    def get_tag(self, draw: int) -> Tag:
        """Return what a draw's seed is for."""

    def is_recheck(self, draw: int) -> bool:
        """Return whether a draw begins with a lottery, and gives a corner too."""

    def is_excluding_drawn(self) -> bool:
        """Return whether who was drawn at an earlier stage is left out of the order, not passed over in it."""

    def get_first_events(self, *, is_challenged: bool) -> tuple[AnyEvent, ...]:
        """Return what the machine is told just before an audit is opened."""

    def is_full_depth_asked(self, state: State) -> bool:
        """Return whether the user asked for the whole job, as far as the machine was told."""

    def make_verdict(self, command: Compare, verdict: Verdict) -> AnyEvent:
        """Return the event that a comparison's verdict is."""

    def make_drawn(
        self, draw: int, order: tuple[ParticipantId, ...], *, is_drawn: bool, corner: Corner
    ) -> AnyEvent:
        """Return the event that a later draw is; the lottery's answer and the corner are a recheck's."""


@dataclass(frozen=True, slots=True)
class UnifiedProcedure:
    """One verifier a stage, up to K stages."""

    stage_max: int

    @property
    def look_max(self) -> int:
        """Two looks of each stage."""
        return LOOKS_PER_TRY * self.stage_max

    def start(self, *, generator: Party, sample_count: int) -> State:
        """Return the state of a job that is committed and not audited."""
        return dispute.start_dispute(generator=generator, stage_max=self.stage_max, sample_count=sample_count)

    def advance(self, state: State, event: AnyEvent) -> AnyStep:
        """Return the next state and commands."""
        assert isinstance(state, DisputeState), type(state)
        assert not isinstance(event, RecheckDrawn | PairCompared), event
        return dispute.advance(state, event)

    def verify_claim(self, state: State, claim: ClaimSealed) -> None:
        """Refuse a claim that is not the one asked for."""
        assert isinstance(state, DisputeState), type(state)
        dispute.verify_claim(state, claim)

    def get_parties(self, state: State) -> tuple[Party, ...]:
        """Return who opens in the current stage."""
        assert isinstance(state, DisputeState), type(state)
        return dispute.get_parties(state)

    def find_seat(self, state: State, participant: ParticipantId, told_stage: int) -> int:
        """Return the stage as it is; whether it is the sender's is for :meth:`verify_claim`."""
        del state, participant
        return told_stage

    def get_told_stage(self, seat: int) -> int:
        """Return the stage as it is."""
        return seat

    def get_stage(self, seat: int) -> int:
        """Return the stage as it is."""
        return seat

    def get_draw(self, seat: int) -> int:
        """Return the stage as it is: each has a draw of its own."""
        return seat

    def get_tag(self, draw: int) -> Tag:
        """Return the one tag of sortition."""
        del draw
        return Tag.VERIFIERS

    def is_recheck(self, draw: int) -> bool:
        """There is none."""
        del draw
        return False

    def is_excluding_drawn(self) -> bool:
        """Whoever was asked is not asked again."""
        return True

    def get_first_events(self, *, is_challenged: bool) -> tuple[AnyEvent, ...]:
        """Return none: who challenged makes no difference."""
        del is_challenged
        return ()

    def is_full_depth_asked(self, state: State) -> bool:
        """Return whether the audit was deepened."""
        assert isinstance(state, DisputeState), type(state)
        return state.is_deepened

    def make_verdict(self, command: Compare, verdict: Verdict) -> AnyEvent:
        """Return the verdict on the stage's verifier against another party."""
        return Compared(command.stage, command.retry, command.theirs.stage, verdict)

    def make_drawn(
        self, draw: int, order: tuple[ParticipantId, ...], *, is_drawn: bool, corner: Corner
    ) -> AnyEvent:
        """Return a later stage's order."""
        del is_drawn, corner
        return OrderDrawn(draw, order)


@dataclass(frozen=True, slots=True)
class CommitteeProcedure:
    """An audit, a recheck of a share of agreements, committees."""

    plan: SeatPlan

    @property
    def look_max(self) -> int:
        """Two looks of each try of audit and recheck, one of each committee."""
        return 2 * TRIES * LOOKS_PER_TRY + self.plan.committee_count

    def start(self, *, generator: Party, sample_count: int) -> State:
        """Return the state of a job that is committed and not audited."""
        return dispute_committee.start_dispute(generator=generator, plan=self.plan, sample_count=sample_count)

    def advance(self, state: State, event: AnyEvent) -> AnyStep:
        """Return the next state and commands."""
        assert isinstance(state, CommitteeState), type(state)
        assert not isinstance(event, Compared), event
        return dispute_committee.advance(state, event)

    def verify_claim(self, state: State, claim: ClaimSealed) -> None:
        """Refuse a claim that is not the one asked for."""
        assert isinstance(state, CommitteeState), type(state)
        dispute_committee.verify_claim(state, claim)

    def get_parties(self, state: State) -> tuple[Party, ...]:
        """Return who opens in the current stage; nobody is asked before one begins."""
        assert isinstance(state, CommitteeState), type(state)
        return (state.generator,) if state.phase is Phase.WAITING else dispute_committee.get_parties(state)

    def find_seat(self, state: State, participant: ParticipantId, told_stage: int) -> int:
        """Return the seat of a participant, of which it has one in a job; NotAuthorizedError where it has none."""
        for seat in state.seats:
            if seat.participant == participant and self.plan.get_told_stage(seat.stage) == told_stage:
                return seat.stage
        message = f"{participant} was not drawn for stage {told_stage}"
        raise NotAuthorizedError(message)

    def get_told_stage(self, seat: int) -> int:
        """Return 1 for an audit and a recheck alike, the first seat for a committee's members."""
        return self.plan.get_told_stage(seat)

    def get_stage(self, seat: int) -> int:
        """Return the number of the stage that a seat belongs to."""
        return self.plan.get_stage(seat)

    def get_draw(self, seat: int) -> int:
        """Return the number of the draw that fills a seat."""
        return self.plan.get_draw(seat)

    def get_tag(self, draw: int) -> Tag:
        """Return the tag of a committee's sortition, or of an audit's and a recheck's."""
        return Tag.COMMITTEE if self.plan.get_part(draw) is Part.COMMITTEE else Tag.VERIFIERS

    def is_recheck(self, draw: int) -> bool:
        """Return whether this is the recheck's draw."""
        return draw == RECHECK_SEAT

    def is_excluding_drawn(self) -> bool:
        """The machine passes over whoever sits already: a candidate that was refused may be drawn again."""
        return False

    def get_first_events(self, *, is_challenged: bool) -> tuple[AnyEvent, ...]:
        """Return that the user asked, if it did: it pays for the audit then."""
        return (Deepened(),) if is_challenged else ()

    def is_full_depth_asked(self, state: State) -> bool:
        """Return whether the user challenged."""
        assert isinstance(state, CommitteeState), type(state)
        return state.is_challenged

    def make_verdict(self, command: Compare, verdict: Verdict) -> AnyEvent:
        """Return the verdict on a pair of seats."""
        return PairCompared(command.stage, command.retry, command.ours.stage, command.theirs.stage, verdict)

    def make_drawn(
        self, draw: int, order: tuple[ParticipantId, ...], *, is_drawn: bool, corner: Corner
    ) -> AnyEvent:
        """Return what a recheck's round or a committee's gave."""
        if self.is_recheck(draw):
            return RecheckDrawn(is_drawn, order, corner)
        return OrderDrawn(draw, order)


assert AUDIT_SEAT == 1, "an audit's verifier is told of stage 1 under both rule sets"
