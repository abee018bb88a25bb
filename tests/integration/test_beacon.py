"""The beacon on a real server, with no more permissions than its role has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from kit.network import Network, make_network

from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import compute_provisioner_permissions, generate_nkey
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.beacon import compute_round_time_ms, verify_round
from pocache.runtime.network import Bounds
from pocache.service.provisioning import Party, compute_user, get_stream_specs
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import BeaconRoundV1
from pocache.wire.topics import BEACON_ROUND, Role
from pocache_beacon.local import LocalBeacon


async def run_until(bus: NatsBus, network: Network, due: int, count: int) -> list[int]:
    """Run the beacon at the time of a round until this many rounds were heard; return their numbers."""
    stop = asyncio.Event()
    heard: list[int] = []
    beacon = LocalBeacon(
        network.genesis,
        key=network.keys[Role.BEACON],
        bls_secret=network.beacon_secret,
        bus=bus,
        clock_ms=lambda: compute_round_time_ms(network.chain, due),
    )
    async with bus.subscribe_core(BEACON_ROUND.subject()) as messages, asyncio.TaskGroup() as group:
        group.create_task(beacon.run(stop))
        async for message in messages:
            body = open_envelope(message.data, network.network_id, BeaconRoundV1).body
            verify_round(network.chain, body.round_number, body.signature)
            heard.append(body.round_number)
            if len(heard) == count:
                stop.set()
                break
    return heard
