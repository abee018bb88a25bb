"""The continuous puller against a real server, through credit, sharing, faults and shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.port import Outgoing, StoredMessage
from pocache.bus.provision import provision
from pocache.bus.puller import ContinuousPuller, PullSettings
from pocache.bus.server import EmbeddedServer
from pocache.bus.specs import ConsumerSpec, StreamSpec
from pocache.protocol.errors import BusError

TASKS = StreamSpec(name="TASKS", subjects=("tasks.>",), retention="workqueue", max_msgs=10_000, discard="new")
GENERATE = ConsumerSpec(stream="TASKS", durable="generate", ack_wait_s=60.0, max_ack_pending=5_000)
HASTY = ConsumerSpec(stream="TASKS", durable="generate", ack_wait_s=1.0)


def make_settings(server: EmbeddedServer, **changes: object) -> NatsSettings:
    defaults: dict[str, object] = {
        "url": server.url,
        "name": "worker",
        "pull_expires_s": 2.0,
        "pull_heartbeat_s": 0.3,
    }
    return NatsSettings(**(defaults | changes))  # type: ignore[arg-type]


@pytest.fixture
async def bus(nats_server: EmbeddedServer) -> AsyncIterator[NatsBus]:
    async with connect_bus(make_settings(nats_server)) as connected:
        await provision(connected.client.jetstream(), [TASKS], [GENERATE])
        yield connected


async def publish(bus: NatsBus, count: int, *, start: int = 0) -> None:
    await bus.publish_many(
        [Outgoing("tasks.a", str(index).encode(), f"id{index}") for index in range(start, start + count)]
    )


async def collect(batches: AsyncIterator[list[StoredMessage]], count: int) -> list[StoredMessage]:
    """Take and acknowledge messages until ``count`` different ones were seen."""
    seen: dict[int, StoredMessage] = {}
    while len(seen) < count:
        for message in await anext(batches):
            seen[message.sequence] = message
            await message.ack()
    return list(seen.values())


async def get_ack_pending(bus: NatsBus) -> int:
    info = await bus.client.jetstream().consumer_info("TASKS", "generate")
    assert info.num_ack_pending is not None
    return int(info.num_ack_pending)


async def wait_stored_count(bus: NatsBus, count: int) -> None:
    """Ask until the stream holds ``count`` messages: the server handles acknowledgements on its own time."""
    async with asyncio.timeout(20):
        while (await bus.client.jetstream().stream_info("TASKS")).state.messages != count:
            pass


async def wait_ack_pending(bus: NatsBus, count: int) -> None:
    """Ask until ``count`` messages are delivered and not acknowledged."""
    async with asyncio.timeout(20):
        while await get_ack_pending(bus) != count:
            pass


async def test_all_messages_arrive_once_in_order_with_their_positions(bus: NatsBus) -> None:
    await publish(bus, 500)
    async with bus.pull("TASKS", "generate", credit=64, batch_max=16) as batches:
        messages = await collect(batches, 500)
        assert [message.sequence for message in messages] == list(range(1, 501))
        assert sorted(int(message.data) for message in messages) == list(range(500))
        assert {message.delivered_count for message in messages} == {1}
        assert {message.stream for message in messages} == {"TASKS"}
        assert all(message.stored_ms > 1_700_000_000_000 for message in messages)
    await wait_stored_count(bus, 0)


async def test_batches_are_whatever_is_there_up_to_the_maximum(bus: NatsBus) -> None:
    async with bus.pull("TASKS", "generate", credit=10, batch_max=4) as batches:
        await publish(bus, 1)
        assert len(await anext(batches)) == 1
        waiting = asyncio.ensure_future(anext(batches))
        await publish(bus, 9, start=1)
        sizes = [len(await waiting)]
        while sum(sizes) < 9:
            sizes.append(len(await anext(batches)))
        assert max(sizes) <= 4


async def test_credit_bounds_what_is_held_and_settling_frees_it(bus: NatsBus) -> None:
    await publish(bus, 10)
    async with bus.pull("TASKS", "generate", credit=3) as batches:
        held = [(await anext(batches))[0] for _ in range(3)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):  # longer than a heartbeat: nothing more may come
                await anext(batches)
        assert await get_ack_pending(bus) == 3
        await held[0].ack()
        assert (await anext(batches))[0].sequence == 4
        await held[1].nak()
        await held[2].ack()
        again = {message.sequence: message.delivered_count for message in await collect(batches, 7)}
        assert again == {2: 2} | dict.fromkeys(range(5, 11), 1)


async def test_settling_twice_says_it_once(bus: NatsBus) -> None:
    await publish(bus, 2)
    async with bus.pull("TASKS", "generate", credit=1) as batches:
        (first,) = await anext(batches)
        await first.ack()
        await first.nak()
        (second,) = await anext(batches)
        assert second.sequence == 2


async def test_two_pullers_share_the_work(bus: NatsBus, nats_server: EmbeddedServer) -> None:
    async with (
        connect_bus(make_settings(nats_server, name="second")) as other,
        bus.pull("TASKS", "generate", credit=2) as ours,
        other.pull("TASKS", "generate", credit=2) as theirs,
    ):
        await publish(bus, 4)
        taken = [(await anext(source))[0] for source in (ours, theirs, ours, theirs)]
        assert sorted(message.sequence for message in taken) == [1, 2, 3, 4]
        for message in taken:
            await message.ack()


async def test_what_was_prefetched_is_given_back_at_shutdown(
    bus: NatsBus, nats_server: EmbeddedServer
) -> None:
    """The acknowledgement wait is a minute, so only a NAK can bring them to the other puller in time."""
    await publish(bus, 5)
    async with bus.pull("TASKS", "generate", credit=5) as batches:
        (kept,) = await anext(batches)
        assert isinstance(batches, ContinuousPuller)
        await wait_ack_pending(bus, 5)
    async with (
        connect_bus(make_settings(nats_server, name="second")) as other,
        other.pull("TASKS", "generate", credit=5) as theirs,
    ):
        messages = await collect(theirs, 4)
        assert sorted(message.sequence for message in messages) == [2, 3, 4, 5]
        assert {message.delivered_count for message in messages} == {2}
        await kept.ack()  # what was handed out can still be settled after the context
        await wait_stored_count(bus, 0)


async def test_the_iteration_ends_with_the_context(bus: NatsBus) -> None:
    async with bus.pull("TASKS", "generate", credit=1) as batches:
        pass
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_reconnect_keeps_the_flow_and_its_bound(bus: NatsBus) -> None:
    async with bus.pull("TASKS", "generate", credit=4) as batches:
        await publish(bus, 4)
        await collect(batches, 4)
        for start in (4, 8, 12):
            await bus.client.force_reconnect()
            await publish(bus, 4, start=start)
            await collect(batches, 4)
        await publish(bus, 40, start=16)
        for _ in range(4):
            await anext(batches)
        assert 4 <= await get_ack_pending(bus) <= 16  # one credit, and one more for each reconnect


async def test_a_killed_server_loses_nothing(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [TASKS], [HASTY])
        await publish(bus, 30)
        async with bus.pull("TASKS", "generate", credit=8) as batches:
            taken = [(await anext(batches))[0] for _ in range(3)]
            await nats_server.kill()
            for message in taken:
                await message.ack()  # kept by the client and sent after the reconnect
            await nats_server.start()
            await publish(bus, 10, start=30)
            while (
                len({message.data for message in taken}) < 40
            ):  # some may come twice: at least once is the promise
                for message in await anext(batches):
                    taken.append(message)
                    await message.ack()
        await wait_stored_count(bus, 0)


async def test_missed_heartbeats_make_a_new_request(
    bus: NatsBus, nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server falls silent while the connection stays: only the missing heartbeats tell."""
    renewed, send = asyncio.Event(), bus.client.publish

    async def observe(subject: str, payload: bytes = b"", reply: str = "") -> None:
        if subject == "$JS.API.CONSUMER.MSG.NEXT.TASKS.generate":
            renewed.set()
        await send(subject, payload, reply)

    async with bus.pull("TASKS", "generate", credit=2) as batches:
        await bus.client.flush()  # the first request is on its way
        assert nats_server.pid is not None
        os.kill(nats_server.pid, signal.SIGSTOP)
        try:
            with monkeypatch.context() as patched:
                patched.setattr(bus.client, "publish", observe)
                async with asyncio.timeout(10):
                    await renewed.wait()
        finally:
            os.kill(nats_server.pid, signal.SIGCONT)
        await publish(bus, 5)
        await collect(batches, 5)
        await wait_stored_count(bus, 0)


