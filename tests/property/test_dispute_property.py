"""Whatever parties do and in whatever order records come twice: one outcome, and one that can be paid."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from pocache.protocol.challenge import Corner
from pocache.protocol.dispute import advance, get_parties, start_dispute
from pocache.protocol.dispute_terms import (
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
)
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff import Case, Rational, UnifiedPool, settle

FULL = Corner(layer_max=3, position_max=19, full_depth=True)
USER, GENERATOR = ParticipantId("user"), ParticipantId("generator")
HONEST = 0
STEPS_MAX = 400


@dataclass(frozen=True)
class World:
    """What everybody would do. Rows of one class match, those of different classes do not."""

    stage_max: int
    corner: Corner
    generator_class: int
    generator_opens: bool
    verifiers: tuple[tuple[int, bool, bool, bool], ...]
    """Class, has stake, seals, opens."""


corners = st.one_of(st.just(FULL), st.builds(Corner, st.integers(0, 3), st.integers(4, 19), st.just(False)))
mostly = st.sampled_from([True, True, True, False])
worlds = st.builds(
    World,
    stage_max=st.integers(2, 6),
    corner=corners,
    generator_class=st.integers(0, 2),
    generator_opens=mostly,
    verifiers=st.lists(st.tuples(st.integers(0, 3), mostly, mostly, mostly), max_size=8).map(tuple),
)


def get_index(participant: ParticipantId) -> int:
    return int(participant[1:])


def get_order(world: World) -> tuple[ParticipantId, ...]:
    return tuple(ParticipantId(f"v{index}") for index in range(len(world.verifiers)))


def get_class(world: World, party: Party) -> int:
    return world.generator_class if party.stage == 0 else world.verifiers[get_index(party.participant)][0]


def answer(world: World, state: DisputeState, command: object, data: st.DataObject, doubts: bool) -> Event:
    """Return what the world does about a command."""
    if isinstance(command, AwaitDraw):
        left = [name for name in get_order(world) if name not in state.drawn]
        return OrderDrawn(command.stage, tuple(data.draw(st.permutations(left), label="order")))
    if isinstance(command, RequestHold):
        has_stake = world.verifiers[get_index(command.participant)][1]
        return (HoldPlaced if has_stake else HoldRefused)(command.participant, command.stage)
    if isinstance(command, AssignTask):
        if not world.verifiers[get_index(command.participant)][2]:
            return SealExpired(command.stage, command.retry)
        leaf_count, digest = command.corner.position_max + 1, Digest(bytes(32))
        return ClaimSealed(
            command.participant, command.stage, command.retry, command.corner, leaf_count, digest
        )
    if isinstance(command, SealStage):
        assert command.parties == get_parties(state)
        assert command.sample_count == (32 if command.retry else 8)
        drawn = data.draw(st.sets(st.integers(0, command.corner.position_max), min_size=1, max_size=4))
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
    return Compared(command.stage, command.retry, command.theirs.stage, verdict)


def run(world: World, data: st.DataObject, *, disturbed: bool) -> Outcome:
    """Play a world to its end; when disturbed, old events come again and the user or a second result cuts in."""
    generator = Party(GENERATOR, 0, Digest(bytes(32)), FULL)
    state = start_dispute(generator=generator, stage_max=world.stage_max, sample_count=8)
    event: Event = AuditOpened(get_order(world), world.corner)
    past: list[Event] = []
    for _ in range(STEPS_MAX):
        step = advance(state, event)
        state = step.state
        if not isinstance(event, ClaimSealed):
            past.append(event)
        assert len(state.seats) <= state.stage <= world.stage_max
        assert len(set(state.drawn)) == len(state.drawn)
        commands = list(step.commands)
        if disturbed and state.phase is not Phase.DECIDED:
            for again in data.draw(st.lists(st.sampled_from([*past, Deepened()]), max_size=2), label="again"):
                repeated = advance(state, again)
                assert repeated.commands == ()
                state = repeated.state
            if state.phase is not Phase.WAITING and data.draw(st.integers(0, 30), label="second result") == 0:
                cut = advance(state, Equivocated("two results"))
                state = cut.state
                commands = list(cut.commands) or commands
        (command,) = commands
        if isinstance(command, Decide):
            assert state.phase is Phase.DECIDED
            for again in past:
                assert advance(state, again).commands == ()
            return command.outcome
        event = answer(world, state, command, data, disturbed)
    raise AssertionError("the dispute does not end")


@settings(max_examples=150, deadline=None)
@given(world=worlds, data=st.data(), disturbed=st.booleans())
def test_every_dispute_ends_once_and_can_be_settled(
    world: World, data: st.DataObject, disturbed: bool
) -> None:
    outcome = run(world, data, disturbed=disturbed)
    rules = UnifiedPool(Rational(6, 5), Rational(5), world.stage_max)
    settlement = settle(
        rules,
        case=outcome.case,
        cg=1_000,
        cv=300,
        user=USER,
        generator=GENERATOR,
        verifiers=outcome.verifiers,
        deciding=outcome.deciding,
        prior=outcome.prior,
    )
    assert sum(amount for _, amount in settlement.payouts) == settlement.pool


@settings(max_examples=150, deadline=None)
@given(world=worlds, data=st.data())
def test_only_liars_of_one_mind_convict_the_honest_and_acquit_the_cheat(
    world: World, data: st.DataObject
) -> None:
    """Honest rows are class 0; a lie is any other, and one lie matches only its like."""
    outcome = run(world, data, disturbed=False)
    classes = {
        name: world.verifiers[get_index(name)][0]
        for name in (outcome.deciding, outcome.prior)
        if name is not None
    }
    if outcome.case is Case.NO_OPENING:
        assert not world.generator_opens
    elif outcome.case is Case.CONFIRM_PRIOR:
        assert outcome.deciding is not None and outcome.prior is not None
        assert classes[outcome.deciding] == classes[outcome.prior] != world.generator_class
    elif outcome.case in {Case.AGREE, Case.CONFIRM_GENERATOR}:
        assert outcome.deciding is not None
        assert classes[outcome.deciding] == world.generator_class
        assert world.generator_opens
    else:
        assert outcome.case is Case.VOID
        standing = [
            world.verifiers[get_index(seat.participant)][0] for seat in outcome.verifiers if seat.opened
        ]
        assert world.generator_class not in standing
