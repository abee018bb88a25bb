"""How an audit is decided: one pure state machine, state × event → state, commands (docs/protocol.md 8).

Owns the stages: when a stage's verifiers are drawn, whose stake is asked for, who runs what corner, when everybody
opens, which claims are held against which and in what order, and the one outcome. Whoever has the record can run it
again. Refuses claims of those who were not drawn, and claims that are late, doubled, or about something else than was
asked. Events that come twice or too late change nothing, so that a redelivered record is harmless.

Does not compare rows (matching.py), draw (challenge.py), check openings (opening.py), count time or move money
(payoff.py): it says what has to be compared, and is told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from pocache.protocol.challenge import Corner
from pocache.protocol.dispute_terms import (
    GENERATOR_STAGE,
    AssignTask,
    AuditOpened,
    AwaitDraw,
    ClaimSealed,
    Compare,
    Compared,
    Decide,
    Deepened,
    DisputeState,
    Equivocated,
    Event,
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
    Seat,
    Step,
)
from pocache.protocol.errors import (
    CommitmentError,
    ConflictError,
    ExpiredError,
    NotAuthorizedError,
    UnknownJobError,
)
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import SAMPLE_COUNT_MAX
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff import Case, VerifierStanding

RETRY_SAMPLE_FACTOR: Final = 4
"""A second look is at full depth and at this many times the positions."""


def start_dispute(*, generator: Party, stage_max: int, sample_count: int) -> DisputeState:
    """Return the state of a job that is committed and not audited; the generator's corner is the whole job."""
    assert generator.stage == GENERATOR_STAGE, generator
    assert generator.corner.full_depth, generator
    assert min(stage_max, sample_count) >= 1, (stage_max, sample_count)
    return DisputeState(
        generator=generator, stage_max=stage_max, sample_count=sample_count, corner=generator.corner
    )


def advance(state: DisputeState, event: Event) -> Step:
    """Return the next state and commands (docs/protocol.md 8).

    An event for which the dispute is not waiting changes nothing. Only claims are refused, since their senders are to
    be told: errors as in :func:`verify_claim`.
    """
    if isinstance(event, ClaimSealed):
        verify_claim(state, event)
        return _seal(state, event)
    if state.phase is Phase.DECIDED:
        return Step(state)
    match event:
        case AuditOpened():
            return _open(state, event)
        case OrderDrawn():
            return _take_order(state, event)
        case HoldPlaced() | HoldRefused():
            return _take_hold(state, event)
        case SealExpired():
            return _expire_seal(state, event)
        case OpeningsClosed():
            return _close_openings(state, event)
        case Compared():
            return _judge(state, event)
        case Deepened():
            return Step(replace(state, is_deepened=True))
        case Equivocated():
            return _equivocate(state, event)
        case _:
            assert_never(event)


def verify_claim(state: DisputeState, claim: ClaimSealed) -> None:
    """Refuse a claim that is not the one asked for.

    NotAuthorizedError: the sender was not drawn for that stage. ExpiredError: the stage or its second look is over, or
    the job decided. ConflictError: this claim is sealed already. UnknownJobError: no second look was asked for.
    CommitmentError: another corner or leaf count than the task's.
    """
    seat = state.seats[claim.stage - 1] if 1 <= claim.stage <= len(state.seats) else None
    if seat is None or seat.participant != claim.participant:
        raise NotAuthorizedError(f"{claim.participant} was not drawn for stage {claim.stage}")
    if state.phase is Phase.DECIDED:
        raise ExpiredError("the job is decided")
    if (claim.stage, claim.retry) < (state.stage, state.retry):
        raise ExpiredError(
            f"stage {claim.stage}.{claim.retry} is over; it is stage {state.stage}.{state.retry}"
        )
    if claim.retry != state.retry:
        raise UnknownJobError(f"no second look was asked for at stage {claim.stage}")
    if state.phase is not Phase.SEALING:
        raise ConflictError(f"a claim is sealed for stage {claim.stage}.{claim.retry}: it cannot be replaced")
    if claim.corner != state.corner:
        raise CommitmentError(f"the claim covers {claim.corner}, the task is {state.corner}")
    if claim.leaf_count != state.corner.position_max + 1:
        raise CommitmentError(
            f"{claim.leaf_count} leaves sealed where the corner has {state.corner.position_max + 1}"
        )


def _open(state: DisputeState, event: AuditOpened) -> Step:
    if state.phase is not Phase.WAITING:
        return Step(state)
    return _ask_next(replace(state, stage=1, corner=event.corner, order=event.order))


