"""A participant's money over the SDK: whose answer is believed, which answer is one's own, and how pages join."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from kit.network import Network, make_key, make_network
from kit.userside import USER, HeardBus
from pocache.client import RefusedError
from pocache.money import Purse
from pocache.protocol.errors import BusError, CommitmentError
from pocache.protocol.keys import SigningKey
from pocache.protocol.limits import MICRO_MAX
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role

MALLORY = make_key("mallory")
NONCE = b"\x07" * 16
Answer = Callable[["Ledger", bytes], None]


class Ledger(HeardBus):
    """A bus whose ledger answers each withdrawal as the test has it."""

    def __init__(self, network: Network, *answers: Answer) -> None:
        super().__init__()
        self.network, self.left = network, list(answers)

    async def publish(self, subject: str, data: bytes, **options: Any) -> int:
        """Keep it, and give the next answer."""
        count = await super().publish(subject, data, **options)
        if self.left:
            self.left.pop(0)(self, data)
        return count

    def accept(self, data: bytes, *, owner: SigningKey = USER, signer: SigningKey | None = None) -> None:
        """Say that a withdrawal is accepted."""
        body = m.WithdrawalAcceptedV1(
            participant=owner.participant_id, request=data, matures_tick=12, entry=5
        )
        key = signer or self.network.keys[Role.LEDGER]
        subject = t.WITHDRAWAL_ACCEPTED.subject(participant=owner.participant_id)
        self.deliver(subject, self.network.seal(key, body))

    def refuse(self, data: bytes, signer: SigningKey | None = None, of: bytes | None = None) -> None:
        """Say why a withdrawal is refused; ``of`` is what the message itself says it is about."""
        ref = hashlib.sha256(data).digest()
        body = m.RefusalV1(
            message_hash=ref if of is None else of, subject="s", code="E204", reason="3 are needed"
        )
        key = signer or self.network.keys[Role.LEDGER]
        self.deliver(t.REFUSALS[Role.LEDGER].subject(ref=ref), self.network.seal(key, body))


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network()


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once for what was not heard."""
    monkeypatch.setattr("pocache.money.QUIET_S", 0.0)


def open_purse(bus: HeardBus, network: Network, role: Role = Role.USER) -> Purse:
    return Purse(bus.as_bus(), network.genesis, USER, role)


@pytest.mark.parametrize("role", [Role.USER, Role.WORKER])
async def test_a_withdrawal_says_what_was_asked_and_returns_the_acceptance(
    network: Network, role: Role
) -> None:
    bus = Ledger(network, Ledger.accept)
    accepted = await open_purse(bus, network, role).withdraw(400, bucket="stake", nonce=NONCE)
    ((subject, data),) = bus.published
    assert subject == f"withdrawals.requested.{role.value}.{USER.participant_id}"
    asked = open_envelope(data, network.network_id, m.WithdrawalRequestV1)
    assert asked.sender == USER.participant_id
    assert asked.body == m.WithdrawalRequestV1(bucket="stake", amount_micro=400, nonce=NONCE)
    assert (accepted.entry, accepted.matures_tick) == (5, 12)


async def test_each_withdrawal_has_a_nonce_of_its_own(network: Network) -> None:
    bus = Ledger(network, Ledger.accept, Ledger.accept)
    purse = open_purse(bus, network)
    await purse.withdraw(1)
    await purse.withdraw(1)
    assert bus.published[0] != bus.published[1]


async def test_what_the_ledger_refuses_is_said_with_its_code(network: Network) -> None:
    with pytest.raises(RefusedError, match="3 are needed") as refused:
        await open_purse(Ledger(network, Ledger.refuse), network).withdraw(400)
    assert refused.value.refusal_code == "E204"


async def test_an_answer_that_was_missed_is_asked_for(network: Network, no_patience: None) -> None:
    """The live one went by before anybody listened."""

    def accept_unheard(ledger: Ledger, data: bytes) -> None:
        ledger.listeners.clear()
        ledger.accept(data)

    assert (await open_purse(Ledger(network, accept_unheard), network).withdraw(400, nonce=NONCE)).entry == 5


