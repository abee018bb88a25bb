"""The beacon on a real server, with no more permissions than its role has."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kit.network import Network, make_key, make_network
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import compute_provisioner_permissions, generate_transport_key
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.beacon import compute_round_time_ms, verify_round
from pocache.runtime.network import Bounds
from pocache.service.provisioning import Party, compute_user, get_stream_specs
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import BeaconRoundV1
from pocache.wire.topics import BEACON_ROUND, Role
from pocache_beacon.local import LocalBeacon

PROVISIONER, BEACON, OPERATOR = (generate_transport_key(bytes([byte]) * 32) for byte in (1, 2, 3))


async def run_at_round(watcher: NatsBus, url: str, network: Network, due: int, count: int) -> list[int]:
    """Run a beacon, its clock at a round's time, until it published so many; return their numbers."""
    stop = asyncio.Event()
    heard: list[int] = []
    async with (
        connect_bus(NatsSettings(url=url, name="beacon", nkey_seed=BEACON.seed)) as bus,
        watcher.subscribe_core(BEACON_ROUND.subject()) as messages,
        asyncio.TaskGroup() as group,
    ):
        beacon = LocalBeacon(
            network.genesis,
            key=network.keys[Role.BEACON],
            bls_secret=network.beacon_secret,
            bus=bus,
            clock_ms=lambda: compute_round_time_ms(network.chain, due),
        )
        group.create_task(beacon.run(stop))
        async for message in messages:
            body = open_envelope(message.data, network.network_id, BeaconRoundV1).body
            verify_round(network.chain, body.round_number, body.signature)
            heard.append(body.round_number)
            if len(heard) == count:
                stop.set()
                break
        assert bus.denied == ()
    return heard


async def test_a_restarted_beacon_asks_the_stream_where_it_was(tmp_path: Path) -> None:
    """Three rounds, then a new process catches up from the fourth on; the stream holds each once."""
    network = make_network()
    users = (
        compute_provisioner_permissions(PROVISIONER.public),
        compute_user(
            Party("beacon", Role.BEACON, network.keys[Role.BEACON].participant_id, BEACON.public), ()
        ),
        compute_user(Party("operator", Role.OPERATOR, make_key("o").participant_id, OPERATOR.public), ()),
    )
    settings = ServerSettings(tmp_path / "nats", sync_always=False, users=users)
    async with EmbeddedServer(settings) as server:
        provisioner = NatsSettings(url=server.url, name="provisioner", nkey_seed=PROVISIONER.seed)
        async with connect_bus(provisioner) as bus:
            specs = [spec for spec in get_stream_specs(Bounds()) if spec.name == "BEACON"]
            await provision(bus.client.jetstream(), specs, ())
        operator = NatsSettings(url=server.url, name="operator", nkey_seed=OPERATOR.seed)
        async with connect_bus(operator) as watcher:
            assert await run_at_round(watcher, server.url, network, 3, 3) == [1, 2, 3]
            assert await run_at_round(watcher, server.url, network, 7, 4) == [4, 5, 6, 7]
            record = await watcher.get_last("BEACON", BEACON_ROUND.subject())
            assert record is not None
            assert record.sequence == 7