async def test_an_unknown_consumer_is_an_error(bus: NatsBus) -> None:
    puller = ContinuousPuller(
        bus.client, "TASKS", "nobody", make_pull_settings(unavailable_s=0.2), bury_nothing
    )
    async with puller:
        with pytest.raises(BusError, match=r"TASKS\.nobody is not provisioned"):
            await anext(puller)


async def test_a_deleted_consumer_is_an_error(bus: NatsBus) -> None:
    async with bus.pull("TASKS", "generate", credit=2) as batches:
        await publish(bus, 1)
        await anext(batches)  # half of the credit is still asked for
        waiting = asyncio.ensure_future(anext(batches))
        await bus.client.jsm().delete_consumer("TASKS", "generate")
        with pytest.raises(BusError, match="Consumer Deleted"):
            await waiting


async def test_a_closed_connection_ends_the_iteration(bus: NatsBus) -> None:
    async with bus.pull("TASKS", "generate", credit=1) as batches:
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        await bus.client.close()
        with pytest.raises(BusError, match="closed"):
            await waiting


async def test_progress_keeps_what_is_held(nats_server: EmbeddedServer) -> None:
    """With an acknowledgement wait of a second, a message worked on for two stays ours only by progress."""
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [TASKS], [HASTY])
        await publish(bus, 1)
        async with bus.pull("TASKS", "generate", credit=2, progress_s=0.25) as batches:
            (message,) = await anext(batches)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.2):
                    await anext(batches)
            await message.ack()
            await wait_stored_count(bus, 0)


