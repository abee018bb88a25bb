"""Another operator's key on a live server: accounts signed anew, a restart, and everybody goes on with what they had."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import nats.errors
import pytest
import pytest_asyncio
from click.testing import CliRunner

from chaos.cluster import Cluster
from pocache.bus.accounts import OperatorConfig
from pocache.bus.jwt import read_claims
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import NatsUser
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.errors import BusError, ConfigError
from pocache.runtime.network import NetworkDirectory
from pocache.service.provisioning import get_consumer_specs, get_stream_specs
from pocache_cli.bootstrap import (
    PROVISIONER,
    NetworkPlan,
    compute_operator,
    compute_users,
    create_network,
    load_parties,
)
from pocache_cli.main import main
from pocache_cli.trust import Trust

WAIT_S = 60.0


@dataclass
class Site:
    """A network with accounts, and the settings of its server."""

    directory: NetworkDirectory
    users: tuple[NatsUser, ...]
    settings: ServerSettings
    stack: AsyncExitStack

    def compute_operator(self) -> OperatorConfig:
        """Return what the server is to be told now."""
        config = compute_operator(self.directory, self.users)
        assert config is not None
        return config

    async def start(self, server: EmbeddedServer) -> EmbeddedServer:
        """Start a server that ends with the test."""
        return await self.stack.enter_async_context(server)

    async def open(self, server: EmbeddedServer, name: str) -> NatsBus:
        """Connect as the party of this name."""
        settings = NatsSettings.of(self.directory, server.url, name)
        return await self.stack.enter_async_context(connect_bus(settings))

    def rotate(self) -> dict[str, str]:
        """Run the command."""
        done = CliRunner().invoke(
            main, ["keys", "rotate-operator", "--network-dir", str(self.directory.path), "--json"]
        )
        assert done.exit_code == 0, done.output
        answer: dict[str, str] = json.loads(done.stdout)
        return answer


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    directory = create_network(tmp_path / "network", NetworkPlan("test", ("ada",), ("worker-1",)))
    users = compute_users(directory, load_parties(directory), [])
    settings = ServerSettings(
        tmp_path / "nats", operator=compute_operator(directory, users), sync_always=False
    )
    async with AsyncExitStack() as stack:
        yield Site(directory, users, settings, stack)


def read_credentials(directory: NetworkDirectory) -> dict[str, str]:
    return {file.name: file.read_text() for file in (directory.path / "transport").iterdir()}


async def publish_soon(bus: NatsBus, subject: str, data: bytes) -> int:
    """Publish as soon as the connection is there again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await bus.publish(subject, data, message_id=data.hex())
            except BusError:
                await asyncio.sleep(0.1)


async def test_another_operator_takes_a_restart_and_nobodys_new_credentials(site: Site) -> None:
    """Who was connected comes back by itself, streams are as they were, and what the old key signs counts no more."""
    before, old = read_credentials(site.directory), site.compute_operator()
    server = await site.start(EmbeddedServer(site.settings))
    provisioner = await site.open(server, PROVISIONER)
    await provision(
        provisioner.client.jetstream(),
        get_stream_specs(site.directory.genesis.bounds),
        get_consumer_specs((), []),
    )
    ada = await site.open(server, "ada")
    first = await ada.publish("jobs.submitted", b"before", message_id="1")

    answer = site.rotate()
    assert answer["replaced"] == read_claims(old.operator_jwt).subject
    assert answer["operator"] == Trust(site.directory).get_operator() != answer["replaced"]
    new = site.compute_operator()
    assert set(new.accounts) == set(old.accounts), "the accounts are the same ones"
    assert {read_claims(one).issuer for one in new.accounts.values()} == {answer["operator"]}
    assert read_credentials(site.directory) == before, "no party needs another Secret"

    port = int(server.url.rpartition(":")[2])
    await server.stop()
    server = await site.start(EmbeddedServer(replace(site.settings, port=port, operator=new)))
    assert await publish_soon(ada, "jobs.submitted", b"after") == first + 1
    assert (await site.open(server, "ledger")).is_connected
    trust = Trust(site.directory)
    trust.issue("worker-1", days=1)
    assert (await site.open(server, "worker-1")).is_connected, "what is issued from now on counts as before"