@pytest.mark.parametrize(
    "noise",
    [
        lambda ledger, data: ledger.accept(data, signer=MALLORY),
        lambda ledger, _: ledger.accept(b"another request"),
        lambda ledger, data: ledger.refuse(data, MALLORY),
        lambda ledger, data: ledger.refuse(data, of=bytes(32)),
        lambda ledger, _: ledger.deliver(
            t.WITHDRAWAL_ACCEPTED.subject(participant=USER.participant_id), b"no envelope"
        ),
    ],
    ids=[
        "acceptance by another",
        "of another request",
        "refusal by another",
        "of another message",
        "garbage",
    ],
)
async def test_what_is_not_the_ledgers_answer_to_this_is_none(network: Network, noise: Answer) -> None:
    """Neither taken for an acceptance nor for a refusal: what follows it is the answer."""

    def accept_after(ledger: Ledger, data: bytes) -> None:
        noise(ledger, data)
        ledger.accept(data)

    assert (await open_purse(Ledger(network, accept_after), network).withdraw(400)).entry == 5
    silent = Ledger(network, noise)
    with pytest.raises(BusError, match=NONCE.hex()):
        await open_purse(silent, network).withdraw(400, nonce=NONCE, timeout_s=0.05)


async def test_a_bus_that_is_away_is_said_as_it_is(network: Network) -> None:
    bus = Ledger(network)
    bus.failure = BusError("no connection")
    with pytest.raises(BusError, match="no connection"):
        await open_purse(bus, network).withdraw(400)


@pytest.mark.parametrize("amount", [0, -1, 0.5, MICRO_MAX + 1, True])
async def test_amounts_that_are_none_are_not_even_sent(network: Network, amount: Any) -> None:
    bus = Ledger(network)
    with pytest.raises(ValidationError):
        await open_purse(bus, network).withdraw(amount)
    assert bus.published == []


# --- statements ----------------------------------------------------------------------------------------------------


class Pages(HeardBus):
    """A bus on which the ledger answers for pages of a journal in which every entry has one line."""

    def __init__(self, network: Network, signer: Role = Role.LEDGER, **changes: Any) -> None:
        super().__init__()
        self.network, self.signer, self.changes = network, signer, changes
        self.asked: list[int] = []

    async def request(self, _subject: str, data: bytes, timeout_s: float) -> bytes:
        """Answer with a page of two entries, five in all."""
        del timeout_s
        query = open_envelope(data, self.network.network_id, m.StatementQueryV1).body
        self.asked.append(query.after_entry)
        entries = [entry for entry in range(1, 6) if entry > query.after_entry]
        page = entries[:2]
        fields = {
            "participant": query.participant,
            "lines": tuple(map(make_line, page)),
            "last_entry": page[-1] if page else query.after_entry,
            "has_more": len(entries) > 2,
            "journal_entries": 5,
        }
        changed = self.changes if query.after_entry == 2 else {}
        body = m.StatementReplyV1.model_validate({**fields, **changed})
        return self.network.seal(self.network.keys[self.signer], body)


def make_line(entry: int) -> m.StatementLineV1:
    return m.StatementLineV1(
        entry=entry,
        at_ms=1_000,
        operation="deposit",
        subject=b"",
        cause=bytes(32),
        account=USER.participant_id,
        amount_micro=2**60 + entry,
    )


async def read(bus: HeardBus, network: Network, after: int = 0) -> list[m.StatementLineV1]:
    return [line async for line in open_purse(bus, network).statement(after_entry=after)]


async def test_pages_are_asked_for_until_there_are_no_more(network: Network) -> None:
    bus = Pages(network)
    lines = await read(bus, network)
    assert [line.entry for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0].amount_micro == 2**60 + 1
    assert bus.asked == [0, 2, 4]
    assert [line.entry for line in await read(bus, network, after=3)] == [4, 5]


@pytest.mark.parametrize(
    "changes",
    [
        {"lines": (make_line(2), make_line(3))},
        {"lines": (make_line(4), make_line(3))},
        {"lines": (make_line(3), make_line(9))},
        {"lines": (), "last_entry": 2},
        {"participant": MALLORY.participant_id},
    ],
    ids=["repeated", "out of order", "beyond its end", "empty with more to come", "another's"],
)
async def test_pages_that_do_not_join_are_refused(network: Network, changes: dict[str, Any]) -> None:
    with pytest.raises(CommitmentError, match="does not go on"):
        await read(Pages(network, **changes), network)


async def test_a_statement_by_another_service_is_refused(network: Network) -> None:
    with pytest.raises(CommitmentError, match="not signed by the ledger"):
        await read(Pages(network, Role.ROUTER), network)
