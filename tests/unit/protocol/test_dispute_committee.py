"""The dispute machine of `fixed-fee-committee`, one test per transition (docs/economics.md 5.2)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from pocache.protocol.challenge import Corner
from pocache.protocol.committee_outcome import compute_clique
from pocache.protocol.committee_terms import SeatPlan
from pocache.protocol.dispute_committee import advance, get_parties, start_dispute
from pocache.protocol.dispute_committee_terms import (
    CommitteeCommand,
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
from pocache.protocol.errors import (
    CommitmentError,
    ConflictError,
    ExpiredError,
    NotAuthorizedError,
    UnknownJobError,
)
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff import Case

FULL = Corner(layer_max=3, position_max=19, full_depth=True)
PARTIAL = Corner(layer_max=1, position_max=9, full_depth=False)
GENERATOR = ParticipantId("generator")
PLAN = SeatPlan(committee_size=3, committee_count=2)
POSITIONS = (1, 5, 19)
MATCH, MISMATCH, INCONCLUSIVE = Verdict.MATCH, Verdict.MISMATCH, Verdict.INCONCLUSIVE
AUDIT, RECHECK, FIRST, SECOND = 1, 4, 7, 10


def name(number: int) -> ParticipantId:
    """Who is drawn for a seat, unless a test draws somebody else."""
    return ParticipantId(f"v{number:02}")


def names(*numbers: int) -> tuple[ParticipantId, ...]:
    return tuple(name(number) for number in numbers)


def root(text: str) -> Digest:
    return Digest(text.encode().ljust(32, b"."))


@dataclass
class Dispute:
    """A dispute in which the seat's number names the verifier that is drawn for it."""

    corner: Corner = FULL
    plan: SeatPlan = PLAN
    commands: tuple[CommitteeCommand, ...] = ()
    state: CommitteeState = field(init=False)

    def __post_init__(self) -> None:
        generator = Party(GENERATOR, 0, root("generator"), FULL)
        self.state = start_dispute(generator=generator, plan=self.plan, sample_count=8)

    def tell(self, *events: CommitteeEvent) -> Dispute:
        for event in events:
            step = advance(self.state, event)
            self.state, self.commands = step.state, step.commands
        return self

    def open(self, *order: int) -> Dispute:
        return self.tell(AuditOpened(names(*(order or (1, 2, 3))), self.corner))

    def hold(self) -> Dispute:
        for participant, number in self.state.pending:
            self.tell(HoldPlaced(participant, number))
        return self

    def claim(self, number: int) -> ClaimSealed:
        seat = next(one for one in self.state.seats if one.stage == number)
        corner, retry = self.state.corner, self.state.retry
        return ClaimSealed(
            seat.participant, number, retry, corner, corner.position_max + 1, root(f"{number}.{retry}")
        )

    def seal(self, *missing: int) -> Dispute:
        numbers = self.plan.get_seats(self.state.stage)
        for seat in self.state.seats:
            if seat.stage in numbers and seat.stage not in missing:
                self.tell(self.claim(seat.stage))
        return self.tell(SealExpired(self.state.stage, self.state.retry)) if missing else self

    def close(self, *missing: ParticipantId, positions: tuple[int, ...] = POSITIONS) -> Dispute:
        opened = frozenset(party.participant for party in get_parties(self.state)) - set(missing)
        return self.tell(OpeningsClosed(self.state.stage, self.state.retry, positions, opened))

    def judge(self, *verdicts: Verdict) -> Dispute:
        for verdict in verdicts:
            (ours, theirs), *_ = self.state.pairs
            self.tell(PairCompared(self.state.stage, self.state.retry, ours, theirs, verdict))
        return self

    def play(self, *verdicts: Verdict) -> Dispute:
        """Run a whole stage in which everybody seals and opens."""
        return self.hold().seal().close().judge(*verdicts)

    def recheck(self, *, is_drawn: bool = True, corner: Corner = FULL) -> Dispute:
        return self.tell(RecheckDrawn(is_drawn, names(4, 5, 6), corner))

    def call(self, *order: int) -> Dispute:
        """Draw the committee that is waited for."""
        stage = self.state.stage
        return self.tell(OrderDrawn(stage, names(*(order or (stage, stage + 1, stage + 2, stage + 3)))))

    @property
    def outcome(self) -> Outcome:
        (command,) = self.commands
        assert isinstance(command, Decide)
        assert command.outcome == self.state.outcome
        assert self.state.phase is Phase.DECIDED
        return command.outcome

    @property
    def upheld(self) -> list[int]:
        return [one.stage for one in self.outcome.verifiers if one.upheld]

    @property
    def opened(self) -> list[int]:
        return [one.stage for one in self.outcome.verifiers if one.opened]


