"""How an audit is decided under `fixed-fee-committee`: one pure state machine, state × event → state, commands.

One drawn verifier audits; a share of agreements is looked at again by another; on a mismatch one committee of M is
drawn, which seals before it opens, and whose majority decides; if it has none, a second; then the job is void
(docs/economics.md 5.2). Every draw after the audit's asks for a round that did not exist when the event before
it happened. Claims of all stages are judged by the same positions: those of the committee that decides.

Same shape as ``dispute``, and the same refusals: claims of those who were not drawn, and claims that are late, doubled,
or about something else than was asked. Events that come twice or too late change nothing.

Does not compare rows (matching.py), draw (challenge.py), check openings (merkle.py), count time or move money
(committee_settlement.py): it says what has to be compared, and is told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from pocache.protocol.committee_judging import compare_next, judge_pair
from pocache.protocol.committee_outcome import (
    decide,
    get_judged,
    get_members,
    get_part,
    get_parties,
    get_quorum,
    has_positions,
    is_too_shallow,
    silence,
)
from pocache.protocol.committee_seating import agree, begin_stage, give_up, take_hold, try_next
from pocache.protocol.committee_terms import AUDIT_SEAT, RECHECK_SEAT, Part, SeatPlan
from pocache.protocol.dispute import RETRY_SAMPLE_FACTOR
from pocache.protocol.dispute_committee_terms import (
    CommitteeEvent,
    CommitteeState,
    CommitteeStep,
    Judging,
    PairCompared,
    RecheckDrawn,
)
from pocache.protocol.dispute_terms import (
    GENERATOR_STAGE,
    AuditOpened,
    ClaimSealed,
    Deepened,
    Equivocated,
    HoldPlaced,
    HoldRefused,
    OpeningsClosed,
    OrderDrawn,
    Party,
    Phase,
    SealExpired,
    SealStage,
)
from pocache.protocol.errors import (
    CommitmentError,
    ConflictError,
    ExpiredError,
    NotAuthorizedError,
    UnknownJobError,
)
from pocache.protocol.limits import SAMPLE_COUNT_MAX
from pocache.protocol.payoff_terms import Case

__all__ = ["advance", "get_parties", "start_dispute", "verify_claim"]


def start_dispute(*, generator: Party, plan: SeatPlan, sample_count: int) -> CommitteeState:
    """Return the state of a job that is committed and not audited; the generator's corner is the whole job."""
    assert generator.stage == GENERATOR_STAGE
    assert generator.corner.full_depth
    assert sample_count >= 1
    return CommitteeState(
        generator=generator,
        plan=plan,
        sample_count=sample_count,
        corner=generator.corner,
        widest=generator.corner,
    )


def advance(state: CommitteeState, event: CommitteeEvent) -> CommitteeStep:
    """Return the next state and commands.

    An event for which the dispute is not waiting changes nothing. Only claims are refused, since their senders are to
    be told: errors as in :func:`verify_claim`. A challenge that opens an audit is told twice, as :class:`Deepened`
    and as :class:`AuditOpened`.
    """
    if isinstance(event, ClaimSealed):
        verify_claim(state, event)
        return _seal(state, event)
    if state.phase is Phase.DECIDED:
        return CommitteeStep(state)
    match event:
        case AuditOpened():
            return _open(state, event)
        case RecheckDrawn():
            return _take_recheck(state, event)
        case OrderDrawn():
            return _take_committee(state, event)
        case HoldPlaced() | HoldRefused():
            return take_hold(state, event)
        case SealExpired():
            return _expire_seal(state, event)
        case OpeningsClosed():
            return _close_openings(state, event)
        case PairCompared():
            return judge_pair(state, event)
        case Deepened():
            return CommitteeStep(replace(state, is_challenged=True))
        case Equivocated():
            return _equivocate(state, event)
        case _:
            assert_never(event)


def verify_claim(state: CommitteeState, claim: ClaimSealed) -> None:
    """Refuse a claim that is not the one asked for.

    NotAuthorizedError: the sender does not have that seat. ExpiredError: its stage or second look is over, or the job
    decided. ConflictError: this claim is sealed already. UnknownJobError: no task was given out, or no second look.
    CommitmentError: another corner or leaf count than the task's.
    """
    seat = next((one for one in state.seats if one.stage == claim.stage), None)
    if seat is None or seat.participant != claim.participant:
        raise NotAuthorizedError(f"{claim.participant} was not drawn for seat {claim.stage}")
    if state.phase is Phase.DECIDED:
        raise ExpiredError("the job is decided")
    stage = state.plan.get_stage(claim.stage)
    if seat.is_silent:
        raise ExpiredError(f"the time for the claim of seat {claim.stage} is over")
    if (stage, claim.retry) < (state.stage, state.retry):
        raise ExpiredError(f"stage {stage}.{claim.retry} is over; it is stage {state.stage}.{state.retry}")
    if claim.retry != state.retry:
        raise UnknownJobError(f"no second look was asked for at stage {stage}")
    if state.phase is Phase.HOLDING:
        raise UnknownJobError(f"no task was given out for stage {stage} yet")
    if state.phase is not Phase.SEALING or claim.stage in state.sealed:
        raise ConflictError(f"a claim is sealed for seat {claim.stage}.{claim.retry}: it cannot be replaced")
    if claim.corner != state.corner:
        raise CommitmentError(f"the claim covers {claim.corner}, the task is {state.corner}")
    if claim.leaf_count != state.corner.position_max + 1:
        raise CommitmentError(
            f"{claim.leaf_count} leaves sealed where the corner has {state.corner.position_max + 1}"
        )


