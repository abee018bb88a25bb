"""The job's state machine, one test per transition, and each event where it has no business."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocache.protocol.ids import ParticipantId
from pocache.protocol.lifecycle import (
    REASON_ATTEMPTS,
    REASON_CANCELLED,
    REASON_EJECTED,
    REASON_EXPIRED,
    TERMINAL_PHASES,
    Abandon,
    Announce,
    AttemptClosed,
    CancelLease,
    CancelRequested,
    ChargeAttempt,
    DenyLease,
    EscrowPlaced,
    EscrowRefused,
    Event,
    GrantLease,
    JobState,
    LapseLease,
    LeaseRequested,
    Phase,
    PublishTask,
    Recorded,
    Refunded,
    RequestStake,
    Settled,
    StakePlaced,
    StakeRefused,
    Ticked,
    advance,
    create_job,
)

W1, W2 = ParticipantId("worker 1"), ParticipantId("worker 2")
NEW = create_job(attempt_max=2, expires_tick=100)
QUEUED = replace(NEW, phase=Phase.QUEUED, publication=1)
LOCKING = replace(QUEUED, phase=Phase.LOCKING, holder=W1)
GENERATING = replace(LOCKING, phase=Phase.GENERATING, deadline_tick=50)
LAPSING = replace(GENERATING, phase=Phase.LAPSING)
COMMITTED = replace(GENERATING, phase=Phase.COMMITTED)
ABANDONING = replace(QUEUED, phase=Phase.ABANDONING, reason="why")
SETTLED = replace(COMMITTED, phase=Phase.SETTLED, reason="agree")
REFUNDED = replace(ABANDONING, phase=Phase.REFUNDED)
REFUSED = replace(NEW, phase=Phase.REFUSED, reason="short")
STATES = (NEW, QUEUED, LOCKING, GENERATING, LAPSING, COMMITTED, ABANDONING, SETTLED, REFUNDED, REFUSED)
EVENTS: tuple[Event, ...] = (
    EscrowPlaced(),
    EscrowRefused("E204", "short"),
    LeaseRequested(W1, 1),
    StakePlaced(W1, 1, 50),
    StakeRefused(W1, 1, "E204", "short"),
    CancelRequested(),
    Ticked(1_000),
    Recorded(1),
    AttemptClosed(1),
    Settled("agree"),
    Refunded(),
)


def abandoned(state: JobState, reason: str) -> JobState:
    return replace(state, phase=Phase.ABANDONING, holder=None, deadline_tick=None, reason=reason)


def test_escrow_placed_publishes_the_first_attempt() -> None:
    assert advance(NEW, EscrowPlaced()) == (QUEUED, (PublishTask(1, 1), Announce(Phase.QUEUED)))


def test_escrow_refused_ends_the_job_with_the_ledgers_words() -> None:
    state, commands = advance(NEW, EscrowRefused("E204", "short"))
    assert (state, commands) == (REFUSED, (Announce(Phase.REFUSED, "E204", "short"),))


def test_the_first_lease_request_asks_for_the_stake() -> None:
    expected = (LOCKING, (RequestStake(W1, 1), Announce(Phase.LOCKING)))
    assert advance(QUEUED, LeaseRequested(W1, 1)) == expected


def test_stake_placed_grants_the_lease() -> None:
    expected = (GENERATING, (GrantLease(W1, 1), Announce(Phase.GENERATING)))
    assert advance(LOCKING, StakePlaced(W1, 1, 50)) == expected


def test_stake_refused_denies_the_worker_and_offers_the_attempt_again() -> None:
    """The second publication has a number of its own, or the stream would drop it as a duplicate."""
    expected = (
        replace(QUEUED, publication=2),
        (DenyLease(W1, 1, "E204", "short"), PublishTask(1, 2), Announce(Phase.QUEUED)),
    )
    assert advance(LOCKING, StakeRefused(W1, 1, "E204", "short")) == expected
    state, commands = advance(expected[0], LeaseRequested(W2, 1))
    assert (state.phase, state.holder, commands[0]) == (Phase.LOCKING, W2, RequestStake(W2, 1, 2))


def test_a_lease_lapses_at_its_deadline_and_is_closed_once() -> None:
    assert advance(GENERATING, Ticked(49)) == (GENERATING, ())
    assert advance(GENERATING, Ticked(50)) == (LAPSING, (LapseLease(1), Announce(Phase.LAPSING)))
    assert advance(LAPSING, Ticked(51)) == (LAPSING, ())


@pytest.mark.parametrize("state", [GENERATING, LAPSING])
def test_a_record_commits_and_wins_over_a_lapse(state: JobState) -> None:
    assert advance(state, Recorded(1)) == (COMMITTED, (Announce(Phase.COMMITTED),))
    assert advance(COMMITTED, AttemptClosed(1)) == (COMMITTED, ())


@pytest.mark.parametrize("state", [GENERATING, LAPSING])
def test_a_closed_attempt_is_charged_and_the_next_one_published(state: JobState) -> None:
    expected = (
        replace(QUEUED, attempt=2),
        (ChargeAttempt(1, W1), PublishTask(2, 1), Announce(Phase.QUEUED)),
    )
    assert advance(state, AttemptClosed(1)) == expected


def test_a_closed_last_attempt_abandons_the_job() -> None:
    last = replace(LAPSING, attempt=2)
    expected = (
        abandoned(last, REASON_ATTEMPTS),
        (ChargeAttempt(2, W1), Abandon(REASON_ATTEMPTS), Announce(Phase.ABANDONING, reason=REASON_ATTEMPTS)),
    )
    assert advance(last, AttemptClosed(2)) == expected


def test_a_job_that_nobody_takes_is_abandoned() -> None:
    assert advance(QUEUED, Ticked(100)) == (QUEUED, ())
    expected = (
        abandoned(QUEUED, REASON_EXPIRED),
        (Abandon(REASON_EXPIRED), Announce(Phase.ABANDONING, reason=REASON_EXPIRED)),
    )
    assert advance(QUEUED, Ticked(101)) == expected


def test_expiry_does_not_touch_a_job_that_a_worker_holds() -> None:
    assert advance(LOCKING, Ticked(101)) == (LOCKING, ())
    assert advance(COMMITTED, Ticked(101)) == (COMMITTED, ())


def test_a_refund_ends_an_abandoned_job() -> None:
    assert advance(ABANDONING, Refunded()) == (REFUNDED, (Announce(Phase.REFUNDED, reason="why"),))


@pytest.mark.parametrize("state", [COMMITTED, LAPSING, GENERATING])
def test_a_settlement_ends_the_job_even_when_it_overtakes_the_record(state: JobState) -> None:
    settled, commands = advance(state, Settled("agree"))
    assert (settled.phase, settled.reason) == (Phase.SETTLED, "agree")
    assert commands == (Announce(Phase.SETTLED, reason="agree"),)
    assert advance(settled, Recorded(1)) == (settled, ())


@pytest.mark.parametrize(
    ("state", "worker", "code"),
    [
        (NEW, W1, "E207"),
        (LOCKING, W2, "E208"),
        (GENERATING, W2, "E208"),
        (LAPSING, W1, "E206"),
        (LAPSING, W2, "E208"),
        (COMMITTED, W1, "E208"),
        (SETTLED, W2, "E208"),
        (ABANDONING, W2, "E207"),
        (REFUNDED, W1, "E207"),
        (REFUSED, W1, "E207"),
    ],
)
def test_a_lease_request_out_of_place_is_denied(state: JobState, worker: ParticipantId, code: str) -> None:
    same, (command,) = advance(state, LeaseRequested(worker, 1))
    assert same == state
    assert isinstance(command, DenyLease)
    assert (command.worker, command.attempt, command.code) == (worker, 1, code)


def test_who_was_ejected_is_denied_what_is_on_offer_and_keeps_what_it_holds() -> None:
    """The task that it took is offered anew; its own lease is granted again as ever."""
    asked = LeaseRequested(W1, 1, is_ejected=True, publication=QUEUED.publication)
    state, (denial, *commands) = advance(QUEUED, asked)
    assert denial == DenyLease(W1, 1, "E210", REASON_EJECTED)
    assert commands == [PublishTask(1, QUEUED.publication + 1), Announce(Phase.QUEUED)]
    assert state == replace(QUEUED, publication=QUEUED.publication + 1)
    assert advance(state, asked) == (state, (denial,)), "the task that it took was offered anew already"
    for held in (LOCKING, GENERATING):
        assert advance(held, LeaseRequested(W1, 1, is_ejected=True)) == advance(held, LeaseRequested(W1, 1))


@pytest.mark.parametrize("state", STATES)
def test_a_lease_request_for_another_attempt_is_denied(state: JobState) -> None:
    same, (command,) = advance(state, LeaseRequested(W1, 2))
    assert same == state
    assert isinstance(command, DenyLease)
    assert command.code == "E207"


def test_the_holder_asking_again_is_not_given_a_second_stake() -> None:
    """While the stake is being locked the answer is still to come; later the same lease is sent again."""
    assert advance(LOCKING, LeaseRequested(W1, 1)) == (LOCKING, ())
    assert advance(GENERATING, LeaseRequested(W1, 1)) == (GENERATING, (GrantLease(W1, 1),))


@pytest.mark.parametrize("event", [StakePlaced(W2, 1, 50), StakePlaced(W1, 2, 50)])
def test_a_stake_of_another_worker_or_attempt_grants_nothing(event: StakePlaced) -> None:
    assert advance(LOCKING, event) == (LOCKING, ())


@pytest.mark.parametrize("event", [StakeRefused(W2, 1, "E204", ""), StakeRefused(W1, 2, "E204", "")])
def test_a_refusal_of_another_worker_or_attempt_frees_nothing(event: StakeRefused) -> None:
    assert advance(LOCKING, event) == (LOCKING, ())


@pytest.mark.parametrize("event", [Recorded(2), AttemptClosed(2)])
@pytest.mark.parametrize("state", [GENERATING, LAPSING])
def test_news_of_another_attempt_changes_nothing(state: JobState, event: Event) -> None:
    assert advance(state, event) == (state, ())


@pytest.mark.parametrize("state", [QUEUED, LOCKING])
@pytest.mark.parametrize("event", [Recorded(1), AttemptClosed(1), Settled("agree"), Refunded()])
def test_without_a_lease_there_is_nothing_to_record_or_close(state: JobState, event: Event) -> None:
    assert advance(state, event) == (state, ())


def test_cancelling_a_queued_job_abandons_it() -> None:
    expected = (
        abandoned(QUEUED, REASON_CANCELLED),
        (Abandon(REASON_CANCELLED), Announce(Phase.ABANDONING, reason=REASON_CANCELLED)),
    )
    assert advance(QUEUED, CancelRequested()) == expected


def test_cancelling_before_the_escrow_abandons_after_it() -> None:
    state, commands = advance(NEW, CancelRequested())
    assert commands == ()
    assert advance(state, EscrowPlaced())[0].phase is Phase.ABANDONING
    assert advance(state, EscrowRefused("E204", "short"))[0].phase is Phase.REFUSED


def test_cancelling_while_the_stake_is_locked_denies_the_worker_either_way() -> None:
    state, commands = advance(LOCKING, CancelRequested())
    assert (state.phase, commands) == (Phase.LOCKING, ())
    after, commands = advance(state, StakePlaced(W1, 1, 50))
    assert after.phase is Phase.ABANDONING
    assert commands[:2] == (DenyLease(W1, 1, "E208", REASON_CANCELLED), Abandon(REASON_CANCELLED))
    after, commands = advance(state, StakeRefused(W1, 1, "E204", "short"))
    assert after.phase is Phase.ABANDONING
    assert commands[:2] == (DenyLease(W1, 1, "E204", "short"), Abandon(REASON_CANCELLED))


@pytest.mark.parametrize("start", [GENERATING, LAPSING])
def test_cancelling_during_generation_spares_the_next_attempt_not_this_one(start: JobState) -> None:
    state, commands = advance(start, CancelRequested())
    told = (CancelLease(W1, 1),) if start is GENERATING else ()
    assert (state.phase, commands) == (start.phase, told)
    assert advance(state, CancelRequested()) == (state, ())
    after, commands = advance(state, AttemptClosed(1))
    assert after.phase is Phase.ABANDONING
    assert commands[:2] == (ChargeAttempt(1, W1), Abandon(REASON_CANCELLED))
    assert advance(state, Recorded(1))[0].phase is Phase.COMMITTED


@pytest.mark.parametrize("state", [COMMITTED, ABANDONING])
def test_cancelling_comes_too_late_after_a_result_or_an_end(state: JobState) -> None:
    assert advance(state, CancelRequested()) == (state, ())


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", [state for state in STATES if state.phase in TERMINAL_PHASES])
def test_a_terminal_phase_is_never_left(state: JobState, event: Event) -> None:
    same, commands = advance(state, event)
    assert same == state
    assert all(isinstance(command, DenyLease) for command in commands)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_a_duplicate_changes_nothing_and_asks_for_nothing_new(state: JobState, event: Event) -> None:
    """The second delivery may only repeat an answer to a worker."""
    once, _ = advance(state, event)
    twice, commands = advance(once, event)
    assert twice == once
    assert all(isinstance(command, DenyLease | GrantLease) for command in commands)