def disputed() -> Dispute:
    """The audit's verifier said mismatch, and the first committee has its task."""
    return Dispute().open().play(MISMATCH).call().hold()


# --- audit ----------------------------------------------------------------------------------------------------


def test_an_audit_asks_one_candidate_and_gives_it_the_corner() -> None:
    dispute = Dispute(PARTIAL).open()
    assert dispute.commands == (RequestHold(name(1), AUDIT, 0),)
    assert dispute.hold().commands == (AssignTask(name(1), AUDIT, 0, PARTIAL),)
    dispute.seal()
    (command,) = dispute.commands
    assert isinstance(command, SealStage)
    assert (command.stage, command.retry, command.corner, command.sample_count) == (AUDIT, 0, PARTIAL, 8)
    assert [party.participant for party in command.parties] == [GENERATOR, name(1)]
    (compare,) = dispute.close().commands
    assert isinstance(compare, Compare)
    assert (compare.stage, compare.theirs.stage, compare.corner, compare.positions) == (1, 0, PARTIAL, (1, 5))


def test_a_candidate_without_stake_is_passed_over() -> None:
    dispute = Dispute().open().tell(HoldRefused(name(1), AUDIT))
    assert dispute.commands == (RequestHold(name(2), AUDIT, 1),)


def test_an_audit_that_nobody_takes_is_void() -> None:
    dispute = Dispute().open(1).tell(HoldRefused(name(1), AUDIT))
    assert (dispute.outcome.case, dispute.outcome.verifiers) == (Case.VOID, ())
    assert "nobody to do it" in dispute.outcome.reason


def test_an_audit_opens_once() -> None:
    dispute = Dispute().open()
    before = dispute.state
    assert dispute.tell(AuditOpened(names(9), PARTIAL)).commands == ()
    assert dispute.state == before


def test_a_silent_verifier_is_replaced_twice_and_then_the_job_is_void() -> None:
    dispute = Dispute().open().hold().tell(SealExpired(1, 0))
    assert dispute.commands == (RequestHold(name(2), 2, 1),)
    dispute.hold().seal().close(name(2))
    assert dispute.commands == (RequestHold(name(3), 3, 2),)
    dispute.hold().tell(SealExpired(3, 0))
    assert dispute.outcome.case is Case.VOID
    assert [(one.stage, one.opened) for one in dispute.outcome.verifiers] == [
        (1, False),
        (2, False),
        (3, False),
    ]


def test_doubt_is_looked_at_again_in_full_and_then_counts_as_a_match() -> None:
    dispute = Dispute(PARTIAL).open().play(INCONCLUSIVE)
    assert dispute.commands == (AssignTask(name(1), AUDIT, 1, FULL),)
    dispute.seal()
    (command,) = dispute.commands
    assert isinstance(command, SealStage)
    assert (command.retry, command.sample_count) == (1, 32)
    assert dispute.close().judge(INCONCLUSIVE).commands == (AwaitDraw(RECHECK),)


def test_a_challenge_is_answered_in_full() -> None:
    before = Dispute(PARTIAL).tell(Deepened()).open().hold()
    assert before.commands == (AssignTask(name(1), AUDIT, 0, FULL),)
    during = Dispute(PARTIAL).open().hold().tell(Deepened()).seal().close().judge(MATCH)
    assert during.commands == (AssignTask(name(1), AUDIT, 1, FULL),)
    assert during.seal().close().judge(MATCH).recheck(is_drawn=False).outcome.is_challenged


# --- recheck --------------------------------------------------------------------------------------------------


