"""What a user's permissions let its client do on a real server: hear, ask again, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kit.userside import make_event
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.client import Job, PocacheClient, RefusedError
from pocache.protocol.errors import BusError
from pocache.protocol.ids import ModelId
from pocache.protocol.lifecycle import Phase
from pocache.service.provisioning import get_stream_specs
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Role
from pocache_cli.bootstrap import (
    PROVISIONER,
    NetworkPlan,
    compute_operator,
    compute_users,
    create_network,
    load_parties,
)

USER, OTHER = "ada", "grace"
ANSWER_S = 30.0
"""A client that may not ask would ask for ever."""


class Stage:
    """A server with a network's users and streams, and connections by name."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.directory = create_network(folder / "network", NetworkPlan("test", (USER, OTHER), ()))
        self._folder = folder
        self._stack = stack
        self._url = ""

    async def open(self) -> None:
        users = compute_users(self.directory, load_parties(self.directory), ())
        operator = compute_operator(self.directory, users)
        settings = ServerSettings(self._folder / "nats", sync_always=False, operator=operator)
        server = await self._stack.enter_async_context(EmbeddedServer(settings))
        self._url = server.url
        provisioner = await self.connect(PROVISIONER)
        await provision(provisioner.client.jetstream(), get_stream_specs(self.directory.genesis.bounds), ())

    async def connect(self, name: str) -> NatsBus:
        settings = NatsSettings(url=self._url, name=name, nkey_seed=self.directory.transport_seed(name))
        return await self._stack.enter_async_context(connect_bus(settings))

    async def say(self, role: Role, subject: str, body: WireModel) -> None:
        """A service publishes under its own user and signature."""
        bus = await self.connect(role.value)
        key = self.directory.signing_key(role.value)
        await bus.publish(subject, seal(key, self.directory.genesis.network_id, body))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        opened = Stage(tmp_path, stack)
        await opened.open()
        yield opened


async def submit(stage: Stage, bus: NatsBus) -> tuple[PocacheClient, Job]:
    """Submit as a client that does not listen: all that it learns it has to ask for."""
    client = PocacheClient(bus, stage.directory.genesis, stage.directory.signing_key(USER))
    return client, await client.submit(ModelId(bytes(32)), (1, 2), token_count_max=4)


async def test_a_user_may_ask_again_for_what_it_missed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last event of its job, and the payout, by the permissions that the provisioner gives."""
    monkeypatch.setattr("pocache.client.network.QUIET_S", 0.05)
    bus = await stage.connect(USER)
    client, job = await submit(stage, bus)
    payout = m.PayoutSettledV1(
        job_id=job.job_id,
        attempt=0,
        case="refunded",
        stage=0,
        pool_micro=0,
        generation_micro=0,
        verification_micro=0,
        reserve_micro=0,
        lines=(),
        slashed=(),
    )
    await stage.say(Role.LEDGER, t.PAYOUT_SETTLED.subject(job=job.job_id), payout)
    subject = t.JOB_EVENT.subject(user=client.user, job=job.job_id)
    await stage.say(Role.ROUTER, subject, make_event(job, "refunded"))
    async with asyncio.timeout(ANSWER_S):
        assert (await client.wait(job, Phase.SETTLED)).phase == "refunded"
        assert (await client.wait_payout(job)).case == "refunded"
    assert bus.denied == ()


async def test_a_user_may_ask_again_why_it_was_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocache.client.network.QUIET_S", 0.05)
    bus = await stage.connect(USER)
    client, job = await submit(stage, bus)
    refusal = m.RefusalV1(
        message_hash=job.message_hash, subject="jobs.submitted", code="E201", reason="not served"
    )
    await stage.say(Role.ROUTER, t.REFUSALS[Role.ROUTER].subject(ref=job.message_hash), refusal)
    async with asyncio.timeout(ANSWER_S):
        with pytest.raises(RefusedError, match="not served"):
            await client.wait(job, Phase.COMMITTED)
    assert bus.denied == ()


async def test_a_user_reads_nobody_elses_job(stage: Stage) -> None:
    """Neither one event of another user, nor the record as a whole."""
    bus = await stage.connect(USER)
    stranger = stage.directory.signing_key(OTHER).participant_id
    for subject in (t.JOB_EVENT.subject(user=stranger, job=bytes(32)), "jobs.events.>"):
        with pytest.raises(BusError, match="denied"):
            await bus.get_last("RECORD", subject)


async def test_everything_a_client_listens_to_is_allowed(stage: Stage) -> None:
    bus = await stage.connect(USER)
    client = PocacheClient(bus, stage.directory.genesis, stage.directory.signing_key(USER))
    async with client.listening():
        assert bus.denied == ()
