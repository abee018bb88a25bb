"""The dispute machine, one test per transition (docs/protocol.md 8)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from pocache.protocol.challenge import Corner
from pocache.protocol.dispute import advance, compute_common_corner, get_parties, start_dispute
from pocache.protocol.dispute_terms import (
    AssignTask,
    AuditOpened,
    AwaitDraw,
    ClaimSealed,
    Command,
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
from pocache.protocol.errors import (
    CommitmentError,
    ConflictError,
    ExpiredError,
    NotAuthorizedError,
    UnknownJobError,
)
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.limits import SAMPLE_COUNT_MAX
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff import Case, VerifierStanding

FULL = Corner(layer_max=3, position_max=19, full_depth=True)
PARTIAL = Corner(layer_max=1, position_max=9, full_depth=False)
GENERATOR = ParticipantId("generator")
V = [ParticipantId(f"v{stage}") for stage in range(8)]
POSITIONS = (1, 5, 9)
MATCH, MISMATCH, INCONCLUSIVE = Verdict.MATCH, Verdict.MISMATCH, Verdict.INCONCLUSIVE


def root(name: str) -> Digest:
    return Digest(name.encode().ljust(32, b"."))


def claim(stage: int, corner: Corner, retry: int = 0) -> ClaimSealed:
    name = V[stage]
    return ClaimSealed(name, stage, retry, corner, corner.position_max + 1, root(f"{name}.{retry}"))


@dataclass
class Dispute:
    """A dispute whose rounds draw V[1], V[2], … in that order."""

    corner: Corner = FULL
    stage_max: int = 4
    candidate_count: int = 6
    commands: tuple[Command, ...] = ()
    state: DisputeState = field(init=False)

    def __post_init__(self) -> None:
        generator = Party(GENERATOR, 0, root("generator"), FULL)
        self.state = start_dispute(generator=generator, stage_max=self.stage_max, sample_count=8)

    def tell(self, event: Event) -> tuple[Command, ...]:
        self.state, self.commands = (step := advance(self.state, event)).state, step.commands
        return self.commands

    @property
    def order(self) -> tuple[ParticipantId, ...]:
        """The candidates that were not drawn yet."""
        return tuple(name for name in V[1 : 1 + self.candidate_count] if name not in self.state.drawn)

    def open(self) -> Dispute:
        self.tell(AuditOpened(self.order, self.corner))
        return self

    def draw(self) -> Dispute:
        """The round that the stage waits for is there."""
        assert self.state.phase is Phase.DRAWING
        self.tell(OrderDrawn(self.state.stage, self.order))
        return self

    def hold(self) -> Dispute:
        """The stake of whom the stage draws, or drew, is locked."""
        if self.state.phase is Phase.DRAWING:
            self.draw()
        assert self.state.candidate is not None
        self.tell(HoldPlaced(self.state.candidate, self.state.stage))
        return self

    def seal(self) -> Dispute:
        self.tell(claim(self.state.stage, self.state.corner, self.state.retry))
        return self

    def close(self, *missing: ParticipantId, positions: tuple[int, ...] = POSITIONS) -> Dispute:
        opened = frozenset(party.participant for party in get_parties(self.state)) - set(missing)
        self.tell(OpeningsClosed(self.state.stage, self.state.retry, positions, opened))
        return self

    def judge(self, *verdicts: Verdict) -> Dispute:
        for verdict in verdicts:
            self.tell(Compared(self.state.stage, self.state.retry, self.state.against[0], verdict))
        return self

    def play(self, *verdicts: Verdict) -> Dispute:
        """Run a whole stage in which everybody seals and opens."""
        return self.hold().seal().close().judge(*verdicts)

    @property
    def outcome(self) -> Outcome:
        (command,) = self.commands
        assert isinstance(command, Decide)
        assert command.outcome == self.state.outcome
        assert self.state.phase is Phase.DECIDED
        return command.outcome


def stand(*opened: bool) -> tuple[VerifierStanding, ...]:
    return tuple(VerifierStanding(V[stage], stage, flag) for stage, flag in enumerate(opened, 1))


def test_an_opened_audit_asks_for_the_stake_of_the_first_candidate() -> None:
    assert Dispute().open().commands == (RequestHold(V[1], 1, 0),)


def test_an_audit_without_candidates_is_void() -> None:
    outcome = Dispute(candidate_count=0).open().outcome
    assert (outcome.case, outcome.stage, outcome.verifiers) == (Case.VOID, 0, ())
    assert "no verifier for stage 1" in outcome.reason


def test_an_audit_opens_once() -> None:
    dispute = Dispute().open()
    before = dispute.state
    assert dispute.tell(AuditOpened((V[5],), PARTIAL)) == ()
    assert dispute.state == before


def test_a_locked_stake_gives_the_verifier_its_task() -> None:
    dispute = Dispute(corner=PARTIAL).open().hold()
    assert dispute.commands == (AssignTask(V[1], 1, 0, PARTIAL),)
    assert dispute.state.phase is Phase.SEALING


def test_a_refused_stake_passes_to_the_next_candidate_of_the_same_stage() -> None:
    dispute = Dispute().open()
    assert dispute.tell(HoldRefused(V[1], 1)) == (RequestHold(V[2], 1, 1),)
    assert dispute.state.seats == ()


def test_a_later_stage_waits_for_its_own_draw() -> None:
    """Nobody is asked before the stage's round: who will judge is not known while the stage before runs."""
    dispute = Dispute().open().play(MISMATCH)
    assert dispute.commands == (AwaitDraw(2),)
    assert (dispute.state.phase, dispute.state.order, dispute.state.candidate) == (Phase.DRAWING, (), None)
    assert dispute.tell(OrderDrawn(2, (V[5], V[3]))) == (RequestHold(V[5], 2, 0),)
    assert dispute.tell(HoldRefused(V[5], 2)) == (RequestHold(V[3], 2, 1),)
    assert dispute.state.drawn == (V[1], V[5], V[3])


