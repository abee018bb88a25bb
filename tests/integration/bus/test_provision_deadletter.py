"""Provisioning refuses drift; what cannot be handled is copied with its reason and leaves the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pocache.bus.deadletter import ADVISORIES, ADVISORY_CONSUMER, DEADLETTERS, DeadLetterCollector
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import (
    compute_collector_permissions,
    compute_permissions,
    compute_provisioner_permissions,
    generate_transport_key,
)
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer
from pocache.bus.specs import ConsumerSpec, StreamSpec
from pocache.protocol.errors import BackpressureError, BusError
from pocache.runtime.network import Bounds
from pocache.service.provisioning import TASKS_PER_JOB_MAX, get_stream_specs
from pocache.wire.topics import GENERATE_TASK, VERIFY_TASK

TASKS = StreamSpec(
    name="TASKS",
    subjects=("tasks.>",),
    retention="workqueue",
    max_msgs=100,
    max_bytes=1_000_000,
    discard="new",
    max_msg_bytes=10_000,
)
RECORD = StreamSpec(name="RECORD", subjects=("record.>",), deny_delete=True, deny_purge=True)
STRICT = ConsumerSpec(stream="TASKS", durable="work", ack_wait_s=30.0, max_deliver=2)
FOLLOWER = ConsumerSpec(
    stream="RECORD", durable="follow", filter_subjects=("record.a", "record.b"), max_deliver=5
)
STREAMS = (TASKS, RECORD, ADVISORIES, DEADLETTERS)
CONSUMERS = (STRICT, FOLLOWER, ADVISORY_CONSUMER)

KEYS = {
    name: generate_transport_key(bytes([index]) * 32) for index, name in enumerate(("prov", "coll", "work"))
}


@asynccontextmanager
async def connect(server: EmbeddedServer, name: str, seed: str | None = None) -> AsyncIterator[NatsBus]:
    settings = NatsSettings(
        url=server.url, name=name, nkey_seed=seed, pull_expires_s=2.0, pull_heartbeat_s=0.3
    )
    async with connect_bus(settings) as bus:
        yield bus


async def test_provisioning_twice_changes_nothing(nats_server: EmbeddedServer) -> None:
    async with connect(nats_server, "provisioner") as bus:
        js = bus.client.jetstream()
        await provision(js, STREAMS, CONSUMERS)
        await bus.publish("tasks.a", b"x")
        await provision(js, STREAMS, CONSUMERS)
        assert (await js.stream_info("TASKS")).state.messages == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_msgs": 99}, "max_msgs"),
        ({"max_bytes": 2_000_000}, "max_bytes"),
        ({"max_age_s": 60.0}, "max_age_ns"),
        ({"discard": "old"}, "discard"),
        ({"retention": "limits"}, "retention"),
        ({"subjects": ("tasks.a",)}, "subjects"),
        ({"max_msg_bytes": 20_000}, "max_msg_bytes"),
        ({"duplicate_window_s": 60.0}, "duplicate_window_ns"),
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject"),
        ({"retention": "limits", "deny_delete": True}, "deny_delete"),
        ({"deny_purge": True}, "deny_purge"),
        ({"storage": "memory"}, "storage"),
        ({"allow_direct": False}, "allow_direct"),
    ],
)
async def test_a_stream_with_other_settings_is_refused(
    nats_server: EmbeddedServer, change: dict[str, object], named: str
) -> None:
    async with connect(nats_server, "provisioner") as bus:
        js = bus.client.jetstream()
        await provision(js, [TASKS], [])
        with pytest.raises(BusError, match=f"stream TASKS exists with other settings.*{named}"):
            await provision(js, [replace(TASKS, **change)], [])  # type: ignore[arg-type]
        await provision(js, [TASKS], [])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ack_wait_s": 31.0}, "ack_wait_ns"),
        ({"max_deliver": -1}, "max_deliver"),
        ({"max_ack_pending": 7}, "max_ack_pending"),
        ({"filter_subjects": ("tasks.a",)}, "filter_subjects"),
        ({"backoff_s": (5.0,)}, "backoff_ns"),
        ({"deliver_policy": "new"}, "deliver_policy"),
    ],
)
async def test_a_consumer_with_other_settings_is_refused_and_not_rewritten(
    nats_server: EmbeddedServer, change: dict[str, object], named: str
) -> None:
    async with connect(nats_server, "provisioner") as bus:
        js = bus.client.jetstream()
        await provision(js, [TASKS], [STRICT])
        with pytest.raises(BusError, match=rf"consumer TASKS\.work exists with other settings.*{named}"):
            await provision(js, [TASKS], [replace(STRICT, **change)])  # type: ignore[arg-type]
        await provision(js, [TASKS], [STRICT])


async def test_a_terminated_message_is_copied_and_leaves_the_queue(nats_server: EmbeddedServer) -> None:
    async with connect(nats_server, "worker") as bus:
        js = bus.client.jetstream()
        await provision(js, STREAMS, CONSUMERS)
        await bus.publish("tasks.a", b"\x00poison")
        async with bus.pull("TASKS", "work", credit=1) as batches:
            (message,) = await anext(batches)
            await message.term("E101 malformed\nX-Forged: 1")
        letter = await bus.get_last("DEADLETTER", "dead.TASKS.work")
        assert letter is not None
        assert letter.data == b"\x00poison"
        assert letter.headers["Pocache-Dead-Reason"] == "E101 malformed X-Forged: 1"
        assert letter.headers["Pocache-Dead-Subject"] == "tasks.a"
        assert "X-Forged" not in letter.headers
        async with asyncio.timeout(20):
            while (await js.stream_info("TASKS")).state.messages:  # the server handles it on its own time
                pass


async def test_a_message_whose_copy_cannot_be_stored_is_not_terminated(nats_server: EmbeddedServer) -> None:
    async with connect(nats_server, "worker") as bus:
        js = bus.client.jetstream()
        await provision(js, [TASKS], [STRICT])
        await bus.publish("tasks.a", b"poison")
        async with bus.pull("TASKS", "work", credit=1) as batches:
            (message,) = await anext(batches)
            with pytest.raises(BusError, match="no stream takes dead"):
                await message.term("bad")
            await message.nak()
            (again,) = await anext(batches)
            assert again.delivered_count == 2


async def test_a_message_delivered_too_often_is_collected_with_least_privilege(
    nats_server: EmbeddedServer,
) -> None:
    """The whole path under the permissions that each part has in production."""
    users = (
        compute_provisioner_permissions(KEYS["prov"].public),
        compute_collector_permissions(
            KEYS["coll"].public, (ADVISORY_CONSUMER.stream, ADVISORY_CONSUMER.durable)
        ),
        compute_permissions(
            "worker",
            KEYS["work"].public,
            publish_subjects=("tasks.a",),
            pull_consumers=(("TASKS", "work"),),
            read_streams=("DEADLETTER",),
        ),
    )
    await nats_server.reload(users)
    async with (
        connect(nats_server, "provisioner", KEYS["prov"].seed) as provisioner,
        connect(nats_server, "deadletters", KEYS["coll"].seed) as collecting,
        connect(nats_server, "worker", KEYS["work"].seed) as bus,
    ):
        js = provisioner.client.jetstream()
        await provision(js, STREAMS, CONSUMERS)
        collector = DeadLetterCollector(collecting, work_queues=frozenset({"TASKS"}))
        await bus.publish("tasks.a", b"hopeless")
        async with bus.pull("TASKS", "work", credit=1) as batches:
            for _ in range(2):
                (message,) = await anext(batches)
                await message.nak()
            await handle_one_advisory(collecting, collector)
        letter = await bus.get_last("DEADLETTER", "dead.TASKS.work")
        assert letter is not None
        assert letter.headers["Pocache-Dead-Reason"] == "delivered 2 times without success"
        assert (await js.stream_info("TASKS")).state.messages == 0
        assert provisioner.denied == collecting.denied == bus.denied == ()


async def test_a_terminated_record_is_copied_once(nats_server: EmbeddedServer) -> None:
    """The service's copy and the collector's are one: a limits stream still has the message for both."""
    async with connect(nats_server, "worker") as bus:
        js = bus.client.jetstream()
        await provision(js, STREAMS, CONSUMERS)
        collector = DeadLetterCollector(bus, work_queues=frozenset({"TASKS"}))
        await bus.publish("record.b", b"odd")
        async with bus.pull("RECORD", "follow", credit=1) as batches:
            (message,) = await anext(batches)
            await message.term("not understood")
            await handle_one_advisory(bus, collector)
        assert (await js.stream_info("DEADLETTER")).state.messages == 1
        assert (await js.stream_info("RECORD")).state.messages == 1


async def test_the_collector_runs_until_it_is_cancelled(nats_server: EmbeddedServer) -> None:
    async with connect(nats_server, "worker") as bus:
        js = bus.client.jetstream()
        await provision(js, STREAMS, CONSUMERS)
        await bus.publish("tasks.a", b"hopeless")
        async with bus.pull("TASKS", "work", credit=1) as batches:
            for _ in range(2):
                await (await anext(batches))[0].nak()
            async with bus.subscribe_core("dead.>") as buried, asyncio.timeout(20):
                running = asyncio.create_task(DeadLetterCollector(bus, work_queues=frozenset()).run())
                assert (await anext(buried)).data == b"hopeless"
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def handle_one_advisory(bus: NatsBus, collector: DeadLetterCollector) -> None:
    await collector.open()
    async with (
        asyncio.timeout(20),
        bus.pull(ADVISORY_CONSUMER.stream, ADVISORY_CONSUMER.durable, credit=1) as advisories,
    ):
        (advisory,) = await anext(advisories)
        await collector.handle(advisory)


async def test_tasks_that_nobody_takes_keep_nobody_from_its_own(nats_server: EmbeddedServer) -> None:
    """A model without workers fills its own subject; another model's tasks and verifiers' tasks are stored."""
    bounds = Bounds(open_jobs_max=3)
    async with connect(nats_server, "provisioner") as bus:
        (tasks,) = [spec for spec in get_stream_specs(bounds) if spec.name == "TASKS"]
        await provision(bus.client.jetstream(), [tasks], [])
        unserved = GENERATE_TASK.subject(model=bytes(32))
        for number in range(TASKS_PER_JOB_MAX * bounds.open_jobs_max):
            await bus.publish(unserved, b"%d" % number)
        with pytest.raises(BackpressureError, match="try again later"):
            await bus.publish(unserved, b"one too many")
        await bus.publish(GENERATE_TASK.subject(model=b"\x01" * 32), b"served")
        for number in range(2 * TASKS_PER_JOB_MAX * bounds.open_jobs_max):
            await bus.publish(VERIFY_TASK.subject(worker=f"W{number}"), b"drawn")
