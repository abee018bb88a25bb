"""A job's way through the router, message by message: what each answer of the others makes it say."""

from __future__ import annotations

from typing import Any

import pytest

from kit.network import Network, make_key
from kit.routing import PROMPT, USER, RouterHarness, make_submission
from pocache.protocol.commitment import compute_token_hash
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.errors import UnknownJobError
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role
from pocache_router.service import LAPSE_AGAIN_TICKS

W1, W2 = make_key("worker-1"), make_key("worker-2")
LEASE_TICKS, QUEUE_TICKS = 3, 5


def topics(emissions: list[Any]) -> list[Any]:
    return [emission.topic for emission in emissions]


def test_from_submission_to_settlement(router: RouterHarness, network: Network) -> None:
    """Escrow, queue, stake, lease, record, payout: each step says exactly what the next service needs."""
    job_id = router.submit()
    emissions = router.drain()
    assert topics(emissions) == [t.JOB_ADMITTED, t.ROUTER_HOLD_REQUESTED, t.JOB_EVENT]
    admitted = emissions[0].body
    assert isinstance(admitted, m.JobAdmittedV1)
    assert bytes(network.envelope_id(admitted.submission)) == job_id
    assert admitted.user == USER.participant_id

    router.place_escrow(job_id)
    emissions = router.drain()
    assert topics(emissions) == [t.GENERATE_TASK, t.JOB_EVENT]
    assert emissions[0].subject == f"tasks.generate.{network.model.model_id.hex()}"
    assert emissions[0].body == m.GenerateTaskV1(job_id=job_id, attempt=1, model_id=network.model.model_id)

    router.request_lease(job_id, W1)
    emissions = router.drain()
    assert topics(emissions) == [t.ROUTER_HOLD_REQUESTED, t.JOB_EVENT]
    hold = emissions[0].body
    products = network.genesis.rule_set.compute_products(
        admitted.generation_max_micro, admitted.verification_max_micro
    )
    assert hold == m.HoldRequestV1(
        purpose="generator_stake",
        job_id=job_id,
        attempt=1,
        party=W1.participant_id,
        amount_micro=products.generator_stake,
    )

    router.place_stake(job_id, W1)
    emissions = router.drain()
    assert topics(emissions) == [t.LEASE_GRANTED, t.JOB_EVENT]
    assert emissions[0].subject == f"leases.granted.{W1.participant_id}"

    router.record(job_id, W1)
    (event,) = router.outbox_of(t.JOB_EVENT)
    assert (event.phase, event.result, event.generator) == ("committed", b"result", W1.participant_id)

    router.settle(job_id, "no_challenge")
    emissions = router.drain()
    assert topics(emissions) == [t.JOB_EVENT]
    end = emissions[0].body
    assert isinstance(end, m.JobEventV1)
    assert (end.phase, end.detail, end.result) == ("settled", "no_challenge", b"result")
    assert emissions[0].subject == f"jobs.events.{USER.participant_id}.{job_id.hex()}"


def test_the_lease_says_all_that_its_commitment_must_bind(router: RouterHarness, network: Network) -> None:
    """The submission's terms, the model's schema and profile, a deadline: signed by the router."""
    job_id, lease = router.start(W1)
    submission = make_submission(network)
    assert lease == m.LeaseV1(
        job_id=job_id,
        attempt=1,
        generator=W1.participant_id,
        user=USER.participant_id,
        model_id=network.model.model_id,
        prompt_hash=compute_token_hash(submission.salt, pack_tokens(PROMPT)),
        prompt_count=len(PROMPT),
        token_count_max=8,
        sampling=m.SamplingV1(),
        eos_stop=True,
        seed=lease.seed,
        salt=submission.salt,
        schema_digest=network.model.schema.digest(),
        profile_set=network.model.profile_set,
        granted_ms=router.clock_ms,
        deadline_ms=router.clock_ms + LEASE_TICKS * network.chain.period_s * 1_000,
    )


