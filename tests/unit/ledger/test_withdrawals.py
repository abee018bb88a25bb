"""Money leaving the network: who may ask, for how much, how long stake waits, and that a slash reaches it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness, Money, make_ledger
from kit.network import Network, make_key, make_network
from pocache.protocol.limits import MICRO_MAX
from pocache.runtime.network import compute_dispute_ticks
from pocache.service.dispatch import Decision
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import encode_value
from pocache.wire.envelope import ENVELOPE_BYTES_MAX, compute_preimage

USER, WORKER = make_key("user"), make_key("worker")
UNBONDING_TICKS = 30
FEE = 10 * FUNDS
"""Of a lapsed attempt: more than anybody has at stake."""


@pytest.fixture(scope="module")
def short() -> Network:
    """A network whose disputes, and so its unbonding, are short."""
    return make_network(
        rules={"unbonding_ticks": UNBONDING_TICKS, "stage_max": 2, "lease_fee_micro": FEE},
        audit={"window_rounds": 1, "bind_delay_ms": 0},
        deadlines={"queue_ticks": 3, "lease_ticks": 1, "seal_ticks": 1, "opening_ticks": 1},
    )


@pytest.fixture
def ledger(short: Network) -> Iterator[LedgerHarness]:
    """A ledger in which a user and a worker have money."""
    harness = make_ledger(short)
    harness.fund(USER, available=FUNDS)
    harness.fund(WORKER, available=FUNDS, stake=FUNDS)
    harness.drain()
    yield harness
    harness.close()


def deliver_fields(
    ledger: LedgerHarness, topic: t.Topic[Any], fields: dict[str, object], **tokens: str
) -> Decision:
    """Deliver a well signed body that no model of ours would make."""
    key = WORKER if topic.signer is t.Role.WORKER else ledger.network.keys[topic.signer]
    payload = encode_value(fields, bytes_max=10_000)
    preimage = compute_preimage(ledger.network.network_id, topic.model.kind, payload)
    envelope = {
        "kind": topic.model.kind,
        "payload": payload,
        "kid": key.participant_id,
        "sig": key.sign(preimage),
    }
    return ledger.deliver_data(topic, encode_value(envelope, bytes_max=ENVELOPE_BYTES_MAX), **tokens)


def test_available_money_is_paid_at_once(ledger: LedgerHarness) -> None:
    """To the outside world, and the record says what it owes."""
    assert ledger.withdraw(USER, "available", 400, is_worker=False).action == "ack"
    assert ledger.money(USER) == Money(FUNDS - 400, 0, 0)
    (accepted, paid) = (emission.body for emission in ledger.drain())
    assert isinstance(accepted, m.WithdrawalAcceptedV1)
    assert ledger.network.open(accepted.request, m.WithdrawalRequestV1).amount_micro == 400
    assert isinstance(paid, m.WithdrawalPaidV1)
    assert (paid.participant, paid.bucket, paid.amount_micro, paid.slashed_micro) == (
        USER.participant_id,
        "available",
        400,
        0,
    )
    assert ledger.totals().deposited_micro == 3 * FUNDS - 400


def test_stake_is_paid_when_it_has_unbonded(ledger: LedgerHarness) -> None:
    """Not a tick earlier; it counts for no sortition from the request on."""
    assert ledger.withdraw(WORKER, "stake", 400).action == "ack"
    (posted,) = ledger.outbox_of(t.STAKE_POSTED)
    assert (posted.stake_micro, posted.free_micro) == (FUNDS - 400, FUNDS - 400)
    ledger.pass_rounds(UNBONDING_TICKS - 1)
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS - 400, 0, 400)
    assert ledger.outbox_of(t.WITHDRAWAL_PAID) == []
    ledger.pass_rounds(1)
    (paid,) = ledger.outbox_of(t.WITHDRAWAL_PAID)
    assert (paid.bucket, paid.amount_micro, paid.slashed_micro) == ("stake", 400, 0)
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS - 400, 0)
    ledger.pass_rounds(UNBONDING_TICKS)
    assert ledger.outbox_of(t.WITHDRAWAL_PAID) == []
    assert ledger.totals().deposited_micro == 3 * FUNDS - 400


def test_rounds_that_come_late_do_not_unbond(ledger: LedgerHarness) -> None:
    """An outage of the ledger is nobody's way out."""
    assert ledger.withdraw(WORKER, "stake", 400).action == "ack"
    ledger.clock_ms += 1_000 * 3_600
    first = ledger.latest_round + 1
    ledger.clock_ms += 1_000 * 3_600
    for number in range(first, first + 2 * UNBONDING_TICKS):
        assert ledger.deliver(t.BEACON_ROUND, ledger.network.make_round(number)).action == "ack"
    assert ledger.money(WORKER).unbonding == 400