def test_an_agreement_waits_for_a_fresh_round_that_may_leave_it_alone() -> None:
    dispute = Dispute(PARTIAL).open().play(MATCH)
    assert dispute.commands == (AwaitDraw(RECHECK),)
    outcome = dispute.recheck(is_drawn=False).outcome
    assert (outcome.case, outcome.corner, outcome.is_challenged) == (Case.AGREE, PARTIAL, False)
    assert dispute.upheld == [1]


def test_a_recheck_looks_like_an_audit_and_does_not_ask_the_first_verifier() -> None:
    dispute = Dispute(PARTIAL).open().play(MATCH).recheck(corner=FULL)
    assert dispute.commands == (RequestHold(name(4), RECHECK, 0),)
    dispute.hold().seal()
    (command,) = dispute.commands
    assert isinstance(command, SealStage)
    assert [party.stage for party in command.parties] == [0, RECHECK]
    assert command.sample_count == 8
    outcome = dispute.close().judge(MATCH).outcome
    assert (outcome.case, outcome.corner) == (Case.AGREE, FULL)
    assert dispute.upheld == [1, 4]


def test_verification_is_priced_by_all_that_was_given_out() -> None:
    tall = Corner(layer_max=2, position_max=4, full_depth=False)
    outcome = Dispute(PARTIAL).open().play(MATCH).recheck(corner=tall).play(MATCH).outcome
    assert outcome.corner == Corner(layer_max=2, position_max=9, full_depth=False)


def test_nobody_sits_twice() -> None:
    dispute = Dispute().open().play(MATCH).tell(RecheckDrawn(True, names(1, 5), FULL))
    assert dispute.commands == (RequestHold(name(5), RECHECK, 1),)


def test_without_anybody_to_recheck_the_agreement_stands() -> None:
    dispute = Dispute().open().play(MATCH).tell(RecheckDrawn(True, names(1), FULL))
    assert dispute.outcome.case is Case.AGREE


def test_silent_recheckers_lose_and_the_agreement_stands() -> None:
    dispute = Dispute().open().play(MATCH).recheck()
    for number in (4, 5, 6):
        dispute.hold().tell(SealExpired(number, 0))
    assert (dispute.outcome.case, dispute.upheld, dispute.opened) == (Case.AGREE, [1], [1])
    assert len(dispute.outcome.verifiers) == 4


def test_a_challenge_after_a_partial_agreement_forces_the_recheck() -> None:
    dispute = Dispute(PARTIAL).open().play(MATCH).tell(Deepened()).recheck(is_drawn=False, corner=PARTIAL)
    assert dispute.commands == (RequestHold(name(4), RECHECK, 0),)
    assert dispute.hold().commands == (AssignTask(name(4), RECHECK, 0, FULL),)
    assert dispute.seal().close().judge(MATCH).outcome.case is Case.AGREE


def test_a_challenge_that_nobody_answers_is_void() -> None:
    dispute = Dispute(PARTIAL).open().play(MATCH).tell(Deepened(), RecheckDrawn(False, (), FULL))
    assert (dispute.outcome.case, dispute.opened) == (Case.VOID, [1])


def test_a_challenge_after_a_full_agreement_changes_who_pays_and_nothing_else() -> None:
    dispute = Dispute().open().play(MATCH).tell(Deepened()).recheck(is_drawn=False)
    assert (dispute.outcome.case, dispute.outcome.is_challenged) == (Case.AGREE, True)


# --- committee ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_recheck", [False, True])
def test_a_mismatch_calls_a_committee_from_a_fresh_round(is_recheck: bool) -> None:
    dispute = Dispute().open()
    if is_recheck:
        dispute.play(MATCH).recheck()
    dispute.play(MISMATCH)
    assert dispute.commands == (AwaitDraw(FIRST),)
    called = dispute.call().commands
    assert called == tuple(RequestHold(name(7 + place), 7 + place, place) for place in range(3))


