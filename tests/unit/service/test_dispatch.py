"""What the dispatcher does with lateness, failures and halts, on a service made for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from kit.network import Harness, Network, make_network
from pocache.protocol.errors import ConflictError, NotYetError
from pocache.service import dispatch
from pocache.service.dispatch import AHEAD_MIN, Delivery
from pocache.service.unit import Handler, Inbound, Query, RoundView, Unit
from pocache.wire import messages as m
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import BEACON_ROUND, LEASE_DENIED, LEASE_REQUESTED, Role, Topic


class Recorder:
    """Notes what reaches it; fails as told."""

    role = Role.ROUTER
    metadata = sa.MetaData()

    def __init__(self, *, halts: bool = False) -> None:
        self.halts_on_poison = halts
        self.seen: list[int] = []
        self.failure: Exception | None = None
        self.round_failure: Exception | None = None

    def handlers(self) -> Mapping[Topic[Any], Handler]:
        return {LEASE_REQUESTED: self.handle}

    def queries(self) -> Mapping[Topic[Any], Query]:
        return {}

    def on_round(self, unit: Unit, view: RoundView) -> None:
        if self.round_failure is not None:
            raise self.round_failure

    def handle(self, unit: Unit, inbound: Inbound[m.LeaseRequestV1]) -> None:
        if self.failure is not None:
            raise self.failure
        self.seen.append(inbound.body.attempt)


@pytest.fixture
def network() -> Network:
    """A network whose rounds come every three seconds."""
    return make_network()


def request(harness: Harness, attempt: int, *, late_ms: int = 0) -> Any:
    """Deliver a lease request that was stored ``late_ms`` ago."""
    body = m.LeaseRequestV1(job_id=bytes(32), attempt=attempt)
    harness.deliver(LEASE_REQUESTED, body, harness.network.key("worker"))
    assert harness.last is not None
    harness.drain()
    fresh = m.LeaseRequestV1(job_id=bytes(32), attempt=attempt, publication=2)
    data = harness.network.seal(harness.network.key("worker"), fresh)
    stored = harness.clock_ms - late_ms
    return dataclasses.replace(
        harness.last, data=data, sequence=harness.last.sequence + 1_000, stored_ms=stored
    )


def test_no_tick_counts_while_messages_are_late(network: Network) -> None:
    """Whoever waits behind a flood is not made late by it."""
    harness = Harness(Recorder(), network)
    harness.pass_rounds()
    before = harness.tick
    harness.apply(request(harness, 1, late_ms=60_000))
    harness.clock_ms += 1
    harness.deliver(BEACON_ROUND, network.make_round(harness.latest_round + 1))
    assert harness.tick == before
    harness.pass_rounds(2)
    assert harness.tick == before + 2


def test_a_message_that_comes_again_is_not_lateness(network: Network) -> None:
    """What waits for something else says nothing of the queue, or it would stop the clock that ends its waiting."""
    service = Recorder()
    harness = Harness(service, network)
    harness.pass_rounds()
    before = harness.tick
    delivery = request(harness, 1, late_ms=60_000)
    service.failure = NotYetError("not yet")
    assert harness.apply(delivery).action == "nak"
    harness.pass_rounds()
    assert harness.tick == before + 1


def test_nothing_is_applied_past_a_halt(network: Network) -> None:
    """A service that carries money stops at the message that it cannot handle."""
    service = Recorder(halts=True)
    harness = Harness(service, network)
    first, second = request(harness, 1), request(harness, 2)
    service.seen.clear()
    service.failure = RuntimeError("a bug")
    decisions = harness.dispatcher.apply([first, second])
    assert [decision.action for decision in decisions] == ["halt", "halt"]
    assert service.seen == []


def test_a_database_that_is_away_ends_the_process(network: Network) -> None:
    """Nothing is acknowledged, nothing goes to the dead letters."""
    service = Recorder()
    harness = Harness(service, network)
    delivery = request(harness, 1)
    service.failure = sa.exc.OperationalError("insert", {}, Exception("disk full"))
    with pytest.raises(sa.exc.OperationalError):
        harness.apply(delivery)


def test_a_tick_is_taken_back_with_its_round(network: Network) -> None:
    """A round that failed has not counted, for the rest of its batch either."""
    service = Recorder()
    harness = Harness(service, network)
    harness.pass_rounds()
    before = harness.tick
    service.round_failure = RuntimeError("a bug")
    assert harness.round(harness.latest_round + 1).action == "nak"
    assert harness.tick == before
    service.round_failure = None
    harness.pass_rounds()
    assert harness.tick == before + 1


# --- batches -------------------------------------------------------------------------------------------------------


class Teller(Recorder):
    """Answers each request, and tells the state that it left: how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def handle(self, unit: Unit, inbound: Inbound[m.LeaseRequestV1]) -> None:
        super().handle(unit, inbound)
        self.count += 1
        worker, attempt = inbound.sender, inbound.body.attempt
        unit.emit(LEASE_DENIED, make_denial(attempt), worker=worker)
        unit.emit_last(LEASE_DENIED, lambda: make_denial(10 + self.count), worker=worker)
        if attempt % 4 == 0:
            raise ConflictError("said too much")


