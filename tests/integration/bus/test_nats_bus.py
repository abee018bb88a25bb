"""The bus adapter against a real server: storing, refusing, listening, answering, reading."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import compute_permissions, generate_transport_key
from pocache.bus.port import Bus, CoreMessage, Outgoing
from pocache.bus.provision import provision
from pocache.bus.replies import DeniedError, UnansweredError
from pocache.bus.server import EmbeddedServer
from pocache.bus.specs import ConsumerSpec, StreamSpec
from pocache.protocol.errors import BackpressureError, BusError, ConflictError, LimitError, NotYetError

RECORD = StreamSpec(name="RECORD", subjects=("record.>",), deny_delete=True, deny_purge=True)
QUEUE = StreamSpec(name="QUEUE", subjects=("queue.>",), retention="workqueue", max_msgs=3, discard="new")

PRIVATE = generate_transport_key(b"\x01" * 32)
ADMIN = generate_transport_key(b"\x02" * 32)


def make_settings(server: EmbeddedServer, name: str = "tester", **changes: object) -> NatsSettings:
    defaults: dict[str, object] = {"url": server.url, "name": name, "unprovisioned_s": 0.2, "attempt_s": 2.0}
    return NatsSettings(**(defaults | changes))  # type: ignore[arg-type]


async def test_a_published_message_has_its_sequence_and_is_stored_once(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        port: Bus = bus
        await provision(bus.client.jetstream(), [RECORD], [])
        assert await port.publish("record.a", b"1", message_id="one") == 1
        assert await port.publish("record.a", b"1", message_id="one") == 1
        assert await port.publish("record.b", b"2") == 2
        records = [record async for record in port.read("RECORD")]
        assert [(record.subject, record.data, record.sequence) for record in records] == [
            ("record.a", b"1", 1),
            ("record.b", b"2", 2),
        ]


async def test_a_publish_that_is_still_in_process_is_asked_for_again(nats_server: EmbeddedServer) -> None:
    """A cluster answers so while it stores the first one: that is neither a failure nor the end of it."""
    in_process = (
        b'{"error": {"code": 503, "err_code": 10158, "description": "duplicate message id is in process"}}'
    )
    answers = [in_process, in_process, b'{"stream": "S", "seq": 7}']

    async def answer(_message: CoreMessage) -> bytes:
        return answers.pop(0)

    settings = NatsSettings(url=nats_server.url, name="tests", reconnect_wait_s=0.01)
    async with connect_bus(settings) as bus, bus.serve_requests("a.stream", answer):
        assert await bus.publish("a.stream", b"x", message_id="one") == 7
    assert answers == []


async def test_many_publishes_keep_their_sequences(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [RECORD], [])
        messages = [Outgoing(f"record.{index}", str(index).encode(), f"id{index}") for index in range(600)]
        sequences = await bus.publish_many(messages)
        assert sequences == list(range(1, 601))
        stored = {record.sequence: record.data async for record in bus.read("RECORD")}
        assert [stored[sequence] for sequence in range(1, 601)] == [message.data for message in messages]


async def test_a_full_work_queue_answers_with_backpressure_and_drops_nothing(
    nats_server: EmbeddedServer,
) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [QUEUE], [])
        for index in range(3):
            await bus.publish("queue.a", bytes([index]))
        with pytest.raises(BackpressureError, match="try again later"):
            await bus.publish("queue.a", b"\x03", message_id="three")
        (refused,) = await bus.publish_many([Outgoing("queue.a", b"\x04")])
        assert isinstance(refused, BackpressureError)
        assert [record.data async for record in bus.read("QUEUE")] == [b"\x00", b"\x01", b"\x02"]


async def test_an_expected_sequence_that_is_not_the_last_is_a_conflict(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [RECORD], [])
        await bus.publish("record.a", b"1", expected_last_sequence=0)
        await bus.publish("record.b", b"1", expected_last_subject_sequence=0)
        with pytest.raises(ConflictError):
            await bus.publish("record.a", b"2", expected_last_sequence=1)
        with pytest.raises(ConflictError):
            await bus.publish("record.a", b"2", expected_last_subject_sequence=2)
        assert await bus.publish("record.a", b"2", expected_last_subject_sequence=1) == 3


async def test_a_subject_without_a_stream_and_an_oversized_message_are_errors(
    nats_server: EmbeddedServer,
) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        with pytest.raises(BusError, match="no stream takes nowhere"):
            await bus.publish("nowhere", b"x")
        with pytest.raises(LimitError):
            await bus.publish("nowhere", b"x" * 1_100_000)


async def test_reading_filters_starts_and_ends(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [RECORD], [])
        assert [record async for record in bus.read("RECORD")] == []
        assert await bus.get_last("RECORD", "record.>") is None
        await bus.publish_many(
            [Outgoing(f"record.{'ab'[index % 2]}", str(index).encode()) for index in range(600)]
        )
        only_a = [record async for record in bus.read("RECORD", subject="record.a", start_sequence=301)]
        assert len(only_a) == 150
        assert all(record.subject == "record.a" and record.sequence >= 301 for record in only_a)
        last = await bus.get_last("RECORD", "record.>")
        assert last is not None
        assert last.sequence == 600
        assert last.stored_ms == max(record.stored_ms for record in [*only_a, last])
        assert await bus.get_last("RECORD", "record.c") is None
        with pytest.raises(BusError):
            [record async for record in bus.read("NOSTREAM")]


async def test_a_listener_hears_core_and_stored_messages(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [RECORD], [])
        async with bus.subscribe_core("record.*") as heard, bus.subscribe_core("tokens.>") as tokens:
            await bus.publish("record.a", b"stored")
            await bus.publish_core("tokens.job.1", b"chunk")
            assert await anext(heard) == CoreMessage("record.a", b"stored")
            assert await anext(tokens) == CoreMessage("tokens.job.1", b"chunk")


async def test_a_slow_listener_is_bounded(nats_server: EmbeddedServer) -> None:
    async with (
        connect_bus(make_settings(nats_server)) as bus,
        bus.subscribe_core("t", pending_max=2) as heard,
        bus.subscribe_core("end") as ended,
    ):
        for index in range(5):
            await bus.publish_core("t", bytes([index]))
        await bus.publish_core("end", b"")
        await anext(ended)
        assert [(await anext(heard)).data for _ in range(2)] == [b"\x00", b"\x01"]
        await bus.publish_core("t", b"later")
        assert (await anext(heard)).data == b"later"


async def test_requests_are_answered_and_failures_are_told(nats_server: EmbeddedServer) -> None:
    async def handle(message: CoreMessage) -> bytes:
        if message.data == b"early":
            raise NotYetError("not yet")
        if message.data == b"bug":
            raise RuntimeError("secret detail")
        return message.data.upper()

    async with connect_bus(make_settings(nats_server)) as bus:
        with pytest.raises(BusError, match="nobody serves"):
            await bus.request("queries.x", b"hi", 2.0)
        async with bus.serve_requests("queries.*", handle):
            assert await bus.request("queries.x", b"hi", 2.0) == b"HI"
            with pytest.raises(BusError, match="E501"):
                await bus.request("queries.x", b"early", 2.0)
            with pytest.raises(BusError, match="E000") as caught:
                await bus.request("queries.x", b"bug", 2.0)
            assert "secret" not in str(caught.value)
            assert await bus.request("queries.x", b"still", 2.0) == b"STILL"
        with pytest.raises(BusError, match="nobody serves"):
            await bus.request("queries.x", b"hi", 2.0)


async def test_requests_run_side_by_side_up_to_the_bound(nats_server: EmbeddedServer) -> None:
    running, peak, release = 0, 0, asyncio.Event()
    two_running = asyncio.Event()

    async def handle(message: CoreMessage) -> bytes:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        if running == 2:
            two_running.set()
        await release.wait()
        running -= 1
        return message.data

    async with connect_bus(make_settings(nats_server)) as bus, bus.serve_requests("q", handle, concurrency=2):
        asked = [asyncio.create_task(bus.request("q", bytes([index]), 5.0)) for index in range(6)]
        await two_running.wait()
        release.set()
        assert await asyncio.gather(*asked) == [bytes([index]) for index in range(6)]
        assert peak == 2


async def give_users(server: EmbeddedServer) -> None:
    """One user that may do everything, one that may publish one subject and pull from one consumer."""
    admin = compute_permissions("admin", ADMIN.public, publish_subjects=(">",), core_subscriptions=(">",))
    private = compute_permissions(
        "private", PRIVATE.public, publish_subjects=("record.mine",), pull_consumers=(("RECORD", "mine"),)
    )
    await server.reload((admin, private))


async def test_what_is_denied_fails_at_once_and_stays_visible(nats_server: EmbeddedServer) -> None:
    await give_users(nats_server)
    consumers = [ConsumerSpec(stream="RECORD", durable=name) for name in ("mine", "other")]
    async with (
        connect_bus(make_settings(nats_server, "admin", nkey_seed=ADMIN.seed)) as admin,
        connect_bus(make_settings(nats_server, "private", nkey_seed=PRIVATE.seed, attempt_s=60.0)) as bus,
    ):
        await provision(admin.client.jetstream(), [RECORD], consumers)
        assert await bus.publish("record.mine", b"ok") == 1
        assert not bus.denied
        with pytest.raises(DeniedError, match=r"record\.other"):
            await bus.publish("record.other", b"forged", message_id="x")
        assert bus.denied == ("publish to record.other",)
        with pytest.raises(DeniedError):
            async with bus.subscribe_core("record.mine"):
                pass
        with pytest.raises(BusError, match="denied"):
            async with bus.pull("RECORD", "other", credit=1) as batches:
                await anext(batches)
        async with bus.pull("RECORD", "mine", credit=1) as batches:
            (message,) = await anext(batches)
            await message.ack()
        assert [record.subject async for record in admin.read("RECORD")] == ["record.mine"]


async def test_a_user_that_the_server_does_not_know_is_refused(nats_server: EmbeddedServer) -> None:
    await give_users(nats_server)
    stranger = generate_transport_key(b"\x03" * 32)
    for seed in (stranger.seed, None):
        with pytest.raises(BusError, match="refuses the user of tester"):
            async with connect_bus(make_settings(nats_server, nkey_seed=seed)):
                pass


async def test_a_reload_keeps_the_connections_of_unchanged_users(nats_server: EmbeddedServer) -> None:
    await give_users(nats_server)
    async with connect_bus(make_settings(nats_server, "admin", nkey_seed=ADMIN.seed)) as bus:
        client_id = bus.client.client_id
        newcomer = generate_transport_key(b"\x04" * 32)
        await nats_server.reload((*nats_server.users, compute_permissions("new", newcomer.public)))
        async with connect_bus(make_settings(nats_server, "new", nkey_seed=newcomer.seed)) as other:
            assert other.is_connected
        await bus.client.flush()
        assert bus.client.client_id == client_id


async def test_no_server_is_an_error_in_time(nats_server: EmbeddedServer) -> None:
    settings = make_settings(nats_server, connect_s=0.5)
    await nats_server.kill()
    with pytest.raises(BusError, match="no connection"):
        async with connect_bus(settings):
            pass


async def test_a_publish_waits_out_a_restart_and_is_stored_once(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        await provision(bus.client.jetstream(), [RECORD], [])
        await bus.publish("record.a", b"0", message_id="0")
        await nats_server.kill()
        publishing = asyncio.create_task(
            bus.publish_many([Outgoing("record.a", str(index).encode(), str(index)) for index in range(20)])
        )
        await nats_server.start()
        assert {*await publishing} == {*range(1, 21)}
        assert len([record async for record in bus.read("RECORD")]) == 20


async def test_a_publish_in_flight_is_repeated_only_under_a_message_id(nats_server: EmbeddedServer) -> None:
    """Stopped, the server takes what is sent and answers nothing; killed, it has lost it."""
    async with connect_bus(make_settings(nats_server, attempt_s=60.0)) as bus:
        await provision(bus.client.jetstream(), [RECORD], [])
        assert nats_server.pid is not None
        os.kill(nats_server.pid, signal.SIGSTOP)
        named = asyncio.create_task(bus.publish("record.a", b"named", message_id="1"))
        nameless = asyncio.create_task(bus.publish("record.a", b"nameless"))
        while bus.client.stats["out_msgs"] < 4:  # two by the provisioner
            await asyncio.sleep(0)
        await nats_server.kill()
        await nats_server.start()
        assert await named == 1
        with pytest.raises(UnansweredError):
            await nameless
        assert [record.data async for record in bus.read("RECORD")] == [b"named"]


async def test_a_connection_closed_for_good_ends_what_waits_on_it(nats_server: EmbeddedServer) -> None:
    async with connect_bus(make_settings(nats_server)) as bus:
        async with asyncio.TaskGroup() as group, bus.subscribe_core("quiet") as heard:
            closed = group.create_task(expect_bus_error(bus))
            listening = group.create_task(expect_lost(heard))
            await bus.client.close()
            await closed
            await listening
        assert not bus.is_connected
        with pytest.raises(BusError):
            await bus.publish("record.a", b"x")
        with pytest.raises(BusError):
            await bus.publish_core("record.a", b"x")


async def expect_bus_error(bus: NatsBus) -> None:
    with pytest.raises(BusError, match="closed"):
        await bus.wait_closed()


async def expect_lost(heard: object) -> None:
    with pytest.raises(BusError, match="closed"):
        await anext(heard)  # type: ignore[call-overload]
