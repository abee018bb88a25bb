"""The puller's book-keeping, one server message at a time; the flow itself is tested against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from pocache.bus.port import StoredMessage
from pocache.bus.puller import ContinuousPuller, PullSettings
from pocache.protocol.errors import BusError


@dataclass
class FakeMessage:
    """What the client library hands to a subscription."""

    subject: str
    reply: str = ""
    data: bytes = b""
    headers: dict[str, str] | None = None


class FakeSubscription:
    async def drain(self) -> None:
        pass


@dataclass
class FakeClient:
    """Takes what the puller sends; says nothing by itself."""

    sent: list[tuple[str, bytes, str]] = field(default_factory=list)
    is_connected: bool = True
    is_closed: bool = False
    pending_data_size: int = 0
    receive: Callable[[Any], None] | None = None

    def new_inbox(self) -> str:
        return "_INBOX.test"

    async def subscribe_direct(self, _subject: str, handle: Callable[[Any], None]) -> FakeSubscription:
        self.receive = handle
        return FakeSubscription()

    def forget_direct(self, _subscription: FakeSubscription) -> None:
        pass

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        self.sent.append((subject, data, reply))

    async def flush(self) -> None:
        pass

    @property
    def requests(self) -> list[int]:
        return [json.loads(data)["batch"] for subject, data, _ in self.sent if "MSG.NEXT" in subject]

    @property
    def answers(self) -> list[tuple[str, bytes]]:
        return [(subject, data) for subject, data, _ in self.sent if subject.startswith("$JS.ACK")]

    async def deliver(
        self, sequence: int, *, delivered: int = 1, headers: dict[str, str] | None = None
    ) -> None:
        assert self.receive is not None
        reply = f"$JS.ACK.S.c.{delivered}.{sequence}.{sequence}.1700000000000000000.0"
        self.receive(FakeMessage("tasks.a", reply, b"%d" % sequence, headers))
        await let_run()

    async def say(
        self, status: str, description: str, *, request: int = -1, pending: int | None = None
    ) -> None:
        assert self.receive is not None
        headers = {"Status": status, "Description": description}
        if pending is not None:
            headers["Nats-Pending-Messages"] = str(pending)
        inbox = [reply for _, _, reply in self.sent if reply][request]
        self.receive(FakeMessage(inbox, headers=headers))
        await let_run()


async def let_run() -> None:
    """Give the puller's own task its turns."""
    for _ in range(5):
        await asyncio.sleep(0)


async def bury(_message: StoredMessage, _consumer: str, _reason: str) -> None:
    pass


@asynccontextmanager
async def make_puller(**settings: Any) -> AsyncIterator[tuple[FakeClient, ContinuousPuller]]:
    client = FakeClient()
    defaults = {"credit": 4, "retry_s": 0.0}
    puller = ContinuousPuller(client, "S", "c", PullSettings(**(defaults | settings)), bury)  # type: ignore[arg-type]
    async with puller:
        await let_run()
        yield client, puller


async def test_it_asks_for_its_credit_and_again_when_half_is_free() -> None:
    async with make_puller(credit=4, batch_max=4) as (client, puller):
        assert client.requests == [4]
        for sequence in (1, 2):
            await client.deliver(sequence)
        first, second = await anext(puller)
        await first.ack()
        await let_run()
        assert client.requests == [4]
        await second.ack()
        await let_run()
        assert client.requests == [4, 2]


async def test_a_credit_that_an_acknowledgement_kept_is_free_after_its_release() -> None:
    """The server is told at once; nothing is asked for in its place while who took it is busy with it."""
    async with make_puller(credit=1) as (client, puller):
        await client.deliver(1)
        (message,) = await anext(puller)
        await message.ack(keeps_credit=True)
        await let_run()
        assert len(client.answers) == 1
        assert (client.requests, puller.held_count) == ([1], 1)
        await message.in_progress()
        assert len(client.answers) == 1, "what is settled is not kept alive"
        message.release()
        message.release()
        await let_run()
        assert (client.requests, puller.held_count) == ([1, 1], 0)


async def test_what_is_held_counts_against_the_credit_when_a_request_ends() -> None:
    async with make_puller(credit=4) as (client, puller):
        await client.deliver(1)
        await client.say("408", "Request Timeout", pending=3)
        assert client.requests == [4, 3]
        assert puller.held_count == 1


