"""Who is right in a dispute of `fixed-fee-committee`: pairs compared one after the other, and what their verdicts add up to.

Owns the order of comparison, the committee's majorities and what one verifier's finding leads to (docs/protocol.md 8.10.4,
8.10.6). Compares no rows: it says which two are next, and is told.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import assert_never

from pocache.protocol.committee_outcome import (
    compute_clique,
    decide,
    get_judged,
    get_members,
    get_part,
    get_party_of,
    has_positions,
)
from pocache.protocol.committee_seating import agree, assign_tasks, draw_stage, give_up
from pocache.protocol.committee_terms import COMMITTEE_SEAT, RECHECK_SEAT, Part
from pocache.protocol.dispute import compute_common_corner
from pocache.protocol.dispute_committee_terms import (
    CommitteeState,
    CommitteeStep,
    Judging,
    PairCompared,
)
from pocache.protocol.dispute_terms import Compare, Phase
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff_terms import Case


def compare_next(state: CommitteeState) -> CommitteeStep:
    """Ask for the comparison of the pair in line; conclude when none is left."""
    if not state.pairs:
        return _conclude(state)
    ours, theirs = (get_party_of(state, number) for number in state.pairs[0])
    corner = compute_common_corner(ours.corner, theirs.corner)
    positions = tuple(position for position in state.positions if position <= corner.position_max)
    return CommitteeStep(state, (Compare(state.stage, state.retry, ours, theirs, corner, positions),))


def judge_pair(state: CommitteeState, event: PairCompared) -> CommitteeStep:
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
    return compare_next(replace(state, pairs=state.pairs[1:]))


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
        return draw_stage(replace(state, finder=seat.stage), COMMITTEE_SEAT)
    is_full = state.corner.full_depth
    if state.retry == 0 and (seat.verdict is Verdict.INCONCLUSIVE or (state.is_challenged and not is_full)):
        return assign_tasks(replace(state, retry=1, positions=()), state.generator.corner)
    state = replace(state, is_full_depth_agreed=state.is_full_depth_agreed or is_full)
    return draw_stage(state, RECHECK_SEAT) if get_part(state) is Part.AUDIT else agree(state)


def _count_votes(state: CommitteeState) -> CommitteeStep:
    """Acquit when more than M/2 do not differ from the generator; else see whether those who do are of one mind."""
    members = get_members(state)
    differing = [seat.stage for seat in members if seat.verdict is Verdict.MISMATCH]
    if len(members) - len(differing) >= state.plan.majority:
        reason = f"stage {state.stage}: {len(members) - len(differing)} of {len(members)} match the generator"
        return decide(state, Case.ACQUITTAL, reason)
    if len(differing) >= state.plan.majority:
        pairs = tuple(combinations(differing, 2))
        return compare_next(replace(state, judging=Judging.AMONG_MEMBERS, pairs=pairs))
    return give_up(state, f"stage {state.stage}: {len(differing)} of {len(members)} differ")


def _find_majority(state: CommitteeState) -> CommitteeStep:
    """Hold everybody else against the first of those who convict, if they are more than M/2."""
    differing = [seat.stage for seat in get_members(state) if seat.verdict is Verdict.MISMATCH]
    majority = compute_clique(differing, frozenset(state.matched), state.plan.majority)
    if not majority:
        return give_up(state, f"stage {state.stage}: {len(differing)} differ, and from each other")
    others = (seat for seat in get_judged(state) if has_positions(seat, state.positions))
    pairs = tuple((seat.stage, majority[0]) for seat in others if seat.stage not in majority)
    return compare_next(replace(state, judging=Judging.AGAINST_MAJORITY, majority=majority, pairs=pairs))