def test_a_refused_deposit_ends_the_job(router: RouterHarness) -> None:
    """The user is told why, by the ledger's code; nothing else was said to anybody."""
    job_id = router.submit()
    (request,) = router.outbox_of(t.ROUTER_HOLD_REQUESTED)
    router.refuse_hold(request, "E204", "12 micro-units are short")
    (event,) = router.outbox_of(t.JOB_EVENT)
    assert (event.phase, event.code, event.detail) == ("refused", "E204", "12 micro-units are short")
    router.place_escrow(job_id)
    assert router.outbox() == []


def test_every_message_again_changes_nothing(router: RouterHarness) -> None:
    """At least once, from every side: a redelivery emits nothing and leaves every row as it was."""
    job_id = router.submit()
    steps = (
        lambda: router.place_escrow(job_id),
        lambda: router.request_lease(job_id, W1),
        lambda: router.place_stake(job_id, W1),
        lambda: router.record(job_id, W1),
        lambda: router.settle(job_id, "agree"),
    )
    for step in steps:
        step()
        assert router.last is not None
        router.drain()
        before = router.dump()
        assert router.apply(router.last).action == "ack"
        assert router.outbox() == []
        assert router.dump() == before


def test_a_service_that_says_it_again_in_other_words_changes_nothing(router: RouterHarness) -> None:
    """Another envelope of the same meaning: the lifecycle itself is idempotent."""
    job_id, _ = router.start(W1)
    router.record(job_id, W1)
    router.drain()
    before = router.dump()
    router.place_escrow(job_id)
    router.place_stake(job_id, W1)
    router.pass_rounds(0)
    assert router.outbox() == []
    assert router.dump() == before


def test_a_stake_refused_means_denial_and_a_new_offer(router: RouterHarness, network: Network) -> None:
    """The worker hears the ledger's reason; the task is published again, as a message of its own."""
    job_id = router.submit()
    router.place_escrow(job_id)
    first_task = next(one for one in router.drain() if one.topic is t.GENERATE_TASK)
    router.request_lease(job_id, W1)
    (request,) = router.outbox_of(t.ROUTER_HOLD_REQUESTED)
    router.refuse_hold(request, "E204", "no stake")
    emissions = router.drain()
    assert topics(emissions) == [t.LEASE_DENIED, t.GENERATE_TASK, t.JOB_EVENT]
    denied, task = emissions[0], emissions[1]
    assert denied.subject == f"leases.denied.{W1.participant_id}"
    assert isinstance(denied.body, m.LeaseDeniedV1)
    assert (denied.body.code, denied.body.reason) == ("E204", "no stake")
    assert task.body == m.GenerateTaskV1(
        job_id=job_id, attempt=1, model_id=network.model.model_id, publication=2
    )
    assert task.envelope_id != first_task.envelope_id, "the stream would drop it as a repetition"


def test_the_same_worker_may_ask_again_and_is_answered_again(router: RouterHarness) -> None:
    """Refused, offered again, asked again: neither the ledger nor the worker takes it for what it heard before.

    Were any message of the second round the same as in the first, its taker would drop it, and the job would
    wait for ever for an answer.
    """
    job_id = router.submit()
    router.place_escrow(job_id)
    router.drain()
    heard: list[tuple[bytes, bytes]] = []
    for number in (1, 2):
        assert router.request_lease(job_id, W1, requested_ms=number).action == "ack"
        hold = next(one for one in router.drain() if one.topic is t.ROUTER_HOLD_REQUESTED)
        router.refuse_hold(hold.body)  # type: ignore[arg-type]
        denial = next(one for one in router.drain() if one.topic is t.LEASE_DENIED)
        heard.append((hold.envelope_id, denial.envelope_id))
    assert len({one for pair in heard for one in pair}) == 4
    router.request_lease(job_id, W1, requested_ms=3)
    router.place_stake(job_id, W1)
    assert len(router.outbox_of(t.LEASE_GRANTED)) == 1


