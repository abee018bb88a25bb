"""What each NATS user may publish on the real server: its own subjects, and nobody else's, streams least of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.provision import provision
from pocache.bus.replies import DeniedError
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.ids import ModelId
from pocache.runtime.network import NetworkDirectory
from pocache.service.provisioning import get_consumer_specs, get_stream_specs
from pocache.wire import topics as t
from pocache.wire.topics import TOPICS, Role, Topic
from pocache_cli.bootstrap import (
    NetworkPlan,
    compute_operator,
    compute_users,
    create_network,
    get_workers,
    load_parties,
)

MODEL = ModelId(b"\x11" * 32)
JOB = b"\x22" * 32
PEOPLE = ("ada", "grace", "worker-1", "worker-2")
EVERYBODY = ("router", "commitments", "beacon", "verifier", "ledger", "operator", *PEOPLE)
OTHER = {"ada": "grace", "worker-1": "worker-2"}
WAIT_S = 30.0

SERVER_SUBJECTS = (
    "$JS.API.STREAM.DELETE.RECORD",
    "$JS.API.STREAM.PURGE.INTAKE",
    "$JS.API.STREAM.UPDATE.SUBMISSIONS",
    "$JS.API.STREAM.CREATE.MINE",
    "$JS.API.STREAM.MSG.DELETE.RECORD",
    "$JS.API.CONSUMER.DELETE.RECORD.ledger",
    "$JS.API.CONSUMER.CREATE.RECORD.spy",
    "$JS.API.CONSUMER.DURABLE.CREATE.TASKS.spy",
    "$JS.API.ACCOUNT.PURGE.$G",
    "$SYS.REQ.SERVER.PING",
    "_INBOX.ledger.forged.1",
)
"""What belongs to the provisioner, to the server, or to another's inbox."""

FOREIGN_CONSUMERS = {
    "ada": ("TASKS", f"generate-{MODEL.hex()}"),
    "worker-1": ("INTAKE", "commitments"),
    "router": ("RECORD", "ledger"),
    "beacon": ("RECORD", "ledger"),
}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@dataclass(frozen=True)
class Ground:
    """A provisioned server, and a connection as each of its users."""

    directory: NetworkDirectory
    buses: dict[str, NatsBus]

    def subject(self, topic: Topic[Any], name: str) -> str:
        """Return a subject of a topic in which every participant is ``name``."""
        who = self.directory.signing_key(name).participant_id
        names = ("user", "worker", "verifier", "participant", "signer")
        return topic.filter(job=JOB, model=MODEL, ref=JOB, **dict.fromkeys(names, who))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["accounts", "one account"])
async def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ground]:
    """Everybody is connected with exactly the permissions that provisioning gives; no service runs."""
    folder = tmp_path_factory.mktemp("permissions")
    has_accounts = request.param == "accounts"
    plan = NetworkPlan("test", PEOPLE[:2], PEOPLE[2:], period_s=1, has_accounts=has_accounts)
    directory = create_network(folder / "network", plan)
    parties = load_parties(directory)
    users = compute_users(directory, parties, [MODEL])
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            EmbeddedServer(
                ServerSettings(
                    folder / "nats",
                    users=users,
                    operator=compute_operator(directory, users),
                    sync_always=False,
                )
            )
        )
        buses = {}
        for name in (*EVERYBODY, "provisioner"):
            settings = NatsSettings(url=server.url, name=name, nkey_seed=directory.transport_seed(name))
            buses[name] = await stack.enter_async_context(connect_bus(settings))
        await provision(
            buses["provisioner"].client.jetstream(),
            get_stream_specs(directory.genesis.bounds),
            get_consumer_specs(get_workers(parties), [MODEL]),
        )
        yield Ground(directory, buses)


def get_role(name: str) -> Role:
    """Return what somebody is."""
    if name in PEOPLE:
        return Role.WORKER if name.startswith("worker") else Role.USER
    return Role(name)


def list_own() -> list[tuple[str, Topic[Any]]]:
    """Return everybody with each topic that it signs."""
    return [(name, topic) for name in EVERYBODY for topic in TOPICS if topic.signer is get_role(name)]


def list_foreign() -> list[tuple[str, Topic[Any]]]:
    """Return everybody with each topic that it does not sign, queries apart."""
    return [
        (name, topic)
        for name in ("router", "commitments", "beacon", "verifier", "ledger", "operator", "ada", "worker-1")
        for topic in TOPICS
        if topic.signer is not get_role(name) and topic.stream is not None
    ]


def name_case(value: object) -> str:
    """Return a test's id."""
    return value.pattern.split(".{")[0] if isinstance(value, Topic) else str(value)