def test_members_get_their_task_together_in_full_and_seal_before_anybody_opens() -> None:
    dispute = Dispute(PARTIAL).open().play(MISMATCH).call()
    assert dispute.tell(HoldPlaced(name(8), 8)).commands == ()
    assert dispute.tell(HoldRefused(name(7), 7)).commands == (RequestHold(name(10), 7, 3),)
    assert dispute.tell(HoldPlaced(name(9), 9)).commands == ()
    dispute.tell(HoldPlaced(name(10), 7))
    assert dispute.commands == (
        AssignTask(name(10), 7, 0, FULL),
        AssignTask(name(8), 8, 0, FULL),
        AssignTask(name(9), 9, 0, FULL),
    )
    assert dispute.tell(dispute.claim(8)).commands == dispute.tell(dispute.claim(9)).commands == ()
    (command,) = dispute.tell(dispute.claim(7)).commands
    assert isinstance(command, SealStage)
    assert [party.stage for party in command.parties] == [0, 1, 7, 8, 9]
    assert (command.stage, command.sample_count) == (FIRST, 32)


def test_a_majority_for_the_generator_acquits() -> None:
    dispute = disputed().seal().close().judge(MISMATCH, MATCH, MISMATCH, MATCH)
    assert (dispute.outcome.case, dispute.outcome.prior) == (Case.ACQUITTAL, None)
    assert (dispute.upheld, dispute.opened) == ([7, 9], [1, 7, 8, 9])


def test_doubt_acquits_and_costs_nobody_anything() -> None:
    """The finder's own rows, at four times the positions, are not told apart either."""
    dispute = disputed().seal().close().judge(INCONCLUSIVE, INCONCLUSIVE, MATCH, MISMATCH)
    assert (dispute.outcome.case, dispute.upheld) == (Case.ACQUITTAL, [1, 7, 8])


def test_a_majority_of_one_mind_convicts_and_the_finder_is_named() -> None:
    dispute = disputed().seal().close().judge(MISMATCH, MISMATCH, MATCH, MISMATCH)
    (among,) = dispute.commands
    assert isinstance(among, Compare)
    assert (among.ours.stage, among.theirs.stage) == (7, 9)
    dispute.judge(MATCH)
    assert dispute.state.pairs == ((1, 7), (8, 7))
    dispute.judge(MATCH, MISMATCH)
    assert (dispute.outcome.case, dispute.outcome.prior) == (Case.CONVICTION, name(1))
    assert (dispute.upheld, dispute.opened) == ([1, 7, 9], [1, 7, 8, 9])


def test_a_finder_that_differs_from_everybody_loses_when_the_generator_is_convicted() -> None:
    dispute = disputed().seal().close().judge(*[MISMATCH] * 4)
    dispute.judge(MATCH, MATCH, MATCH)
    assert dispute.state.pairs == ((1, 7), (9, 7))
    dispute.judge(MISMATCH, INCONCLUSIVE)
    assert (dispute.outcome.case, dispute.outcome.prior) == (Case.CONVICTION, None)
    assert dispute.upheld == [7, 8, 9]


def test_a_finder_of_whom_nothing_is_compared_loses_nothing_and_gets_no_bonus() -> None:
    dispute = Dispute(PARTIAL).open().play(MISMATCH).call().hold().seal().close(positions=(15, 19))
    assert dispute.state.pairs == ((7, 0), (8, 0), (9, 0))
    dispute.judge(*[MISMATCH] * 3).judge(*[MATCH] * 3).judge(MATCH)
    assert (dispute.outcome.prior, dispute.upheld) == (None, [1, 7, 8, 9])


def test_a_finder_of_whom_nothing_is_compared_loses_when_the_generator_is_acquitted() -> None:
    dispute = Dispute(PARTIAL).open().play(MISMATCH).call().hold().seal().close(positions=(15, 19))
    assert dispute.judge(*[MATCH] * 3).upheld == [7, 8, 9]


def test_a_verifier_that_agreed_with_a_cheat_loses_only_if_its_rows_are_the_cheats() -> None:
    for verdict, upheld in ((MISMATCH, [4, 7, 8, 9]), (MATCH, [1, 4, 7, 8, 9])):
        dispute = Dispute().open().play(MATCH).recheck().play(MISMATCH).call().hold().seal().close()
        dispute.judge(MATCH, *[MISMATCH] * 4).judge(*[MATCH] * 3).judge(verdict, MATCH, MATCH)
        assert (dispute.outcome.case, dispute.outcome.prior) == (Case.CONVICTION, name(4))
        assert dispute.upheld == upheld