def test_only_the_first_who_asks_gets_the_lease(router: RouterHarness) -> None:
    """Everybody else is told, each time it asks, and no stake of theirs is asked for."""
    job_id = router.submit()
    router.place_escrow(job_id)
    router.request_lease(job_id, W1)
    router.drain()
    denials = []
    for number in (1, 2):
        router.request_lease(job_id, W2, requested_ms=number)
        (emission,) = router.drain()
        assert emission.topic is t.LEASE_DENIED
        assert emission.body.code == "E208"  # type: ignore[attr-defined]
        assert emission.body.requested_ms == number  # type: ignore[attr-defined]
        denials.append(emission.envelope_id)
    assert len(set(denials)) == 2
    router.place_stake(job_id, W1)
    (granted,) = [one for one in router.drain() if one.topic is t.LEASE_GRANTED]
    assert granted.subject.endswith(W1.participant_id)


def test_the_holder_gets_the_same_lease_again(router: RouterHarness) -> None:
    """Its worker may have lost the first answer; a second lease would be a second deadline and seed."""
    job_id, lease = router.start(W1)
    router.clock_ms += 500
    router.request_lease(job_id, W1, requested_ms=1)
    (granted,) = router.outbox_of(t.LEASE_GRANTED)
    assert router.network.open(granted.lease, m.LeaseV1) == lease


@pytest.mark.parametrize(
    ("attempt", "code"), [(2, "E207"), (1, "E207")], ids=["an attempt to come", "before the escrow"]
)
def test_what_is_not_on_offer_is_denied(router: RouterHarness, attempt: int, code: str) -> None:
    job_id = router.submit()
    router.drain()
    router.request_lease(job_id, W1, attempt)
    (denied,) = router.outbox_of(t.LEASE_DENIED)
    assert denied.code == code


def test_a_lease_for_a_job_that_was_never_admitted_is_refused(router: RouterHarness) -> None:
    body = m.LeaseRequestV1(job_id=bytes(32), attempt=1)
    assert router.deliver(t.LEASE_REQUESTED, body, signer=W1).action == "term"
    assert router.refusal().code == UnknownJobError.code


def test_a_lease_is_asked_for_in_ones_own_name(router: RouterHarness) -> None:
    """The subject names the worker whose stake is locked: another's signature under it is refused."""
    job_id = router.submit()
    router.place_escrow(job_id)
    router.drain()
    before = router.dump()
    body = m.LeaseRequestV1(job_id=job_id, attempt=1)
    decision = router.deliver(t.LEASE_REQUESTED, body, signer=W2, worker=W1.participant_id)
    assert decision.action == "term"
    refusal = router.refusal()
    assert (refusal.code, "worker" in refusal.reason) == ("E102", True)
    assert router.dump() == before


def test_services_words_are_taken_from_services_alone(router: RouterHarness) -> None:
    """A user that says its own deposit is held, or its own job recorded, is not believed."""
    job_id = router.submit()
    router.drain()
    before = router.dump()
    placed = router.placed("escrow", job_id, 1, USER, 1)
    assert router.deliver(t.HOLD_PLACED, placed, signer=USER).action == "term"
    assert router.refusal().code == "E102"
    assert router.dump() == before


def test_a_job_that_nobody_takes_is_refunded(router: RouterHarness) -> None:
    """Past its ticks in the queue it is abandoned, then refunded when the ledger has returned everything."""
    job_id = router.submit()
    router.place_escrow(job_id)
    router.drain()
    router.pass_rounds(QUEUE_TICKS)
    assert router.outbox_of(t.JOB_ABANDONED) == []
    router.pass_rounds()
    emissions = router.drain()
    assert topics(emissions) == [t.JOB_ABANDONED, t.JOB_EVENT]
    assert router.phases(emissions) == ["abandoning"]
    router.request_lease(job_id, W1)
    (denied,) = router.outbox_of(t.LEASE_DENIED)
    assert denied.code == "E207"
    router.settle(job_id, "refunded", attempt=0)
    (event,) = router.outbox_of(t.JOB_EVENT)
    assert (event.phase, event.detail) == ("refunded", "no worker took the job in time")


