"""A bus with every service played by the test: it hears what workers say and says what services would.

The workers are real, each with the NATS user and the permissions that provisioning gives it; the script's own user may
do everything. Waiting is on messages, each bounded by one generous timeout that only a broken worker reaches.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from kit.network import Network, make_key
from pocache.bus.jwt import KeyPair
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import NatsUser, generate_transport_key
from pocache.bus.port import CoreMessage
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.ids import ParticipantId
from pocache.runtime.network import NetworkDirectory, write_secret
from pocache.service.provisioning import Party, compute_user, get_consumer_specs, get_stream_specs
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import BeaconRoundV1
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Topic

M = TypeVar("M", bound=WireModel)

WAIT_S: Final = 60.0
WORKER_TOPICS: Final = (
    t.LEASE_REQUESTED,
    t.RESULT_COMPLETED,
    t.OPENING_SUBMITTED,
    t.CLAIM_SEALED,
    t.MEMBER_ANNOUNCED,
    t.TOKENS,
)


@dataclass(frozen=True)
class Said(Generic[M]):
    """One message of a worker, its signature verified."""

    body: M
    sender: ParticipantId
    data: bytes


class Script:
    """Plays every service; made by :func:`open_script`."""

    def __init__(
        self, network: Network, directory: NetworkDirectory, server: EmbeddedServer, bus: NatsBus
    ) -> None:
        self.network = network
        self.directory = directory
        self.server = server
        self.bus = bus
        self._heard: dict[str, AsyncIterator[CoreMessage]] = {}
        self._settled: AsyncIterator[CoreMessage] | None = None

    async def listen(self, stack: AsyncExitStack) -> None:
        """Hear all that workers say from now on."""
        for topic in WORKER_TOPICS:
            self._heard[topic.pattern] = await stack.enter_async_context(
                self.bus.subscribe_core(topic.filter())
            )
        self._settled = await stack.enter_async_context(self.bus.subscribe_core("$JS.ACK.>"))

    async def hear(self, topic: Topic[M]) -> Said[M]:
        """Return the next message of a topic."""
        async with asyncio.timeout(WAIT_S):
            message = await anext(self._heard[topic.pattern])
        opened = open_envelope(message.data, self.network.network_id, topic.model)
        assert topic.named_signer is not None
        assert topic.parse(message.subject)[topic.named_signer] == opened.sender
        return Said(opened.body, opened.sender, message.data)

    async def hear_settled(self, stream: str, consumer: str) -> str:
        """Return how a consumer's next message was settled, ``+ACK`` for example; signs of progress aside."""
        assert self._settled is not None
        async with asyncio.timeout(WAIT_S):
            async for message in self._settled:
                if message.subject.startswith(f"$JS.ACK.{stream}.{consumer}.") and message.data != b"+WPI":
                    return message.data.decode().split(" ")[0]
        raise AssertionError("the bus went away")

    async def hear_only(self, topic: Topic[M], marker: M) -> None:
        """Check that no worker has said anything more on a topic, by a message of our own that comes next."""
        key = make_key("marker")
        assert topic.named_signer is not None
        await self.bus.publish_core(
            topic.subject(**{topic.named_signer: key.participant_id}), self.network.seal(key, marker)
        )
        assert (await self.hear(topic)).sender == key.participant_id

    async def say(self, topic: Topic[M], body: M, signer: Role | None = None, **tokens: str | bytes) -> None:
        """Say ``body`` as the service that signs the topic, or as another one."""
        data = self.network.seal(self.network.keys[signer or topic.signer], body)
        subject = topic.subject(**tokens)
        message_id = hashlib.sha256(subject.encode() + data).hexdigest()
        await self.bus.publish(subject, data, message_id=message_id)

    async def say_round(self, number: int) -> BeaconRoundV1:
        """Announce a beacon round."""
        body = self.network.make_round(number)
        await self.say(t.BEACON_ROUND, body)
        return body

    async def count_pending(self, stream: str, consumer: str) -> tuple[int, int]:
        """Return how many messages a consumer has not delivered, and delivered but not settled."""
        info = await self.bus.client.jetstream().consumer_info(stream, consumer)
        return info.num_pending or 0, info.num_ack_pending or 0


@asynccontextmanager
async def open_script(path: Path, network: Network, workers: Sequence[str]) -> AsyncIterator[Script]:
    """Start a server with a provisioned network for these workers, and a network directory for their processes."""
    directory = NetworkDirectory(path / "network")
    directory.write_genesis(network.genesis)
    directory.write_model("kit", network.model_envelope)
    parties = []
    for name in workers:
        transport = _make_transport(name)
        write_secret(directory.path / "keys" / f"{name}.seed", make_key(name).seed_text)
        write_secret(directory.path / "transport" / f"{name}.seed", transport.seed)
        parties.append(Party(name, Role.WORKER, make_key(name).participant_id, transport.public))
    script_key = _make_transport("script")
    users = [compute_user(party, network.models) for party in parties]
    users.append(NatsUser("script", script_key.public, (">",), (">",)))
    settings = ServerSettings(path / "nats", users=tuple(users), sync_always=False)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(settings))
        bus = await stack.enter_async_context(
            connect_bus(NatsSettings(url=server.url, name="script", nkey_seed=script_key.seed))
        )
        await provision(
            bus.client.jetstream(),
            get_stream_specs(network.genesis.bounds),
            get_consumer_specs([party.participant for party in parties], network.models),
        )
        script = Script(network, directory, server, bus)
        await script.listen(stack)
        yield script


def _make_transport(name: str) -> KeyPair:
    return generate_transport_key(hashlib.sha256(b"pocache/kit/transport/" + name.encode()).digest())


def get_environment(script: Script, **variables: Any) -> dict[str, str]:
    """Return the ``POCACHE_*`` variables of a worker process on this script's network."""
    return {
        "POCACHE_NETWORK_DIR": str(script.directory.path),
        "POCACHE_NATS_URL": script.server.url,
        "POCACHE_WORKER_MODEL": "fake:kit",
        **variables,
    }