def test_a_split_committee_is_followed_by_another_from_a_fresh_round() -> None:
    dispute = disputed().seal(9).close().judge(MISMATCH, MATCH, MISMATCH)
    assert dispute.commands == (AwaitDraw(SECOND),)
    dispute.call().play(MISMATCH, MATCH, MISMATCH, MATCH, MATCH, MATCH)
    assert (dispute.outcome.case, dispute.upheld) == (Case.ACQUITTAL, [7, 10, 11, 12])
    assert dispute.opened == [1, 7, 8, 10, 11, 12]


def test_members_who_differ_from_each_other_convict_nobody() -> None:
    dispute = disputed().seal().close().judge(*[MISMATCH] * 4).judge(MISMATCH, INCONCLUSIVE, MISMATCH)
    assert dispute.commands == (AwaitDraw(SECOND),)
    dispute.call().play(*[MISMATCH] * 7).judge(*[MISMATCH] * 3)
    assert (dispute.outcome.case, dispute.upheld) == (Case.VOID, [])
    assert dispute.opened == [1, 7, 8, 9, 10, 11, 12]


def test_one_committee_may_be_all_there_is() -> None:
    dispute = Dispute(plan=replace(PLAN, committee_count=1)).open().play(MISMATCH).call().hold()
    dispute.seal().close().judge(*[MISMATCH] * 4).judge(*[MISMATCH] * 3)
    assert dispute.outcome.case is Case.VOID


def test_a_committee_without_a_quorum_is_released_and_the_next_one_drawn() -> None:
    dispute = Dispute().open().play(MISMATCH).call(7).tell(HoldPlaced(name(7), 7))
    assert dispute.commands == (AwaitDraw(SECOND),)
    assert [seat.stage for seat in dispute.state.seats] == [1]


def test_a_committee_that_does_not_seal_is_followed_by_another_and_keeps_what_it_earned() -> None:
    dispute = disputed().seal(8, 9)
    assert dispute.commands == (AwaitDraw(SECOND),)
    dispute.call(10).tell(HoldPlaced(name(10), 10))
    assert (dispute.outcome.case, dispute.opened) == (Case.VOID, [1, 7])
    assert [one.stage for one in dispute.outcome.verifiers] == [1, 7, 8, 9]


def test_two_of_three_can_decide_when_one_is_silent() -> None:
    dispute = disputed().seal(8).close().judge(MISMATCH, MATCH, MATCH)
    assert (dispute.outcome.case, dispute.upheld) == (Case.ACQUITTAL, [7, 9])


def test_a_member_that_does_not_open_is_not_counted() -> None:
    dispute = disputed().seal().close(name(8)).judge(MISMATCH, MATCH, MISMATCH)
    assert dispute.commands == (AwaitDraw(SECOND),)


@pytest.mark.parametrize("at_committee", [False, True])
def test_a_generator_that_does_not_open_ends_it(at_committee: bool) -> None:
    dispute = disputed() if at_committee else Dispute().open().hold()
    outcome = dispute.seal().close(GENERATOR).outcome
    assert outcome.case is Case.NO_OPENING
    assert all(one.opened and not one.upheld for one in outcome.verifiers)


# --- equivocation, duplicates, strangers ----------------------------------------------------------------------


def test_equivocation_ends_it_at_once_or_when_the_stakes_are_known() -> None:
    assert Dispute().tell(Equivocated("two")).outcome.case is Case.EQUIVOCATION
    dispute = Dispute().open().play(MISMATCH).call().tell(HoldPlaced(name(7), 7))
    assert dispute.tell(Equivocated("two"), Equivocated("three")).commands == ()
    assert dispute.tell(HoldRefused(name(8), 8)).commands == ()
    outcome = dispute.tell(HoldPlaced(name(9), 9)).outcome
    assert (outcome.case, outcome.reason) == (Case.EQUIVOCATION, "two")
    assert [one.stage for one in outcome.verifiers] == [1, 7, 9]