def test_from_a_lapsed_lease_to_the_refund(router: RouterHarness) -> None:
    """Lapse, closed, charged, offered again; after the last attempt abandoned and refunded."""
    job_id, _ = router.start(W1)
    for attempt, worker in ((1, W1), (2, W2)):
        if attempt == 2:
            router.request_lease(job_id, worker, attempt)
            router.place_stake(job_id, worker, attempt)
            router.drain()
        router.pass_rounds(LEASE_TICKS + 1)
        emissions = router.drain()
        assert topics(emissions) == [t.LEASE_LAPSED, t.JOB_EVENT]
        assert emissions[0].body == m.LeaseLapsedV1(
            job_id=job_id, attempt=attempt, generator=worker.participant_id
        )
        router.tell(t.ATTEMPT_CLOSED, m.AttemptClosedV1(job_id=job_id, attempt=attempt))
        emissions = router.drain()
        assert emissions[0].body == m.AttemptChargedV1(
            job_id=job_id, attempt=attempt, generator=worker.participant_id
        )
        following = t.GENERATE_TASK if attempt == 1 else t.JOB_ABANDONED
        assert topics(emissions) == [t.ATTEMPT_CHARGED, following, t.JOB_EVENT]
    router.settle(job_id, "refunded", attempt=0)
    (event,) = router.outbox_of(t.JOB_EVENT)
    assert (event.phase, event.detail) == ("refunded", "no worker committed a result in any attempt")


def test_a_lapse_that_nobody_answers_is_told_again(router: RouterHarness) -> None:
    """The store's queue gives a message up after many deliveries; a job must not wait for its answer for ever."""
    job_id, _ = router.start(W1)
    router.pass_rounds(LEASE_TICKS + 1)
    (lapsed,) = router.outbox_of(t.LEASE_LAPSED)
    router.pass_rounds(LAPSE_AGAIN_TICKS)
    assert router.outbox_of(t.LEASE_LAPSED) == [lapsed]
    router.pass_rounds(LAPSE_AGAIN_TICKS)
    assert router.outbox_of(t.LEASE_LAPSED) == [lapsed]
    router.tell(t.ATTEMPT_CLOSED, m.AttemptClosedV1(job_id=job_id, attempt=1))
    router.drain()
    router.pass_rounds(2 * LAPSE_AGAIN_TICKS)
    assert router.outbox_of(t.LEASE_LAPSED) == []


def test_a_lease_does_not_lapse_before_the_time_that_it_promises(router: RouterHarness) -> None:
    """Rounds that come early in its life count as ticks, but the signed deadline is what its holder relies on."""
    job_id, lease = router.start(W1)
    router.pass_rounds(LEASE_TICKS)
    assert router.clock_ms < lease.deadline_ms
    assert router.outbox() == []
    router.pass_rounds()
    assert router.clock_ms > lease.deadline_ms
    assert [one.job_id for one in router.outbox_of(t.LEASE_LAPSED)] == [job_id]


def test_a_lease_does_not_lapse_while_no_round_comes(router: RouterHarness) -> None:
    """An outage of the beacon is nobody's fault: late rounds are no ticks."""
    router.start(W1)
    router.clock_ms += 3_600_000
    router.pass_rounds(LEASE_TICKS + 2)
    assert router.outbox() == []


def test_a_record_wins_over_a_lapse(router: RouterHarness) -> None:
    """The store had it in time; what it says of the closed attempt afterwards is of no account."""
    job_id, _ = router.start(W1)
    router.pass_rounds(LEASE_TICKS + 1)
    router.drain()
    router.record(job_id, W1)
    assert router.phases(router.drain()) == ["committed"]
    router.tell(t.ATTEMPT_CLOSED, m.AttemptClosedV1(job_id=job_id, attempt=1))
    assert router.outbox() == []