# --- who is asked ---------------------------------------------------------------------------------------------


def _open(state: CommitteeState, event: AuditOpened) -> CommitteeStep:
    if state.phase is not Phase.WAITING:
        return CommitteeStep(state)
    return begin_stage(
        replace(state, order=event.order, corner=event.corner, widest=event.corner), AUDIT_SEAT
    )


def _take_recheck(state: CommitteeState, event: RecheckDrawn) -> CommitteeStep:
    """Look again if the lottery says so, or if the user challenged what was seen at partial depth only."""
    if state.phase is not Phase.DRAWING or get_part(state) is not Part.RECHECK:
        return CommitteeStep(state)
    if not event.is_drawn and not is_too_shallow(state):
        return agree(state)
    return begin_stage(replace(state, order=event.order, corner=event.corner), RECHECK_SEAT)


def _take_committee(state: CommitteeState, event: OrderDrawn) -> CommitteeStep:
    if state.phase is not Phase.DRAWING or event.stage != state.stage:
        return CommitteeStep(state)
    if get_part(state) is not Part.COMMITTEE:
        return CommitteeStep(state)
    return begin_stage(replace(state, order=event.order), state.stage)


# --- what they claim ------------------------------------------------------------------------------------------


def _seal(state: CommitteeState, claim: ClaimSealed) -> CommitteeStep:
    """Take the claim that was verified; a second look's replaces the first. The last one ends the sealing."""
    seats = tuple(
        replace(seat, corner=claim.corner, root=claim.root) if seat.stage == claim.stage else seat
        for seat in state.seats
    )
    state = replace(state, seats=seats, sealed=(*state.sealed, claim.stage))
    if len(state.sealed) < len(get_members(state)):
        return CommitteeStep(state)
    return _open_stage(state)


def _expire_seal(state: CommitteeState, event: SealExpired) -> CommitteeStep:
    if state.phase is not Phase.SEALING or (event.stage, event.retry) != (state.stage, state.retry):
        return CommitteeStep(state)
    late = {seat.stage for seat in get_members(state)} - set(state.sealed)
    state = silence(state, late)
    if len(state.sealed) >= get_quorum(state):
        return _open_stage(state)
    if get_part(state) is Part.COMMITTEE:
        return give_up(state, f"stage {state.stage}: {len(state.sealed)} claims were sealed")
    return try_next(state)


def _open_stage(state: CommitteeState) -> CommitteeStep:
    """Have everybody open. A committee looks at once as closely as a second look does: nobody comes after it."""
    is_close = state.retry or get_part(state) is Part.COMMITTEE
    # The factor's product is within the limit by the configuration's own bound; a state may come from elsewhere.
    sample_count = min(state.sample_count * (RETRY_SAMPLE_FACTOR if is_close else 1), SAMPLE_COUNT_MAX)
    state = replace(state, phase=Phase.OPENING)
    command = SealStage(state.stage, state.retry, state.corner, get_parties(state), sample_count)
    return CommitteeStep(state, (command,))


def _close_openings(state: CommitteeState, event: OpeningsClosed) -> CommitteeStep:
    """Mark who was silent, and compare the rest; who had nothing to open, as all lies beyond its corner, is not."""
    if state.phase is not Phase.OPENING or (event.stage, event.retry) != (state.stage, state.retry):
        return CommitteeStep(state)
    asked = [seat for seat in get_judged(state) if has_positions(seat, event.positions)]
    state = silence(state, {seat.stage for seat in asked if seat.participant not in event.opened})
    if state.generator.participant not in event.opened:
        reason = f"stage {state.stage}: the generator did not open what it committed to"
        return decide(state, Case.NO_OPENING, reason)
    if get_part(state) is not Part.COMMITTEE and not get_members(state):
        return try_next(state)
    judged = (seat.stage for seat in get_judged(state) if has_positions(seat, event.positions))
    pairs = tuple((number, GENERATOR_STAGE) for number in judged)
    state = replace(
        state,
        phase=Phase.COMPARING,
        positions=event.positions,
        judging=Judging.AGAINST_GENERATOR,
        pairs=pairs,
        matched=(),
        majority=(),
        confirmed=(),
        rejected=(),
    )
    return compare_next(state)


# --- how it ends ----------------------------------------------------------------------------------------------


def _equivocate(state: CommitteeState, event: Equivocated) -> CommitteeStep:
    if state.pending:
        # An outcome must name every stake in the pool, so it waits until these are known to be there or not.
        return CommitteeStep(
            state if state.equivocation is not None else replace(state, equivocation=event.reason)
        )
    return decide(state, Case.EQUIVOCATION, event.reason)