def test_events_that_nobody_waits_for_change_nothing() -> None:
    dispute = disputed()
    before = dispute.state
    for event in (
        AuditOpened(names(9), FULL),
        RecheckDrawn(True, names(9), FULL),
        OrderDrawn(FIRST, names(9)),
        HoldPlaced(name(9), 9),
        HoldRefused(name(11), 7),
        SealExpired(AUDIT, 0),
        SealExpired(FIRST, 1),
        OpeningsClosed(FIRST, 0, POSITIONS, frozenset()),
        PairCompared(FIRST, 0, 7, 0, MATCH),
    ):
        assert dispute.tell(event).commands == ()
        assert dispute.state == before


def test_only_the_round_that_is_waited_for_draws() -> None:
    dispute = Dispute().open().play(MISMATCH)
    before = dispute.state
    dispute.tell(OrderDrawn(SECOND, names(7)), RecheckDrawn(True, names(7), FULL))
    assert dispute.state == before
    rechecking = Dispute().open().play(MATCH)
    waiting = rechecking.state
    assert rechecking.tell(OrderDrawn(RECHECK, names(7))).state == waiting


def test_a_verdict_on_another_pair_is_not_taken() -> None:
    dispute = disputed().seal().close()
    before = dispute.state
    for other in ((AUDIT, 0, 1, 0), (FIRST, 1, 1, 0), (FIRST, 0, 7, 0), (FIRST, 0, 1, 7)):
        dispute.tell(PairCompared(*other, MATCH))
    assert dispute.state == before


def test_nothing_happens_after_the_end() -> None:
    dispute = Dispute().open().play(MATCH).recheck(is_drawn=False)
    before = dispute.state
    dispute.tell(Equivocated("late"), Deepened(), RecheckDrawn(True, names(4), FULL))
    assert (dispute.state, dispute.commands) == (before, ())


def test_claims_that_were_not_asked_for_are_refused() -> None:
    dispute = disputed()
    good = dispute.claim(8)
    for claim, error in (
        (replace(good, participant=name(9)), NotAuthorizedError),
        (replace(good, stage=12), NotAuthorizedError),
        (replace(good, participant=name(1), stage=1), ExpiredError),
        (replace(good, retry=1), UnknownJobError),
        (replace(good, corner=PARTIAL), CommitmentError),
        (replace(good, leaf_count=19), CommitmentError),
    ):
        with pytest.raises(error):
            dispute.tell(claim)
    dispute.tell(good)
    with pytest.raises(ConflictError):
        dispute.tell(good)
    dispute.tell(SealExpired(FIRST, 0))
    with pytest.raises(ExpiredError):
        dispute.tell(good)


def test_a_member_that_is_late_is_told_so() -> None:
    dispute = disputed()
    late = dispute.claim(8)
    dispute.seal(8)
    assert dispute.state.phase is Phase.OPENING
    with pytest.raises(ExpiredError, match="time for the claim of seat 8 is over"):
        dispute.tell(late)


def test_a_claim_before_the_task_or_after_the_end_is_refused() -> None:
    dispute = Dispute().open().play(MISMATCH).call().tell(HoldPlaced(name(7), 7))
    with pytest.raises(UnknownJobError, match="no task"):
        dispute.tell(dispute.claim(7))
    decided = Dispute().open().play(MATCH)
    claim = decided.claim(1)
    decided.recheck(is_drawn=False)
    with pytest.raises(ExpiredError, match="decided"):
        decided.tell(claim)


def test_the_majority_is_the_first_clique_and_pairs_decide_it() -> None:
    """1-2-3 is a chain: its ends do not match. 2-3-4 is the clique."""
    chain = frozenset({(1, 2), (2, 3), (3, 4), (2, 4)})
    assert compute_clique([1, 2, 3, 4], chain, 3) == (2, 3, 4)
    assert compute_clique([1, 2, 3], chain, 3) == ()
    assert compute_clique([1, 2, 3], chain, 2) == (1, 2)
    assert compute_clique([], frozenset(), 1) == ()
