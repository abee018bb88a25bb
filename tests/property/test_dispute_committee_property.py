"""Whatever parties do and in whatever order records come twice: one outcome, and one that can be paid."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pocache.protocol.challenge import Corner
from pocache.protocol.committee_terms import COMMITTEE_SEAT, Part
from pocache.protocol.dispute_committee import advance, get_parties, start_dispute
from pocache.protocol.dispute_committee_terms import (
    CommitteeEvent,
    CommitteeState,
    PairCompared,
    RecheckDrawn,
)
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
from pocache.protocol.payoff import DEFAULT_COMMITTEE, Case, settle

FULL = Corner(layer_max=3, position_max=19, full_depth=True)
USER, GENERATOR = ParticipantId("user"), ParticipantId("generator")
RULES = replace(DEFAULT_COMMITTEE, committee_size=3)
HONEST = 0
STEPS_MAX = 600


@dataclass(frozen=True)
class World:
    """What everybody would do. Rows of one class match, those of different classes do not."""

    corner: Corner
    recheck: Corner
    generator_class: int
    generator_opens: bool
    verifiers: tuple[tuple[int, bool, bool, bool], ...]
    """Class, has stake, seals, opens."""


corners = st.one_of(st.just(FULL), st.builds(Corner, st.integers(0, 3), st.integers(4, 19), st.just(False)))
mostly = st.sampled_from([True, True, True, True, False])
worlds = st.builds(
    World,
    corner=corners,
    recheck=corners,
    generator_class=st.integers(0, 1),
    generator_opens=mostly,
    verifiers=st.lists(
        st.tuples(st.sampled_from([0, 0, 0, 1, 2]), mostly, mostly, mostly), min_size=2, max_size=14
    ).map(tuple),
)


def get_index(participant: ParticipantId) -> int:
    return int(participant[1:])


def get_class(world: World, party: Party) -> int:
    return world.generator_class if party.stage == 0 else world.verifiers[get_index(party.participant)][0]


def draw_all(world: World, data: st.DataObject) -> tuple[ParticipantId, ...]:
    names = [ParticipantId(f"v{index}") for index in range(len(world.verifiers))]
    return tuple(data.draw(st.permutations(names), label="order"))


def answer(
    world: World, state: CommitteeState, command: object, data: st.DataObject, doubts: bool
) -> CommitteeEvent:
    """Return what the world does about a command."""
    if isinstance(command, AwaitDraw):
        order = draw_all(world, data)
        if state.plan.get_part(command.stage) is Part.RECHECK:
            return RecheckDrawn(data.draw(st.booleans(), label="recheck"), order, world.recheck)
        return OrderDrawn(command.stage, order)
    if isinstance(command, RequestHold):
        assert state.order[command.place] == command.participant
        has_stake = world.verifiers[get_index(command.participant)][1]
        return (HoldPlaced if has_stake else HoldRefused)(command.participant, command.stage)
    if isinstance(command, AssignTask):
        if not world.verifiers[get_index(command.participant)][2]:
            return SealExpired(-1, 0)
        leaf_count = command.corner.position_max + 1
        return ClaimSealed(
            command.participant, command.stage, command.retry, command.corner, leaf_count, Digest(bytes(32))
        )
    if isinstance(command, SealStage):
        assert command.parties == get_parties(state)
        drawn = data.draw(st.sets(st.integers(0, command.corner.position_max), min_size=1, max_size=4))
        drawn.add(command.corner.position_max)
        opened = {
            party.participant
            for party in command.parties
            if (
                world.generator_opens
                if party.stage == 0
                else world.verifiers[get_index(party.participant)][3]
            )
        }
        return OpeningsClosed(command.stage, command.retry, tuple(sorted(drawn)), frozenset(opened))
    assert isinstance(command, Compare)
    assert command.positions and max(command.positions) <= command.corner.position_max
    same = get_class(world, command.ours) == get_class(world, command.theirs)
    verdict = Verdict.MATCH if same else Verdict.MISMATCH
    if doubts and data.draw(mostly.map(lambda sure: not sure), label="doubt"):
        verdict = Verdict.INCONCLUSIVE
    return PairCompared(command.stage, command.retry, command.ours.stage, command.theirs.stage, verdict)


def run(world: World, data: st.DataObject, *, disturbed: bool) -> Outcome:
    """Play a world to its end; when disturbed, old events come again and the user or a second result cuts in."""
    generator = Party(GENERATOR, 0, Digest(bytes(32)), FULL)
    state = start_dispute(generator=generator, plan=RULES.plan, sample_count=8)
    queue: list[CommitteeEvent] = [AuditOpened(draw_all(world, data), world.corner)]
    past: list[CommitteeEvent] = []
    for _ in range(STEPS_MAX):
        if not queue:
            assert state.phase is Phase.SEALING, f"stuck in {state.phase}"
            queue.append(SealExpired(state.stage, state.retry))
        event = queue.pop(0)
        if disturbed and data.draw(st.integers(0, 40), label="second result") == 0:
            queue.insert(0, event)
            event = Equivocated("two results")
        step = advance(state, event)
        state = step.state
        if not isinstance(event, ClaimSealed):
            past.append(event)
        names = [seat.participant for seat in state.seats]
        assert len(set(names)) == len(names)
        for command in step.commands:
            if isinstance(command, Decide):
                assert state.phase is Phase.DECIDED and len(step.commands) == 1
                assert all(advance(state, again).commands == () for again in past)
                return command.outcome
            queue.append(answer(world, state, command, data, disturbed))
        queue = [one for one in queue if one != SealExpired(-1, 0)]
        if disturbed:
            for again in data.draw(st.lists(st.sampled_from([*past, Deepened()]), max_size=2), label="again"):
                repeated = advance(state, again)
                assert repeated.commands == ()
                state = repeated.state
    raise AssertionError("the dispute does not end")


@settings(max_examples=150, deadline=None)
@given(world=worlds, data=st.data(), disturbed=st.booleans())
def test_every_dispute_ends_once_and_can_be_settled(
    world: World, data: st.DataObject, disturbed: bool
) -> None:
    outcome = run(world, data, disturbed=disturbed)
    settlement = settle(
        RULES,
        case=outcome.case,
        cg=1_000,
        cv=300,
        user=USER,
        generator=GENERATOR,
        verifiers=outcome.verifiers,
        prior=outcome.prior,
        is_challenged=outcome.is_challenged,
        reserve_micro=700,
    )
    assert sum(amount for _, amount in settlement.payouts) == settlement.pool


@settings(max_examples=200, deadline=None)
@given(world=worlds, data=st.data())
def test_only_a_majority_of_one_mind_decides_and_honest_verifiers_lose_only_to_liars(
    world: World, data: st.DataObject
) -> None:
    """Honest rows are class 0; a lie is any other, and one lie matches only its like."""
    outcome = run(world, data, disturbed=False)
    classes = {one.stage: world.verifiers[get_index(one.participant)][0] for one in outcome.verifiers}
    members = [one for one in outcome.verifiers if one.stage >= COMMITTEE_SEAT]
    last = max((RULES.plan.get_stage(one.stage) for one in members), default=0)
    deciders = [
        classes[one.stage] for one in members if RULES.plan.get_stage(one.stage) == last and one.upheld
    ]
    if outcome.case is Case.CONVICTION:
        assert len(deciders) >= RULES.plan.majority
        (mind,) = set(deciders)
        assert mind != world.generator_class
        if mind == HONEST:
            assert all(one.upheld for one in outcome.verifiers if one.opened and classes[one.stage] == HONEST)
    if outcome.case is Case.ACQUITTAL:
        assert len(deciders) >= RULES.plan.majority
        assert set(deciders) == {world.generator_class}
    if outcome.case is Case.AGREE:
        assert not members
        assert {classes[one.stage] for one in outcome.verifiers if one.opened} == {world.generator_class}
    if outcome.case is Case.NO_OPENING:
        assert not world.generator_opens


@settings(max_examples=100, deadline=None)
@given(world=worlds, data=st.data())
def test_with_honest_verifiers_only_a_cheat_is_convicted_and_no_verifier_that_opens_loses(
    world: World, data: st.DataObject
) -> None:
    honest = tuple((HONEST, stake, seals, opens) for _, stake, seals, opens in world.verifiers)
    outcome = run(replace(world, verifiers=honest), data, disturbed=False)
    assert outcome.case not in (
        {Case.ACQUITTAL} if world.generator_class else {Case.CONVICTION, Case.ACQUITTAL}
    )
    if outcome.case in {Case.AGREE, Case.CONVICTION}:
        assert all(one.upheld for one in outcome.verifiers if one.opened)