def test_unbonding_stake_cannot_be_locked(ledger: LedgerHarness, short: Network) -> None:
    """It is on its way out: no new job may rest on it."""
    job = Job(short)
    ledger.admit(job)
    assert ledger.withdraw(WORKER, "stake", FUNDS).action == "ack"
    ledger.drain()
    ledger.hold(job.generator_stake())
    (refused,) = ledger.outbox_of(t.HOLD_REFUSED)
    assert refused.code == "E204"


def test_locked_stake_is_not_withdrawn(ledger: LedgerHarness, short: Network) -> None:
    """What is free may leave to the last micro-unit; one more is refused, and says what is locked."""
    job = Job(short)
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    ledger.drain()
    locked = job.products_max.generator_stake
    before = ledger.dump()
    assert ledger.withdraw(WORKER, "stake", FUNDS - locked + 1).action == "term"
    refusal = ledger.refusal()
    assert refusal.code == "E204"
    assert f"{locked} more are locked in jobs" in refusal.reason
    assert ledger.dump() == before
    assert ledger.withdraw(WORKER, "stake", FUNDS - locked, "second").action == "ack"
    assert ledger.money(WORKER) == Money(FUNDS, 0, locked, FUNDS - locked)


def test_an_escrow_is_not_withdrawn(ledger: LedgerHarness, short: Network) -> None:
    """A user's deposit stays until its job is over."""
    job = Job(short)
    ledger.admit(job)
    ledger.drain()
    assert ledger.withdraw(USER, "available", FUNDS, is_worker=False).action == "term"
    assert f"{job.products_max.deposit} more are locked" in ledger.refusal().reason


def test_a_slash_reaches_what_unbonds(ledger: LedgerHarness, short: Network) -> None:
    """Held, then free, then unbonding stake, what leaves first being taken first; available money stays."""
    job = Job(short)
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    held = job.products_max.generator_stake
    assert ledger.withdraw(WORKER, "stake", 300, "first").action == "ack"
    ledger.pass_rounds(1)
    assert ledger.withdraw(WORKER, "stake", 500, "second").action == "ack"
    ledger.drain()
    ledger.must(t.ATTEMPT_CHARGED, job.charged())
    assert ledger.money(WORKER) == Money(FUNDS, 0, 0, 0)
    assert ledger.totals().treasury_micro == FUNDS
    assert FUNDS - held - 800 > 0  # there was free stake too
    ledger.pass_rounds(UNBONDING_TICKS)
    paid = ledger.outbox_of(t.WITHDRAWAL_PAID)
    assert [(one.amount_micro, one.slashed_micro) for one in paid] == [(0, 300), (0, 500)]
    ledger.totals()


def test_a_slash_takes_first_what_would_leave_first() -> None:
    """And of the next only what is still needed."""
    network = make_network()
    job = Job(network)
    held = job.products_max.generator_stake
    ledger = make_ledger(make_network(rules={"lease_fee_micro": held + 400}))
    job = Job(ledger.network)
    ledger.fund(USER, available=FUNDS)
    ledger.fund(WORKER, stake=held + 800)
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    for nonce, amount in (("first", 300), ("second", 500)):
        assert ledger.withdraw(WORKER, "stake", amount, nonce).action == "ack"
        ledger.pass_rounds(1)
    ledger.must(t.ATTEMPT_CHARGED, job.charged())
    assert ledger.money(WORKER) == Money(0, 0, 0, 400)
    assert ledger.totals().treasury_micro == held + 400
    ledger.drain()
    with ledger.store.begin() as connection:
        from pocache_ledger.unbonding import get_open

        assert [one.amount_micro for one in get_open(connection, WORKER.participant_id)] == [0, 400]
    ledger.close()


def test_a_request_counts_once(ledger: LedgerHarness) -> None:
    """Redelivered: nothing. Sent again: refused. The nonce for something else: refused. Another nonce: another one."""
    assert ledger.withdraw(WORKER, "stake", 400).action == "ack"
    before = ledger.dump()
    assert ledger.last is not None
    assert ledger.apply(ledger.last).action == "ack"
    assert ledger.dump() == before
    for bucket, amount in (("stake", 400), ("stake", 401), ("available", 400)):
        ledger.drain()
        assert ledger.withdraw(WORKER, bucket, amount).action == "term"  # type: ignore[arg-type]
        assert ledger.refusal().code == "E208"
        assert ledger.dump() == before
    assert ledger.withdraw(WORKER, "stake", 400, "second").action == "ack"
    assert ledger.money(WORKER).unbonding == 800


@pytest.mark.parametrize("bucket", ["available", "stake"])
def test_a_request_in_another_encoding_is_the_same_request(ledger: LedgerHarness, bucket: str) -> None:
    """Its fields in another order make another envelope: refused, not paid or unbonded again, and nothing halts."""
    request = {"bucket": bucket, "amount_micro": 400, "nonce": bytes(16)}
    topic = t.WORKER_WITHDRAWAL_REQUESTED
    assert deliver_fields(ledger, topic, request, worker=WORKER.participant_id).action == "ack"
    before = ledger.dump()
    ledger.drain()
    other = dict(reversed(request.items()))
    assert deliver_fields(ledger, topic, other, worker=WORKER.participant_id).action == "term"
    assert ledger.refusal().code == "E208"
    assert ledger.dump() == before