@pytest.mark.parametrize("stage", [1, 3])
def test_a_draw_for_another_stage_changes_nothing(stage: int) -> None:
    dispute = Dispute().open().play(MISMATCH)
    before = dispute.state
    assert dispute.tell(OrderDrawn(stage, (V[4],))) == ()
    assert dispute.state == before


def test_a_stage_is_drawn_once() -> None:
    dispute = Dispute().open().play(MISMATCH).draw()
    before = dispute.state
    assert dispute.tell(OrderDrawn(2, (V[4],))) == ()
    assert dispute.state == before


def test_who_was_refused_at_a_stage_is_not_drawn_at_a_later_one() -> None:
    dispute = Dispute().open()
    dispute.tell(HoldRefused(V[1], 1))
    dispute.hold().tell(SealExpired(1, 0))
    dispute.draw()
    assert dispute.state.candidate == V[3]
    assert dispute.state.drawn == (V[1], V[2], V[3])


def test_equivocation_while_a_draw_is_awaited_decides() -> None:
    """No stake is being locked, so there is nothing to wait for."""
    dispute = Dispute().open().play(MISMATCH)
    dispute.tell(Equivocated("two results"))
    assert (dispute.outcome.case, dispute.outcome.verifiers) == (Case.EQUIVOCATION, stand(True))
    assert dispute.tell(OrderDrawn(2, (V[2],))) == ()


def test_the_last_refused_stake_ends_in_void() -> None:
    dispute = Dispute(candidate_count=1).open()
    dispute.tell(HoldRefused(V[1], 1))
    assert (dispute.outcome.case, dispute.outcome.stage) == (Case.VOID, 0)


@pytest.mark.parametrize("event", [HoldPlaced(V[2], 1), HoldRefused(V[2], 1), HoldPlaced(V[1], 2)])
def test_word_on_another_hold_changes_nothing(event: Event) -> None:
    dispute = Dispute().open()
    before = dispute.state
    assert dispute.tell(event) == ()
    assert dispute.state == before