def test_a_result_of_an_earlier_attempt_is_not_this_ones(router: RouterHarness) -> None:
    job_id, _ = router.start(W1)
    router.pass_rounds(LEASE_TICKS + 1)
    router.tell(t.ATTEMPT_CLOSED, m.AttemptClosedV1(job_id=job_id, attempt=1))
    router.request_lease(job_id, W2, 2)
    router.place_stake(job_id, W2, 2)
    router.drain()
    router.record(job_id, W1, attempt=1, result=b"late")
    assert router.outbox() == []
    router.record(job_id, W2, attempt=2, result=b"in time")
    (event,) = router.outbox_of(t.JOB_EVENT)
    assert (event.attempt, event.result) == (2, b"in time")
    router.record(job_id, W1, attempt=1, result=b"later still")
    router.settle(job_id, "agree", attempt=2)
    assert router.outbox_of(t.JOB_EVENT)[-1].result == b"in time"


def test_a_restarted_router_goes_on_where_it_was(network: Network, tmp_path: Any) -> None:
    """All of a job's life is in the database."""
    from kit.routing import make_router

    router = make_router(network, f"sqlite:///{tmp_path / 'router.sqlite'}")
    job_id, lease = router.start(W1)
    router.close()
    router.open()
    router.request_lease(job_id, W1, requested_ms=7)
    (granted,) = router.outbox_of(t.LEASE_GRANTED)
    assert router.network.open(granted.lease, m.LeaseV1) == lease
    router.record(job_id, W1)
    router.close()
    router.open()
    router.settle(job_id, "agree")
    last = router.outbox_of(t.JOB_EVENT)[-1]
    assert (last.phase, last.result) == ("settled", b"result")
    router.close()


def test_a_user_cancels_what_is_generated(router: RouterHarness, network: Network) -> None:
    """The holder hears it once, with the user's own words; the result ends the job like any other."""
    job_id, _ = router.start(W1)
    request = m.CancelRequestV1(job_id=job_id)
    assert router.deliver(t.CANCEL_REQUESTED, request, USER).action == "ack"
    (notice,) = router.outbox_of(t.LEASE_CANCELLED)
    assert (notice.job_id, notice.attempt) == (job_id, 1)
    assert network.open(notice.cancellation, m.CancelRequestV1) == request
    router.record(job_id, W1)
    (event,) = router.outbox_of(t.JOB_EVENT)
    assert event.phase == "committed"


def test_a_user_cancels_what_waits(router: RouterHarness) -> None:
    """Nothing was generated: the job is abandoned, the ledger gives everything back."""
    job_id = router.submit()
    router.place_escrow(job_id)
    router.drain()
    body = m.CancelRequestV1(job_id=job_id)
    router.deliver(t.CANCEL_REQUESTED, body, USER)
    emissions = router.drain()
    assert topics(emissions) == [t.JOB_ABANDONED, t.JOB_EVENT]
    assert emissions[0].body.reason == "cancelled by the user"  # type: ignore[attr-defined]


def test_nobody_else_cancels_a_job(router: RouterHarness) -> None:
    job_id, _ = router.start(W1)
    body = m.CancelRequestV1(job_id=job_id)
    decision = router.deliver(t.CANCEL_REQUESTED, body, W2)
    assert (decision.action, decision.reason[:4]) == ("term", "E209")
    assert topics(router.drain()) == [t.REFUSALS[Role.ROUTER]]


def test_a_cancellation_before_its_job_comes_again(router: RouterHarness) -> None:
    """Submissions and the rest travel in two streams: the order between them is nobody's promise."""
    body = m.CancelRequestV1(job_id=bytes(32))
    assert router.deliver(t.CANCEL_REQUESTED, body, USER).action == "nak"