def make_denial(attempt: int) -> m.LeaseDeniedV1:
    return m.LeaseDeniedV1(job_id=bytes(32), attempt=attempt, code="E208", reason="no")


def make_batch(harness: Harness, attempts: range) -> list[Delivery]:
    worker = harness.network.key("worker")
    return [
        harness.next_delivery(LEASE_REQUESTED, m.LeaseRequestV1(job_id=bytes(32), attempt=attempt), worker)
        for attempt in attempts
    ]


def test_what_a_batch_says_is_in_order_and_a_refused_message_says_nothing(network: Network) -> None:
    """A state is told once, at its last place; the words of a refused message are its refusal alone."""
    harness = Harness(Teller(), network)
    decisions = harness.dispatcher.apply(make_batch(harness, range(1, 7)))
    assert [decision.action for decision in decisions] == ["ack", "ack", "ack", "term", "ack", "ack"]
    told = [getattr(body, "attempt", None) for _, body in harness.outbox()]
    assert told == [1, 2, 3, None, 5, 6, 16]


@pytest.mark.parametrize("count", [1, AHEAD_MIN - 1, AHEAD_MIN, 16])
def test_a_forged_message_in_a_batch_is_refused_in_its_place(network: Network, count: int) -> None:
    """Also where envelopes are opened ahead by another thread: each error belongs to its own message."""
    service = Recorder()
    harness = Harness(service, network)
    batch = make_batch(harness, range(1, 1 + count))
    for at in range(0, count, 3):
        batch[at] = dataclasses.replace(batch[at], data=batch[at].data[:-1] + bytes([batch[at].data[-1] ^ 1]))
    decisions = harness.dispatcher.apply(batch)
    assert [decision.action for decision in decisions] == [
        "term" if at % 3 == 0 else "ack" for at in range(count)
    ]
    assert all("E103" in decision.reason for decision in decisions[::3]), decisions
    assert service.seen == [at + 1 for at in range(count) if at % 3]


def test_a_bug_in_opening_is_raised_at_its_message(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not lost in the thread that opens ahead: the message comes again, those around it are handled."""
    service = Recorder()
    harness = Harness(service, network)
    batch = make_batch(harness, range(1, 6))
    broken = batch[2].data

    def fail(data: bytes, *rest: Any) -> Any:
        if data == broken:
            raise ZeroDivisionError
        return open_envelope(data, *rest)

    monkeypatch.setattr(dispatch, "open_envelope", fail)
    decisions = harness.dispatcher.apply(batch)
    assert [decision.action for decision in decisions] == ["ack", "ack", "nak", "ack", "ack"]
    assert service.seen == [1, 2, 4, 5]