def test_a_hold_counts_once() -> None:
    dispute = Dispute().open().hold()
    assert dispute.tell(HoldPlaced(V[1], 1)) == ()
    assert len(dispute.state.seats) == 1


def test_a_claim_seals_the_stage_with_the_generator_and_the_verifier() -> None:
    dispute = Dispute(corner=PARTIAL).open().hold().seal()
    parties = (
        Party(GENERATOR, 0, root("generator"), FULL),
        Party(V[1], 1, root("v1.0"), PARTIAL),
    )
    assert dispute.commands == (SealStage(1, 0, PARTIAL, parties, 8),)


def test_a_later_stage_has_every_verifier_that_stands() -> None:
    dispute = Dispute().open().play(MISMATCH).hold()
    dispute.tell(SealExpired(2, 0))
    dispute.hold().seal()
    (command,) = dispute.commands
    assert isinstance(command, SealStage)
    assert [party.participant for party in command.parties] == [GENERATOR, V[1], V[3]]
    assert [party.stage for party in command.parties] == [0, 1, 3]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"participant": V[2]}, NotAuthorizedError),
        ({"stage": 2}, NotAuthorizedError),
        ({"stage": 0}, NotAuthorizedError),
        ({"retry": 1}, UnknownJobError),
        ({"corner": replace(FULL, position_max=18)}, CommitmentError),
        ({"corner": replace(FULL, layer_max=2)}, CommitmentError),
        ({"corner": replace(FULL, full_depth=False)}, CommitmentError),
        ({"leaf_count": 19}, CommitmentError),
        ({"leaf_count": 21}, CommitmentError),
    ],
)
def test_a_claim_other_than_the_one_asked_for_is_refused(
    change: dict[str, object], error: type[Exception]
) -> None:
    dispute = Dispute().open().hold()
    with pytest.raises(error):
        dispute.tell(replace(claim(1, FULL), **change))  # type: ignore[arg-type]
    assert dispute.state.phase is Phase.SEALING


def test_a_second_claim_is_refused() -> None:
    dispute = Dispute().open().hold().seal()
    with pytest.raises(ConflictError):
        dispute.tell(claim(1, FULL))


def test_a_claim_after_its_deadline_is_refused() -> None:
    dispute = Dispute().open().hold()
    dispute.tell(SealExpired(1, 0))
    with pytest.raises(ExpiredError):
        dispute.tell(claim(1, FULL))


def test_a_claim_for_the_first_look_is_late_in_the_second() -> None:
    dispute = Dispute().open().play(INCONCLUSIVE)
    with pytest.raises(ExpiredError):
        dispute.tell(claim(1, FULL))


def test_a_claim_after_the_outcome_is_refused() -> None:
    dispute = Dispute().open().play(MATCH)
    with pytest.raises(ExpiredError):
        dispute.tell(claim(1, FULL))


def test_a_claim_before_any_audit_is_refused() -> None:
    with pytest.raises(NotAuthorizedError):
        Dispute().tell(claim(1, FULL))


def test_a_verifier_that_never_seals_loses_its_stage() -> None:
    dispute = Dispute().open().hold()
    assert dispute.tell(SealExpired(1, 0)) == (AwaitDraw(2),)
    assert dispute.play(MATCH).outcome.verifiers == stand(False, True)


@pytest.mark.parametrize("event", [SealExpired(1, 1), SealExpired(2, 0)])
def test_the_deadline_of_another_stage_changes_nothing(event: SealExpired) -> None:
    dispute = Dispute().open().hold()
    assert dispute.tell(event) == ()
    assert dispute.state.phase is Phase.SEALING


def test_a_deadline_after_the_claim_changes_nothing() -> None:
    dispute = Dispute().open().hold().seal()
    assert dispute.tell(SealExpired(1, 0)) == ()
    assert dispute.state.phase is Phase.OPENING