def test_the_same_nonce_of_another_is_another_request(ledger: LedgerHarness) -> None:
    """Nonces are each participant's own."""
    assert ledger.withdraw(WORKER, "available", 5).action == "ack"
    assert ledger.withdraw(USER, "available", 5, is_worker=False).action == "ack"


def test_an_unknown_account_is_called_so(ledger: LedgerHarness) -> None:
    """Nothing was ever deposited."""
    assert ledger.withdraw(make_key("stranger"), "stake", 1).action == "term"
    refusal = ledger.refusal()
    assert refusal.code == "E204"
    assert "unknown account" in refusal.reason


def test_only_the_owner_asks(ledger: LedgerHarness) -> None:
    """Not the operator, and nobody on another's subject."""
    body = m.WithdrawalRequestV1(bucket="stake", amount_micro=1, nonce=bytes(16))
    for topic in (t.WORKER_WITHDRAWAL_REQUESTED, t.USER_WITHDRAWAL_REQUESTED):
        named = {topic.named_signer or "": WORKER.participant_id}
        for key in (USER, ledger.network.keys[t.Role.OPERATOR]):
            assert ledger.deliver(topic, body, key, **named).action == "term"
            assert ledger.refusal().code == "E102"


BAD_AMOUNTS: dict[str, object] = {
    "zero": 0,
    "negative": -1,
    "fractional": "0.5",
    "boolean": True,
    "oversized": MICRO_MAX + 1,
    "missing": None,
}


@pytest.mark.parametrize("amount", BAD_AMOUNTS.values(), ids=BAD_AMOUNTS.keys())
def test_amounts_that_are_none_are_refused(ledger: LedgerHarness, amount: object) -> None:
    """Of withdrawals and of deposits alike, and nothing moves."""
    before = ledger.dump()
    request = {"bucket": "stake", "amount_micro": amount, "nonce": bytes(16)}
    topic = t.WORKER_WITHDRAWAL_REQUESTED
    assert deliver_fields(ledger, topic, request, worker=WORKER.participant_id).action == "term"
    assert ledger.refusal().code == "E101"
    deposit = {
        "participant": WORKER.participant_id,
        "bucket": "stake",
        "amount_micro": amount,
        "reference": "wire",
    }
    assert deliver_fields(ledger, t.DEPOSITED, deposit, participant=WORKER.participant_id).action == "term"
    assert ledger.refusal().code == "E101"
    assert ledger.dump() == before


def test_a_float_does_not_even_decode(ledger: LedgerHarness) -> None:
    """A map {bucket, amount_micro: 0.5, nonce} in msgpack: the codec has no floats."""
    payload = (
        b"\x83\xa6bucket\xa5stake\xacamount_micro\xcb\x3f\xe0" + bytes(6) + b"\xa5nonce\xc4\x10" + bytes(16)
    )
    topic = t.WORKER_WITHDRAWAL_REQUESTED
    preimage = compute_preimage(ledger.network.network_id, topic.model.kind, payload)
    envelope = {
        "kind": topic.model.kind,
        "payload": payload,
        "kid": WORKER.participant_id,
        "sig": WORKER.sign(preimage),
    }
    data = encode_value(envelope, bytes_max=ENVELOPE_BYTES_MAX)
    assert ledger.deliver_data(topic, data, worker=WORKER.participant_id).action == "term"
    refusal = ledger.refusal()
    assert refusal.code == "E101"
    assert "float" in refusal.reason


def test_more_than_there_is_is_refused(ledger: LedgerHarness) -> None:
    """The largest amount there can be, and one micro-unit too many."""
    for bucket, amount in (("stake", MICRO_MAX), ("stake", FUNDS + 1), ("available", FUNDS + 1)):
        assert ledger.withdraw(WORKER, bucket, amount, f"{bucket} {amount}").action == "term"  # type: ignore[arg-type]
        assert ledger.refusal().code == "E204"
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS, 0)


def test_stake_unbonds_longer_than_any_dispute() -> None:
    """A network under which it would not is refused when it is configured, and the message says how long is needed."""
    network = make_network()
    least = compute_dispute_ticks(network.genesis)
    deadlines, audit = network.genesis.deadlines, network.genesis.audit
    bind_rounds = 3_000 // 3_000 + 2
    looks = 2 * network.genesis.rule_set.seat_max
    assert least == deadlines.lease_ticks + audit.window_rounds + looks * (
        deadlines.seal_ticks + deadlines.opening_ticks + 2 * bind_rounds
    )
    make_network(rules={"unbonding_ticks": least + 1})
    with pytest.raises(ValidationError, match=f"must exceed {least}"):
        make_network(rules={"unbonding_ticks": least})
