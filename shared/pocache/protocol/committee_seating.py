"""Who is asked in a dispute of `fixed-fee-committee`, in which order, and what follows when nobody is left to ask.

Owns seats, tries and committees (docs/protocol.md 8.10.1 to 8.10.3, 8.10.8): each function takes a state of
``dispute_committee`` and returns the next with its commands. Draws nobody: the order is told. Knows nothing of claims
or verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pocache.protocol.challenge import Corner
from pocache.protocol.committee_outcome import (
    compute_span,
    decide,
    get_members,
    get_part,
    get_quorum,
    is_too_shallow,
)
from pocache.protocol.committee_terms import Part
from pocache.protocol.dispute_committee_terms import CommitteeSeat, CommitteeState, CommitteeStep
from pocache.protocol.dispute_terms import (
    AssignTask,
    AwaitDraw,
    HoldPlaced,
    HoldRefused,
    Phase,
    RequestHold,
)
from pocache.protocol.payoff_terms import Case


def draw_stage(state: CommitteeState, stage: int) -> CommitteeStep:
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


def begin_stage(state: CommitteeState, stage: int) -> CommitteeStep:
    """Ask for the stakes of a stage's seats."""
    state = replace(state, phase=Phase.HOLDING, stage=stage, retry=0)
    return _ask(state, state.plan.get_seats(stage))


def take_hold(state: CommitteeState, event: HoldPlaced | HoldRefused) -> CommitteeStep:
    """Seat whose stake is locked, and ask the next candidate where one is not; the last answer gives out the tasks."""
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


def try_next(state: CommitteeState) -> CommitteeStep:
    """Replace a verifier that was silent, as often as there are tries."""
    following = state.stage + 1
    if state.plan.get_part(following) is not get_part(state):
        return give_up(state, "one after the other was silent")
    return begin_stage(state, following)


def give_up(state: CommitteeState, reason: str) -> CommitteeStep:
    """Go on without what a stage was to find: no audit is no verdict, no recheck leaves the agreement."""
    match get_part(state):
        case Part.AUDIT:
            return decide(state, Case.VOID, f"the audit found nobody to do it: {reason}")
        case Part.RECHECK if is_too_shallow(state):
            return decide(state, Case.VOID, f"the challenge found nobody to answer it: {reason}")
        case Part.RECHECK:
            return agree(state)
        case _:
            following = state.stage + state.plan.committee_size
            if following > state.plan.seat_max:
                return decide(state, Case.VOID, f"no committee decided: {reason}")
            return draw_stage(state, following)


def agree(state: CommitteeState) -> CommitteeStep:
    """Decide for the generator: whoever looked found nothing else."""
    count = sum(seat.is_standing for seat in state.seats)
    return decide(state, Case.AGREE, f"{count} verifiers looked, and their rows and the generator's agree")


def _assign_stage(state: CommitteeState) -> CommitteeStep:
    """Give out the task, or let those go whose stage is too small to decide: they have done nothing yet."""
    members = get_members(state)
    if len(members) < get_quorum(state):
        released = replace(state, seats=tuple(seat for seat in state.seats if seat not in members))
        return give_up(released, f"{len(members)} verifiers for stage {state.stage}")
    is_full = state.is_challenged or get_part(state) is Part.COMMITTEE
    return assign_tasks(state, state.generator.corner if is_full else state.corner)


def assign_tasks(state: CommitteeState, corner: Corner) -> CommitteeStep:
    """Give the stage's members their tasks, all the same."""
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
