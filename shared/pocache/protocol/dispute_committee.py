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

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from typing import assert_never

from pocache.protocol.challenge import Corner
from pocache.protocol.committee_outcome import (
    compute_clique,
    compute_span,
    decide,
    get_judged,
    get_members,
    get_part,
    get_parties,
    get_party_of,
    get_quorum,
    has_positions,
    is_too_shallow,
    silence,
)
from pocache.protocol.committee_terms import AUDIT_SEAT, COMMITTEE_SEAT, RECHECK_SEAT, Part, SeatPlan
from pocache.protocol.dispute import RETRY_SAMPLE_FACTOR, compute_common_corner
from pocache.protocol.dispute_committee_terms import (
    CommitteeEvent,
    CommitteeSeat,
    CommitteeState,
    CommitteeStep,
    Judging,
    PairCompared,
    RecheckDrawn,
)
from pocache.protocol.dispute_terms import (
    GENERATOR_STAGE,
    AssignTask,
    AuditOpened,
    AwaitDraw,
    ClaimSealed,
    Compare,
    Deepened,
    Equivocated,
    HoldPlaced,
    HoldRefused,
    OpeningsClosed,
    OrderDrawn,
    Party,
    Phase,
    RequestHold,
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
from pocache.protocol.matching import Verdict
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
            return _take_hold(state, event)
        case SealExpired():
            return _expire_seal(state, event)
        case OpeningsClosed():
            return _close_openings(state, event)
        case PairCompared():
            return _judge(state, event)
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
    return _begin(replace(state, order=event.order, corner=event.corner, widest=event.corner), AUDIT_SEAT)


def _take_recheck(state: CommitteeState, event: RecheckDrawn) -> CommitteeStep:
    """Look again if the lottery says so, or if the user challenged what was seen at partial depth only."""
    if state.phase is not Phase.DRAWING or get_part(state) is not Part.RECHECK:
        return CommitteeStep(state)
    if not event.is_drawn and not is_too_shallow(state):
        return _agree(state)
    return _begin(replace(state, order=event.order, corner=event.corner), RECHECK_SEAT)


def _take_committee(state: CommitteeState, event: OrderDrawn) -> CommitteeStep:
    if state.phase is not Phase.DRAWING or event.stage != state.stage:
        return CommitteeStep(state)
    if get_part(state) is not Part.COMMITTEE:
        return CommitteeStep(state)
    return _begin(replace(state, order=event.order), state.stage)


def _draw(state: CommitteeState, stage: int) -> CommitteeStep:
    """Wait for a round that does not exist yet; whoever was a candidate before is none until it is drawn again."""
    drawing = replace(
        state,
        phase=Phase.DRAWING,
        stage=stage,
        retry=0,
        order=(),
        candidates_used=0,
        positions=(),
    )
    return CommitteeStep(drawing, (AwaitDraw(stage),))


def _begin(state: CommitteeState, stage: int) -> CommitteeStep:
    state = replace(state, phase=Phase.HOLDING, stage=stage, retry=0)
    return _ask(state, state.plan.get_seats(stage))


def _ask(state: CommitteeState, numbers: Iterable[int]) -> CommitteeStep:
    """Ask for the stakes of the next candidates in sortition's order, one for each of these seats.

    Nobody sits twice in one job. Where the candidates end, seats stay empty.
    """
    taken = {seat.participant for seat in state.seats} | {participant for participant, _ in state.pending}
    left = enumerate(state.order[state.candidates_used :], state.candidates_used)
    free = ((place, name) for place, name in left if name not in taken)
    requests = tuple(
        RequestHold(name, number, place) for number, (place, name) in zip(numbers, free, strict=False)
    )
    used = requests[-1].place + 1 if requests else len(state.order)
    asked = tuple((request.participant, request.stage) for request in requests)
    state = replace(state, candidates_used=used, pending=(*state.pending, *asked))
    if not state.pending:
        return _assign_stage(state)
    return CommitteeStep(state, requests)


def _take_hold(state: CommitteeState, event: HoldPlaced | HoldRefused) -> CommitteeStep:
    asked = (event.participant, event.stage)
    if state.phase is not Phase.HOLDING or asked not in state.pending:
        return CommitteeStep(state)
    state = replace(state, pending=tuple(one for one in state.pending if one != asked))
    if isinstance(event, HoldPlaced):
        seats = (*state.seats, CommitteeSeat(event.participant, event.stage))
        state = replace(state, seats=tuple(sorted(seats, key=lambda seat: seat.stage)))
    elif state.equivocation is None:
        return _ask(state, (event.stage,))
    if state.pending:
        return CommitteeStep(state)
    if state.equivocation is not None:
        return decide(state, Case.EQUIVOCATION, state.equivocation)
    return _assign_stage(state)


def _assign_stage(state: CommitteeState) -> CommitteeStep:
    """Give out the task, or let those go whose stage is too small to decide: they have done nothing yet."""
    members = get_members(state)
    if len(members) < get_quorum(state):
        released = replace(state, seats=tuple(seat for seat in state.seats if seat not in members))
        return _give_up(released, f"{len(members)} verifiers for stage {state.stage}")
    is_full = state.is_challenged or get_part(state) is Part.COMMITTEE
    return _assign(state, state.generator.corner if is_full else state.corner)


def _assign(state: CommitteeState, corner: Corner) -> CommitteeStep:
    state = replace(
        state,
        phase=Phase.SEALING,
        corner=corner,
        widest=compute_span(state.widest, corner),
        sealed=(),
    )
    return CommitteeStep(
        state,
        tuple(AssignTask(seat.participant, seat.stage, state.retry, corner) for seat in get_members(state)),
    )


def _give_up(state: CommitteeState, reason: str) -> CommitteeStep:
    """Go on without what a stage was to find: no audit is no verdict, no recheck leaves the agreement."""
    match get_part(state):
        case Part.AUDIT:
            return decide(state, Case.VOID, f"the audit found nobody to do it: {reason}")
        case Part.RECHECK if is_too_shallow(state):
            return decide(state, Case.VOID, f"the challenge found nobody to answer it: {reason}")
        case Part.RECHECK:
            return _agree(state)
        case _:
            following = state.stage + state.plan.committee_size
            if following > state.plan.seat_max:
                return decide(state, Case.VOID, f"no committee decided: {reason}")
            return _draw(state, following)


def _try_next(state: CommitteeState) -> CommitteeStep:
    """Replace a verifier that was silent, as often as there are tries."""
    following = state.stage + 1
    if state.plan.get_part(following) is not get_part(state):
        return _give_up(state, "one after the other was silent")
    return _begin(state, following)


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
        return _give_up(state, f"stage {state.stage}: {len(state.sealed)} claims were sealed")
    return _try_next(state)


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
        return _try_next(state)
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
    return _compare_next(state)


# --- who is right ---------------------------------------------------------------------------------------------


def _compare_next(state: CommitteeState) -> CommitteeStep:
    if not state.pairs:
        return _conclude(state)
    ours, theirs = (get_party_of(state, number) for number in state.pairs[0])
    corner = compute_common_corner(ours.corner, theirs.corner)
    positions = tuple(position for position in state.positions if position <= corner.position_max)
    return CommitteeStep(state, (Compare(state.stage, state.retry, ours, theirs, corner, positions),))


def _judge(state: CommitteeState, event: PairCompared) -> CommitteeStep:
    """Note the verdict on the pair in line. Inconclusive never convicts: it is no mismatch, and among members no match."""
    awaited = (state.stage, state.retry, *state.pairs[:1])
    is_awaited = (event.stage, event.retry, (event.ours, event.against)) == awaited
    if state.phase is not Phase.COMPARING or not is_awaited:
        return CommitteeStep(state)
    is_match, number = event.verdict is Verdict.MATCH, event.ours
    match state.judging:
        case Judging.AGAINST_GENERATOR:
            seats = tuple(
                replace(seat, verdict=event.verdict) if seat.stage == number else seat for seat in state.seats
            )
            state = replace(state, seats=seats)
        case Judging.AMONG_MEMBERS if is_match:
            state = replace(state, matched=(*state.matched, (number, event.against)))
        case Judging.AGAINST_MAJORITY if is_match:
            state = replace(state, confirmed=(*state.confirmed, number))
        case Judging.AGAINST_MAJORITY if event.verdict is Verdict.MISMATCH:
            state = replace(state, rejected=(*state.rejected, number))
        case _:
            pass
    return _compare_next(replace(state, pairs=state.pairs[1:]))


def _conclude(state: CommitteeState) -> CommitteeStep:
    if get_part(state) is not Part.COMMITTEE:
        return _conclude_look(state)
    match state.judging:
        case Judging.AGAINST_GENERATOR:
            return _count_votes(state)
        case Judging.AMONG_MEMBERS:
            return _find_majority(state)
        case Judging.AGAINST_MAJORITY:
            members = ", ".join(str(number) for number in state.majority)
            reason = f"stage {state.stage}: seats {members} agree with each other and not with the generator"
            return decide(state, Case.CONVICTION, reason)
        case _:
            assert_never(state.judging)


def _conclude_look(state: CommitteeState) -> CommitteeStep:
    """Act on what one verifier found: agreement may be rechecked, doubt is looked at again, mismatch is disputed."""
    (seat,) = get_members(state)
    if seat.verdict is Verdict.MISMATCH:
        return _draw(replace(state, finder=seat.stage), COMMITTEE_SEAT)
    is_full = state.corner.full_depth
    if state.retry == 0 and (seat.verdict is Verdict.INCONCLUSIVE or (state.is_challenged and not is_full)):
        return _assign(replace(state, retry=1, positions=()), state.generator.corner)
    state = replace(state, is_full_depth_agreed=state.is_full_depth_agreed or is_full)
    return _draw(state, RECHECK_SEAT) if get_part(state) is Part.AUDIT else _agree(state)


def _count_votes(state: CommitteeState) -> CommitteeStep:
    """Acquit when more than M/2 do not differ from the generator; else see whether those who do are of one mind."""
    members = get_members(state)
    differing = [seat.stage for seat in members if seat.verdict is Verdict.MISMATCH]
    if len(members) - len(differing) >= state.plan.majority:
        reason = f"stage {state.stage}: {len(members) - len(differing)} of {len(members)} match the generator"
        return decide(state, Case.ACQUITTAL, reason)
    if len(differing) >= state.plan.majority:
        pairs = tuple(combinations(differing, 2))
        return _compare_next(replace(state, judging=Judging.AMONG_MEMBERS, pairs=pairs))
    return _give_up(state, f"stage {state.stage}: {len(differing)} of {len(members)} differ")


def _find_majority(state: CommitteeState) -> CommitteeStep:
    """Hold everybody else against the first of those who convict, if they are more than M/2."""
    differing = [seat.stage for seat in get_members(state) if seat.verdict is Verdict.MISMATCH]
    majority = compute_clique(differing, frozenset(state.matched), state.plan.majority)
    if not majority:
        return _give_up(state, f"stage {state.stage}: {len(differing)} differ, and from each other")
    others = (seat for seat in get_judged(state) if has_positions(seat, state.positions))
    pairs = tuple((seat.stage, majority[0]) for seat in others if seat.stage not in majority)
    return _compare_next(replace(state, judging=Judging.AGAINST_MAJORITY, majority=majority, pairs=pairs))


# --- how it ends ----------------------------------------------------------------------------------------------


def _agree(state: CommitteeState) -> CommitteeStep:
    count = sum(seat.is_standing for seat in state.seats)
    return decide(state, Case.AGREE, f"{count} verifiers looked, and their rows and the generator's agree")


def _equivocate(state: CommitteeState, event: Equivocated) -> CommitteeStep:
    if state.pending:
        # An outcome must name every stake in the pool, so it waits until these are known to be there or not.
        return CommitteeStep(
            state if state.equivocation is not None else replace(state, equivocation=event.reason)
        )
    return decide(state, Case.EQUIVOCATION, event.reason)