async def test_accounts_that_the_old_key_signed_are_refused(site: Site) -> None:
    """Whoever has stolen it can make no account that a server with the new operator takes."""
    old = site.compute_operator()
    site.rotate()
    mixed = replace(site.compute_operator(), accounts=old.accounts)
    with pytest.raises(BusError):
        server = await site.start(EmbeddedServer(replace(site.settings, operator=mixed, start_s=10.0)))
        async with connect_bus(NatsSettings.of(site.directory, server.url, "ledger")):
            pass


async def test_a_running_server_does_not_take_another_operator(site: Site) -> None:
    """The reason for the restart: a reload is refused, and everybody stays connected under the old one."""
    server = await site.start(EmbeddedServer(site.settings))
    ledger = await site.open(server, "ledger")
    site.rotate()
    with pytest.raises(BusError):
        await server.reload(operator=site.compute_operator())
    assert ledger.is_connected


def test_an_interrupted_rotation_is_told_and_done_again(tmp_path: Path) -> None:
    directory = create_network(tmp_path / "network", NetworkPlan("test", ("ada",), ("worker-1",)))
    trust = Trust(directory)
    users = compute_users(directory, load_parties(directory), [])
    jwt = directory.path / "trust" / "operator.jwt"
    text = jwt.read_text()
    trust.rotate_operator()
    jwt.write_text(text)  # the seed was replaced, the JWT was not
    with pytest.raises(
        ConfigError, match="as after an interrupted rotation: run `pocache keys rotate-operator`"
    ):
        trust.compute_operator(users)
    trust.rotate_operator()
    assert trust.compute_operator(users).operator_jwt == jwt.read_text().strip()


def test_a_network_without_accounts_has_no_operator(tmp_path: Path) -> None:
    plan = NetworkPlan("test", ("ada",), ("worker-1",), has_accounts=False)
    directory = create_network(tmp_path / "network", plan)
    done = CliRunner().invoke(main, ["keys", "rotate-operator", "--network-dir", str(directory.path)])
    assert done.exit_code == 2
    assert "has no accounts" in done.stderr


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_three_servers_take_another_operator_one_after_the_other(site: Site) -> None:
    """What `rollout restart` does: between two restarts servers of both operators hold the streams together."""
    cluster = Cluster(replace(site.settings, port=0))
    await site.start(cluster)
    provisioner = await site.open(cluster, PROVISIONER)
    specs = [replace(one, replicas=3) for one in get_stream_specs(site.directory.genesis.bounds)]
    await provision(provisioner.client.jetstream(), specs, get_consumer_specs((), []))
    ada = await site.open(cluster, "ada")
    sequences = [await publish_soon(ada, "jobs.submitted", b"before")]
    site.rotate()
    new = site.compute_operator()
    for node in cluster.nodes:
        await node.stop()
        node._settings = replace(node._settings, operator=new)
        await node.start()
        sequences.append(await publish_soon(ada, "jobs.submitted", node.name.encode()))
        await wait_current(provisioner, "SUBMISSIONS")
    assert sequences == [1, 2, 3, 4], "every message is stored once, whoever leads"
    assert (await site.open(cluster, "ledger")).is_connected


async def wait_current(bus: NatsBus, stream: str) -> None:
    """Wait until all replicas of a stream have what it has: a server is not stopped before."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                info = await bus.client.jetstream().stream_info(stream)
                replicas = info.cluster.replicas if info.cluster is not None else None
                if replicas is not None and len(replicas) == 2 and all(one.current for one in replicas):
                    return
            await asyncio.sleep(0.2)