@pytest.mark.parametrize(("name", "topic"), list_own(), ids=name_case)
async def test_everybody_may_publish_its_own(ground: Ground, name: str, topic: Topic[Any]) -> None:
    """A stored message gets a sequence; an unstored one, or a question, is not denied."""
    bus, subject = ground.buses[name], ground.subject(topic, name)
    if topic.stream is not None:
        assert await bus.publish(subject, b"mine") >= 1
    else:
        await bus.publish_core(subject, b"mine")
        await bus.client.flush()
        assert f"publish to {subject.lower()}" not in bus.denied


@pytest.mark.parametrize(("name", "topic"), list_foreign(), ids=name_case)
async def test_nobody_may_publish_what_another_role_says(
    ground: Ground, name: str, topic: Topic[Any]
) -> None:
    """Also where the subject names the publisher: who pays is the ledger, whoever is paid."""
    subject = ground.subject(topic, name)
    with pytest.raises(DeniedError):
        await ground.buses[name].publish(subject, b"forged", message_id="forged")
    stored = await ground.buses["operator"].get_last(str(topic.stream), subject)
    assert stored is None or stored.data != b"forged"


@pytest.mark.parametrize(
    ("name", "topic"),
    [
        (name, topic)
        for name in OTHER
        for topic in TOPICS
        if topic.signer is get_role(name) and topic.named_signer is not None
    ],
    ids=name_case,
)
async def test_nobody_may_publish_in_the_name_of_its_own_kind(
    ground: Ground, name: str, topic: Topic[Any]
) -> None:
    """A worker's results, openings, claims and tokens are on subjects of its own; so are a user's challenges."""
    bus, subject = ground.buses[name], ground.subject(topic, OTHER[name])
    if topic.stream is not None:
        with pytest.raises(DeniedError):
            await bus.publish(subject, b"forged", message_id="forged")
    else:
        await bus.publish_core(subject, b"forged")
        await wait_denied(bus, f"publish to {subject.lower()}")


@pytest.mark.parametrize("subject", SERVER_SUBJECTS)
@pytest.mark.parametrize("name", ["ada", "worker-1", "router", "ledger", "beacon"])
async def test_nobody_may_manage_streams_or_answer_for_others(
    ground: Ground, name: str, subject: str
) -> None:
    """Streams and consumers are the provisioner's alone; a reply goes to one's own inbox or nowhere."""
    if subject.startswith(f"_INBOX.{name}."):
        subject = "_INBOX.router.forged.1"
    bus = ground.buses[name]
    await bus.publish_core(subject, b"{}")
    await wait_denied(bus, f"publish to {subject.lower()}")


@pytest.mark.parametrize(("name", "consumer"), FOREIGN_CONSUMERS.items(), ids=str)
async def test_nobody_may_pull_or_settle_what_another_was_sent(
    ground: Ground, name: str, consumer: tuple[str, str]
) -> None:
    """Neither ask for the next message of another's consumer, nor acknowledge one that it holds."""
    stream, durable = consumer
    bus = ground.buses[name]
    for subject in (f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", f"$JS.ACK.{stream}.{durable}.1.1.1.1.1"):
        await bus.publish_core(subject, b"+ACK")
        await wait_denied(bus, f"publish to {subject.lower()}")


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("ada", ">"),
        ("ada", "_INBOX.>"),
        ("ada", "results.completed.>"),
        ("worker-1", "tasks.verify.*"),
        ("worker-1", "_INBOX.ledger.>"),
        ("router", "queries.>"),
    ],
)
async def test_nobody_may_listen_to_what_is_not_said_to_it(ground: Ground, name: str, subject: str) -> None:
    """A denied subscription raises: silence would look like a quiet subject."""
    with pytest.raises(DeniedError):
        async with ground.buses[name].subscribe_core(subject):
            pass


async def test_a_user_hears_and_reads_nothing_of_another(ground: Ground) -> None:
    """Its events, its tokens, its balance."""
    bus = ground.buses["ada"]
    for topic in (t.JOB_EVENT, t.TOKENS, t.SCORES):
        subject = topic.filter(user=ground.directory.signing_key("grace").participant_id)
        with pytest.raises(DeniedError):
            async with bus.subscribe_core(subject):
                pass
    with pytest.raises(DeniedError):
        await bus.get_last("RECORD", ground.subject(t.JOB_EVENT, "grace"))
    with pytest.raises(DeniedError):
        await bus.request(ground.subject(t.BALANCE_QUERY, "grace"), b"", 5.0)


async def wait_denied(bus: NatsBus, what: str) -> None:
    """Wait until the server's word about a violation has arrived; a round trip comes after it."""
    async with asyncio.timeout(WAIT_S):
        while what not in bus.denied:
            await bus.client.flush()