async def test_the_end_of_a_forgotten_request_changes_nothing() -> None:
    async with make_puller(credit=4) as (client, puller):
        puller.handle_reconnected()
        await let_run()
        assert client.requests == [4, 4]
        await client.say("408", "Request Timeout", request=0, pending=4)
        assert client.requests == [4, 4]


async def test_nothing_is_asked_for_without_a_connection() -> None:
    async with make_puller(credit=4) as (client, puller):
        client.is_connected = False
        puller.handle_reconnected()
        await let_run()
        assert client.requests == [4]
        client.is_connected = True
        puller.handle_reconnected()
        await let_run()
        assert client.requests == [4, 4]


async def test_a_message_delivered_again_before_it_was_read_is_handed_out_once() -> None:
    async with make_puller(credit=4, batch_max=4) as (client, puller):
        await client.deliver(1)
        await client.deliver(2)
        await client.deliver(1, delivered=2)
        batch = await anext(puller)
        assert [(message.sequence, message.delivered_count) for message in batch] == [(2, 1), (1, 2)]
        assert puller.held_count == 2


async def test_a_header_cannot_pose_as_a_status() -> None:
    async with make_puller() as (client, puller):
        await client.deliver(1, headers={"Status": "409", "Description": "Consumer Deleted"})
        (message,) = await anext(puller)
        assert message.data == b"1"


async def test_a_message_of_another_consumer_is_not_taken() -> None:
    async with make_puller() as (client, puller):
        assert client.receive is not None
        client.receive(FakeMessage("a", "$JS.ACK.S.other.1.1.1.1700000000000000000.0"))
        client.receive(FakeMessage("a", "$JS.ACK.S.c.1.x.1.1700000000000000000.0"))
        assert puller.held_count == 0


@pytest.mark.parametrize(
    ("status", "description"),
    [
        ("409", "Consumer Deleted"),
        ("409", "Consumer is push based"),
        ("409", "Exceeded MaxRequestBatch of 1"),
        ("400", "Bad Request - Invalid"),
    ],
)
async def test_what_never_heals_ends_the_iteration(status: str, description: str) -> None:
    async with make_puller() as (client, puller):
        await client.say(status, description)
        with pytest.raises(BusError, match=description):
            await anext(puller)


@pytest.mark.parametrize(
    ("status", "description"),
    [
        ("409", "Leadership Change"),
        ("409", "Server Shutdown"),
        ("409", "Exceeded MaxWaiting"),
        ("404", "No Messages"),
    ],
)
async def test_what_heals_is_asked_for_again(status: str, description: str) -> None:
    async with make_puller(credit=4) as (client, _puller):
        await client.say(status, description)
        assert client.requests == [4, 4]


async def test_heartbeats_end_no_request() -> None:
    async with make_puller(credit=4) as (client, _puller):
        await client.say("100", "Idle Heartbeat")
        assert client.requests == [4]


async def test_a_denied_pull_ends_the_iteration_and_another_denial_does_not() -> None:
    async with make_puller() as (client, puller):
        puller.handle_denied("$js.api.consumer.msg.next.s.other")
        await client.deliver(1)
        await anext(puller)
        puller.handle_denied("$js.api.consumer.msg.next.s.c")
        with pytest.raises(BusError, match="denied"):
            await anext(puller)


async def test_answers_are_the_servers_words() -> None:
    async with make_puller(batch_max=4) as (client, puller):
        for sequence in (1, 2, 3, 4):
            await client.deliver(sequence)
        one, two, three, four = await anext(puller)
        await one.in_progress()
        await one.ack()
        await one.in_progress()
        await two.nak(1.5)
        await three.nak()
        await four.term("bad\nkind")
        assert [data for _, data in client.answers] == [
            b"+WPI",
            b"+ACK",
            b'-NAK {"delay": 1500000000}',
            b"-NAK",
            b"+TERM bad kind",
        ]
        assert client.answers[0][0] == "$JS.ACK.S.c.1.1.1.1700000000000000000.0"
        assert puller.held_count == 0


async def test_only_what_was_not_handed_out_is_given_back() -> None:
    async with make_puller() as (client, puller):
        for sequence in (1, 2, 3):
            await client.deliver(sequence)
        await client.deliver(3, delivered=2)
        await anext(puller)
    assert [(subject.split(".")[5], data) for subject, data in client.answers] == [
        ("2", b"-NAK"),
        ("3", b"-NAK"),
    ]