def test_openings_ask_for_the_comparison_with_the_generator_first() -> None:
    dispute = Dispute().open().hold().seal().close()
    ours, theirs = Party(V[1], 1, root("v1.0"), FULL), Party(GENERATOR, 0, root("generator"), FULL)
    assert dispute.commands == (Compare(1, 0, ours, theirs, FULL, POSITIONS),)


@pytest.mark.parametrize(("stage", "retry"), [(2, 0), (1, 1)])
def test_openings_of_another_stage_change_nothing(stage: int, retry: int) -> None:
    dispute = Dispute().open().hold().seal()
    assert dispute.tell(OpeningsClosed(stage, retry, POSITIONS, frozenset())) == ()
    assert dispute.state.phase is Phase.OPENING


def test_a_silent_generator_ends_the_dispute() -> None:
    outcome = Dispute().open().hold().seal().close(GENERATOR).outcome
    assert (outcome.case, outcome.deciding, outcome.prior) == (Case.NO_OPENING, None, None)
    assert outcome.verifiers == stand(True)


def test_a_silent_generator_does_not_excuse_a_silent_verifier() -> None:
    outcome = Dispute().open().hold().seal().close(GENERATOR, V[1]).outcome
    assert (outcome.case, outcome.verifiers) == (Case.NO_OPENING, stand(False))


def test_a_verifier_that_never_opens_loses_its_stage() -> None:
    dispute = Dispute().open().hold().seal().close(V[1])
    assert dispute.commands == (AwaitDraw(2),)
    assert dispute.play(MATCH).outcome.verifiers == stand(False, True)


def test_a_verifier_that_does_not_open_again_is_no_prior() -> None:
    dispute = Dispute().open().play(MISMATCH).hold().seal().close(V[1]).judge(MISMATCH)
    assert dispute.commands == (AwaitDraw(3),)
    assert [party.participant for party in get_parties(dispute.state)] == [GENERATOR, V[2]]
    assert dispute.play(MATCH).outcome.verifiers == stand(False, True, True)


def test_the_first_verifier_agrees() -> None:
    outcome = Dispute().open().play(MATCH).outcome
    assert (outcome.case, outcome.stage, outcome.deciding, outcome.prior) == (Case.AGREE, 1, V[1], None)
    assert outcome.verifiers == stand(True)


def test_a_mismatch_of_the_first_verifier_goes_to_the_second_stage() -> None:
    assert Dispute().open().play(MISMATCH).commands == (AwaitDraw(2),)


def test_a_later_verifier_confirms_the_generator() -> None:
    outcome = Dispute().open().play(MISMATCH).play(MATCH).outcome
    assert (outcome.case, outcome.stage, outcome.deciding) == (Case.CONFIRM_GENERATOR, 2, V[2])


def test_a_later_verifier_confirms_the_first() -> None:
    dispute = Dispute().open().play(MISMATCH).hold().seal().close().judge(MISMATCH)
    (command,) = dispute.commands
    assert isinstance(command, Compare)
    assert (command.ours.participant, command.theirs.participant) == (V[2], V[1])
    outcome = dispute.judge(MATCH).outcome
    assert (outcome.case, outcome.deciding, outcome.prior) == (Case.CONFIRM_PRIOR, V[2], V[1])


def test_the_first_prior_that_matches_is_confirmed() -> None:
    dispute = Dispute().open().play(MISMATCH).play(MISMATCH, MISMATCH).play(MISMATCH, MISMATCH, MATCH)
    assert (dispute.outcome.stage, dispute.outcome.deciding, dispute.outcome.prior) == (3, V[3], V[2])


def test_inconclusive_with_a_prior_convicts_nobody() -> None:
    dispute = Dispute().open().play(MISMATCH).play(MISMATCH, INCONCLUSIVE)
    assert dispute.commands == (AwaitDraw(3),)


