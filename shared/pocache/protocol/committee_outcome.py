"""What a dispute under `fixed-fee-committee` says about itself, and how it ends (docs/economics.md 5.2).

Owns what is read from a state: whose turn it is, who opens, who is of one mind, and whose claims an outcome bears out.
Changes nothing but by returning a new state; what happens when is in ``dispute_committee``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pocache.protocol.challenge import Corner
from pocache.protocol.committee_terms import Part
from pocache.protocol.dispute_committee_terms import (
    CommitteeSeat,
    CommitteeState,
    CommitteeStep,
)
from pocache.protocol.dispute_terms import GENERATOR_STAGE, Decide, Outcome, Party, Phase
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff_terms import Case, VerifierStanding


def decide(state: CommitteeState, case: Case, reason: str) -> CommitteeStep:
    """End the dispute, and say of every claim whether the outcome bears it out."""
    standings = tuple(
        VerifierStanding(seat.participant, seat.stage, seat.is_standing, _is_upheld(state, case, seat))
        for seat in state.seats
    )
    finders = [one.participant for one in standings if one.stage == state.finder and one.upheld]
    is_found = case is Case.CONVICTION and state.finder in state.confirmed and finders
    outcome = Outcome(
        case=case,
        corner=state.widest,
        verifiers=standings,
        deciding=None,
        prior=finders[0] if is_found else None,
        reason=reason,
        is_challenged=state.is_challenged,
    )
    decided = replace(
        state, phase=Phase.DECIDED, outcome=outcome, order=(), positions=(), pairs=(), matched=()
    )
    return CommitteeStep(decided, (Decide(outcome),))


def _is_upheld(state: CommitteeState, case: Case, seat: CommitteeSeat) -> bool:
    """Return whether the outcome bears out a claim; where nothing could be compared, nothing speaks against it."""
    if not seat.is_standing:
        return False
    match case:
        case Case.AGREE | Case.ACQUITTAL:
            return seat.verdict is not Verdict.MISMATCH
        case Case.CONVICTION:
            return seat.stage not in state.rejected
        case _:
            return False


def compute_clique(numbers: Sequence[int], matched: frozenset[tuple[int, int]], size: int) -> tuple[int, ...]:
    """Return the first `size` numbers, in lexicographic order, that match each other pairwise; () if there are none.

    `numbers` ascend, and `matched` has each pair with the smaller first. Matching is not transitive near a threshold,
    so pairs have to be looked at; a committee has at most 15 members, so all of them can be.
    """
    if size == 0:
        return ()
    for index in range(len(numbers) - size + 1):
        first = numbers[index]
        rest = [number for number in numbers[index + 1 :] if (first, number) in matched]
        if size == 1:
            return (first,)
        if found := compute_clique(rest, matched, size - 1):
            return (first, *found)
    return ()


def get_parties(state: CommitteeState) -> tuple[Party, ...]:
    """Return who opens in the current stage: the generator, its verifier, and for a committee every earlier one.

    Who was silent is not asked again. A recheck does not ask the audit's verifier: it is not to learn of it.
    """
    return (state.generator, *(get_party(seat) for seat in get_judged(state)))


def get_judged(state: CommitteeState) -> tuple[CommitteeSeat, ...]:
    """Return the seats whose rows the current stage looks at."""
    seats = state.seats if get_part(state) is Part.COMMITTEE else get_members(state)
    return tuple(seat for seat in seats if seat.is_standing)


def get_part(state: CommitteeState) -> Part:
    """Return what the current stage is for."""
    return state.plan.get_part(state.stage)


def get_quorum(state: CommitteeState) -> int:
    """Return how many verifiers a stage needs at least, or it cannot find anything."""
    return state.plan.majority if get_part(state) is Part.COMMITTEE else 1


def get_members(state: CommitteeState) -> tuple[CommitteeSeat, ...]:
    """Return the seats of the current stage whose verifiers are not silent."""
    numbers = state.plan.get_seats(state.stage)
    return tuple(seat for seat in state.seats if seat.stage in numbers and not seat.is_silent)


def is_too_shallow(state: CommitteeState) -> bool:
    """Return whether the user challenged and nobody has agreed with the generator through all layers."""
    return state.is_challenged and not state.is_full_depth_agreed


def silence(state: CommitteeState, numbers: set[int]) -> CommitteeState:
    """Note who did not seal or open in time."""
    seats = tuple(replace(seat, is_silent=True) if seat.stage in numbers else seat for seat in state.seats)
    return replace(state, seats=seats)


def compute_span(one: Corner, other: Corner) -> Corner:
    """Return the smallest corner that covers both."""
    return Corner(
        layer_max=max(one.layer_max, other.layer_max),
        position_max=max(one.position_max, other.position_max),
        full_depth=one.full_depth or other.full_depth,
    )


def get_party(seat: CommitteeSeat) -> Party:
    """Return a verifier that sealed as one who opens."""
    assert seat.root is not None
    assert seat.corner is not None
    return Party(participant=seat.participant, stage=seat.stage, root=seat.root, corner=seat.corner)


def get_party_of(state: CommitteeState, number: int) -> Party:
    """Return who has a number: the generator has 0."""
    if number == GENERATOR_STAGE:
        return state.generator
    return get_party(next(seat for seat in state.seats if seat.stage == number))


def has_positions(seat: CommitteeSeat, positions: tuple[int, ...]) -> bool:
    """Return whether a verifier that sealed has any of these in its corner."""
    return any(position <= get_party(seat).corner.position_max for position in positions)