async def test_a_message_delivered_again_takes_the_place_of_the_first(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [TASKS], [HASTY])
        await publish(bus, 1)
        async with bus.pull("TASKS", "generate", credit=2) as batches:
            (first,) = await anext(batches)
            (again,) = await anext(batches)
            assert (again.sequence, again.delivered_count) == (first.sequence, 2)
            assert isinstance(batches, ContinuousPuller)
            assert batches.held_count == 1
            await again.ack()
            assert batches.held_count == 0
            await wait_stored_count(bus, 0)


def make_pull_settings(**changes: object) -> PullSettings:
    defaults: dict[str, object] = {"credit": 1, "expires_s": 2.0, "heartbeat_s": 0.3, "retry_s": 0.05}
    return PullSettings(**(defaults | changes))  # type: ignore[arg-type]


async def bury_nothing(_message: StoredMessage, _consumer: str, _reason: str) -> None:
    raise AssertionError("nothing is terminated here")


async def test_a_subject_that_is_not_utf8_stops_nothing(bus: NatsBus, nats_server: EmbeddedServer) -> None:
    """A stranger's own bytes, where its permission has a wildcard: delivered escaped, and what follows is, too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(nats_server.url.rpartition(":")[2]))
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\nPUB tasks.\xff\x0b1 3\r\nbad\r\n')
    headers = b"NATS/1.0 \xff\xff\xff\r\n\r\n"
    writer.write(b"HPUB tasks.b %d %d\r\n%sodd\r\nPING\r\n" % (len(headers), len(headers) + 3, headers))
    await reader.readuntil(b"PONG\r\n")
    writer.close()
    await publish(bus, 1)
    async with asyncio.timeout(20), bus.pull("TASKS", "generate", credit=8, batch_max=8) as batches:
        messages = await collect(batches, 3)
    assert [(one.subject, one.data) for one in messages] == [
        ("tasks.\\\\xff\\x0b1", b"bad"),
        ("tasks.b", b"odd"),
        ("tasks.a", b"0"),
    ]