def test_the_last_stage_without_a_match_is_void() -> None:
    dispute = Dispute(stage_max=2).open().play(MISMATCH).play(MISMATCH, MISMATCH)
    outcome = dispute.outcome
    assert (outcome.case, outcome.stage, outcome.deciding) == (Case.VOID, 2, None)
    assert outcome.verifiers == stand(True, True)


def test_silence_at_the_last_stage_is_void() -> None:
    dispute = Dispute(stage_max=2).open().play(MISMATCH).hold()
    dispute.tell(SealExpired(2, 0))
    assert (dispute.outcome.case, dispute.outcome.verifiers) == (Case.VOID, stand(True, False))


def test_running_out_of_candidates_is_void() -> None:
    outcome = Dispute(candidate_count=1).open().play(MISMATCH).draw().outcome
    assert (outcome.case, outcome.stage, outcome.verifiers) == (Case.VOID, 1, stand(True))
    assert "no verifier for stage 2" in outcome.reason


def test_inconclusive_is_looked_at_again_at_full_depth_with_four_times_the_positions() -> None:
    dispute = Dispute(corner=PARTIAL).open().play(INCONCLUSIVE)
    assert dispute.commands == (AssignTask(V[1], 1, 1, FULL),)
    dispute.seal()
    (command,) = dispute.commands
    assert isinstance(command, SealStage)
    assert (command.retry, command.corner, command.sample_count) == (1, FULL, 32)
    assert command.parties[1] == Party(V[1], 1, root("v1.1"), FULL)


def test_four_times_the_positions_stays_within_what_a_message_carries() -> None:
    dispute = Dispute()
    dispute.state = replace(dispute.state, sample_count=SAMPLE_COUNT_MAX)
    (command,) = dispute.open().play(INCONCLUSIVE).seal().commands
    assert isinstance(command, SealStage) and command.sample_count == SAMPLE_COUNT_MAX


def test_inconclusive_twice_counts_as_a_match() -> None:
    dispute = Dispute(corner=PARTIAL).open().play(INCONCLUSIVE).seal().close().judge(INCONCLUSIVE)
    assert (dispute.outcome.case, dispute.outcome.corner) == (Case.AGREE, FULL)


def test_a_mismatch_at_the_second_look_goes_on_at_full_depth() -> None:
    dispute = Dispute(corner=PARTIAL).open().play(INCONCLUSIVE).seal().close().judge(MISMATCH)
    assert dispute.commands == (AwaitDraw(2),)
    assert dispute.hold().commands == (AssignTask(V[2], 2, 0, FULL),)


def test_silence_at_the_second_look_loses_the_stage() -> None:
    dispute = Dispute().open().play(INCONCLUSIVE)
    assert dispute.tell(SealExpired(1, 1)) == (AwaitDraw(2),)
    assert dispute.play(MATCH).outcome.verifiers == stand(False, True)


def test_a_match_at_partial_depth_is_final_when_nobody_challenged() -> None:
    outcome = Dispute(corner=PARTIAL).open().play(MATCH).outcome
    assert (outcome.case, outcome.corner) == (Case.AGREE, PARTIAL)


@pytest.mark.parametrize("when", ["sealing", "opening"])
def test_a_challenge_during_a_partial_stage_has_a_match_looked_at_again(when: str) -> None:
    dispute = Dispute(corner=PARTIAL).open().hold()
    if when == "opening":
        dispute.seal()
    assert dispute.tell(Deepened()) == ()
    if when == "sealing":
        dispute.seal()
    dispute.close().judge(MATCH)
    assert dispute.commands == (AssignTask(V[1], 1, 1, FULL),)
    assert dispute.seal().close().judge(MATCH).outcome.corner == FULL


@pytest.mark.parametrize("is_early", [True, False])
def test_a_challenge_before_the_task_makes_the_stage_full(is_early: bool) -> None:
    dispute = Dispute(corner=PARTIAL)
    if is_early:
        dispute.tell(Deepened())
    dispute.open()
    dispute.tell(Deepened())
    assert dispute.hold().commands == (AssignTask(V[1], 1, 0, FULL),)
    assert dispute.seal().close().judge(MATCH).outcome.case is Case.AGREE