def _take_order(state: DisputeState, event: OrderDrawn) -> Step:
    if state.phase is not Phase.DRAWING or event.stage != state.stage:
        return Step(state)
    return _ask_next(replace(state, order=event.order))


def _begin_stage(state: DisputeState) -> Step:
    """Have the next stage drawn from a fresh round, or end without a verdict after the last one.

    The audit's own round draws the first stage only: who judges later must not be known while an earlier stage runs.
    """
    if state.stage == state.stage_max:
        return _decide(state, Case.VOID, f"no two parties agreed in {state.stage} stages, the most there are")
    stage = state.stage + 1
    waiting = replace(state, phase=Phase.DRAWING, stage=stage, retry=0, order=(), candidates_used=0)
    return Step(waiting, (AwaitDraw(stage),))


def _ask_next(state: DisputeState) -> Step:
    """Ask for the stake of the next candidate in the stage's order."""
    place = state.candidates_used
    if place == len(state.order):
        reason = f"no verifier for stage {state.stage}: none of {place} candidates has the stake"
        return _decide(state, Case.VOID, reason)
    candidate = state.order[place]
    asked = replace(
        state,
        phase=Phase.HOLDING,
        candidate=candidate,
        candidates_used=place + 1,
        drawn=(*state.drawn, candidate),
    )
    return Step(asked, (RequestHold(candidate, state.stage, place),))


def _take_hold(state: DisputeState, event: HoldPlaced | HoldRefused) -> Step:
    is_awaited = (event.participant, event.stage) == (state.candidate, state.stage)
    if state.phase is not Phase.HOLDING or not is_awaited:
        return Step(state)
    state = replace(state, candidate=None)
    if isinstance(event, HoldPlaced):
        state = replace(state, seats=(*state.seats, Seat(event.participant, event.stage)))
    if state.equivocation is not None:
        return _decide(state, Case.EQUIVOCATION, state.equivocation)
    if isinstance(event, HoldRefused):
        return _ask_next(state)
    return _assign(state, state.generator.corner if state.is_deepened else state.corner)


def _assign(state: DisputeState, corner: Corner) -> Step:
    state = replace(state, phase=Phase.SEALING, corner=corner)
    verifier = state.seats[-1].participant
    return Step(state, (AssignTask(verifier, state.stage, state.retry, corner),))


def _seal(state: DisputeState, claim: ClaimSealed) -> Step:
    """Take the claim that was verified; a second look's replaces the first."""
    seat = replace(state.seats[-1], corner=claim.corner, root=claim.root)
    state = replace(state, phase=Phase.OPENING, seats=(*state.seats[:-1], seat))
    # The factor's product is within the limit by the configuration's own bound; a state may come from elsewhere.
    factor = RETRY_SAMPLE_FACTOR if state.retry else 1
    sample_count = min(state.sample_count * factor, SAMPLE_COUNT_MAX)
    parties = get_parties(state)
    return Step(state, (SealStage(state.stage, state.retry, state.corner, parties, sample_count),))


def get_parties(state: DisputeState) -> tuple[Party, ...]:
    """Return who opens in the current stage: the generator, and every verifier that sealed and was never silent."""
    return (state.generator, *(_get_party(seat) for seat in state.seats if seat.root and not seat.is_silent))


def _expire_seal(state: DisputeState, event: SealExpired) -> Step:
    if state.phase is not Phase.SEALING or (event.stage, event.retry) != (state.stage, state.retry):
        return Step(state)
    silent = replace(state.seats[-1], is_silent=True)
    return _begin_stage(replace(state, seats=(*state.seats[:-1], silent)))


def _close_openings(state: DisputeState, event: OpeningsClosed) -> Step:
    if state.phase is not Phase.OPENING or (event.stage, event.retry) != (state.stage, state.retry):
        return Step(state)
    state = replace(state, seats=tuple(_note_opening(seat, event) for seat in state.seats))
    if state.generator.participant not in event.opened:
        reason = f"stage {state.stage}: the generator did not open what it committed to"
        return _decide(state, Case.NO_OPENING, reason)
    if state.seats[-1].is_silent:
        return _begin_stage(state)
    priors = (
        seat.stage
        for seat in state.seats[:-1]
        if seat.is_standing and _has_positions(_get_party(seat), event.positions)
    )
    return _compare_next(
        replace(state, phase=Phase.COMPARING, positions=event.positions, against=(GENERATOR_STAGE, *priors))
    )