def test_a_mismatch_at_partial_depth_stands_after_a_challenge() -> None:
    dispute = Dispute(corner=PARTIAL).open().hold()
    dispute.tell(Deepened())
    dispute.seal().close().judge(MISMATCH)
    assert dispute.hold().commands == (AssignTask(V[2], 2, 0, FULL),)


def test_a_prior_with_a_shallower_corner_is_compared_on_what_both_have() -> None:
    dispute = Dispute(corner=PARTIAL).open().play(MISMATCH).play(INCONCLUSIVE).seal()
    dispute.close(positions=(3, 9, 12)).judge(MISMATCH)
    (command,) = dispute.commands
    assert isinstance(command, Compare)
    assert (command.theirs.participant, command.corner, command.positions) == (V[1], PARTIAL, (3, 9))


def test_a_prior_that_had_nothing_to_open_is_neither_silent_nor_compared() -> None:
    dispute = Dispute(corner=PARTIAL).open().play(MISMATCH).play(INCONCLUSIVE).seal()
    dispute.close(V[1], positions=(10, 12)).judge(MISMATCH)
    assert dispute.commands == (AwaitDraw(3),)
    assert not dispute.state.seats[0].is_silent
    assert dispute.play(MATCH).outcome.verifiers == stand(True, True, True)


@pytest.mark.parametrize(
    "event", [Compared(1, 0, 1, MATCH), Compared(2, 0, 0, MATCH), Compared(1, 1, 0, MATCH)]
)
def test_a_verdict_that_was_not_asked_for_changes_nothing(event: Compared) -> None:
    dispute = Dispute().open().hold().seal().close()
    assert dispute.tell(event) == ()
    assert dispute.state.phase is Phase.COMPARING


def test_equivocation_without_an_audit_decides() -> None:
    dispute = Dispute()
    dispute.tell(Equivocated("two results"))
    assert (dispute.outcome.case, dispute.outcome.stage) == (Case.EQUIVOCATION, 0)
    assert dispute.outcome.reason == "two results"


def test_equivocation_during_a_stage_decides() -> None:
    dispute = Dispute().open().play(MISMATCH).hold().seal()
    dispute.tell(Equivocated("two results"))
    assert (dispute.outcome.case, dispute.outcome.verifiers) == (Case.EQUIVOCATION, stand(True, False))


@pytest.mark.parametrize(("placed", "count"), [(True, 1), (False, 0)])
def test_equivocation_waits_for_the_word_on_a_hold(placed: bool, count: int) -> None:
    dispute = Dispute().open()
    assert dispute.tell(Equivocated("two results")) == ()
    assert dispute.tell(Equivocated("and again")) == ()
    dispute.tell(HoldPlaced(V[1], 1) if placed else HoldRefused(V[1], 1))
    assert (dispute.outcome.case, dispute.outcome.stage) == (Case.EQUIVOCATION, count)
    assert dispute.outcome.reason == "two results"


@pytest.mark.parametrize(
    "event",
    [
        AuditOpened((V[1],), FULL),
        OrderDrawn(1, (V[2],)),
        HoldPlaced(V[2], 2),
        SealExpired(1, 0),
        OpeningsClosed(1, 0, POSITIONS, frozenset()),
        Compared(1, 0, 0, MISMATCH),
        Deepened(),
        Equivocated("late"),
    ],
)
def test_nothing_happens_after_the_outcome(event: Event) -> None:
    dispute = Dispute().open().play(MATCH)
    before = dispute.state
    assert dispute.tell(event) == ()
    assert dispute.state == before


def test_full_depth_is_common_only_to_two_full_corners() -> None:
    assert compute_common_corner(FULL, PARTIAL) == PARTIAL
    one, other = Corner(2, 15, False), Corner(1, 18, False)
    assert compute_common_corner(one, other) == Corner(1, 15, False)