def _note_opening(seat: Seat, event: OpeningsClosed) -> Seat:
    """Mark who opened and who was silent; who had nothing to open, because all lies beyond its corner, is neither."""
    if seat.root is None or seat.is_silent or not _has_positions(_get_party(seat), event.positions):
        return seat
    if seat.participant in event.opened:
        return replace(seat, has_opened=True)
    return replace(seat, is_silent=True)


def _compare_next(state: DisputeState) -> Step:
    """Hold the stage's verifier against the next party in line, or go on to the next stage when none is left."""
    if not state.against:
        return _begin_stage(replace(state, positions=()))
    first = state.against[0]
    ours = _get_party(state.seats[-1])
    theirs = state.generator if first == GENERATOR_STAGE else _get_party(state.seats[first - 1])
    corner = compute_common_corner(ours.corner, theirs.corner)
    positions = tuple(position for position in state.positions if position <= corner.position_max)
    return Step(state, (Compare(state.stage, state.retry, ours, theirs, corner, positions),))


def _judge(state: DisputeState, event: Compared) -> Step:
    """Act on a verdict: the generator is compared first, then the earlier verifiers; the first match decides.

    Matching is not transitive near a threshold, so the order is part of the rule. Inconclusive convicts nobody: with the
    generator it asks for a second look and then counts as a match, with an earlier verifier it is no match.
    """
    awaited = (state.stage, state.retry, *state.against[:1])
    if state.phase is not Phase.COMPARING or (event.stage, event.retry, event.against) != awaited:
        return Step(state)
    deciding = state.seats[-1].participant
    is_match = event.verdict is Verdict.MATCH
    if event.against == GENERATOR_STAGE and event.verdict is not Verdict.MISMATCH:
        is_too_shallow = state.is_deepened and not state.corner.full_depth
        if state.retry == 0 and (is_too_shallow or not is_match):
            return _look_again(state)
        case = Case.AGREE if state.stage == 1 else Case.CONFIRM_GENERATOR
        finding = "agree" if is_match else "are not told apart twice, which counts as a match"
        reason = f"stage {state.stage}: the verifier's and the generator's rows {finding}"
        return _decide(state, case, reason, deciding=deciding)
    if event.against != GENERATOR_STAGE and is_match:
        prior = state.seats[event.against - 1].participant
        reason = f"stages {event.against} and {state.stage} agree with each other and not with the generator"
        return _decide(state, Case.CONFIRM_PRIOR, reason, deciding=deciding, prior=prior)
    return _compare_next(replace(state, against=state.against[1:]))


def _look_again(state: DisputeState) -> Step:
    """Ask the same verifier for the whole job; positions are drawn afresh."""
    return _assign(replace(state, retry=1, positions=(), against=()), state.generator.corner)


def _equivocate(state: DisputeState, event: Equivocated) -> Step:
    if state.phase is Phase.HOLDING:
        # An outcome must name every stake in the pool, so it waits until this one is known to be there or not.
        return Step(state if state.equivocation is not None else replace(state, equivocation=event.reason))
    return _decide(state, Case.EQUIVOCATION, event.reason)


def _decide(
    state: DisputeState,
    case: Case,
    reason: str,
    *,
    deciding: ParticipantId | None = None,
    prior: ParticipantId | None = None,
) -> Step:
    standings = tuple(
        VerifierStanding(seat.participant, seat.stage, seat.is_standing) for seat in state.seats
    )
    outcome = Outcome(
        case=case, corner=state.corner, verifiers=standings, deciding=deciding, prior=prior, reason=reason
    )
    decided = replace(
        state, phase=Phase.DECIDED, outcome=outcome, candidate=None, order=(), positions=(), against=()
    )
    return Step(decided, (Decide(outcome),))


def compute_common_corner(one: Corner, other: Corner) -> Corner:
    """Return what two corners have in common."""
    return Corner(
        layer_max=min(one.layer_max, other.layer_max),
        position_max=min(one.position_max, other.position_max),
        full_depth=one.full_depth and other.full_depth,
    )


def _get_party(seat: Seat) -> Party:
    assert seat.root is not None, seat
    assert seat.corner is not None, seat
    return Party(participant=seat.participant, stage=seat.stage, root=seat.root, corner=seat.corner)


def _has_positions(party: Party, positions: tuple[int, ...]) -> bool:
    return any(position <= party.corner.position_max for position in positions)
