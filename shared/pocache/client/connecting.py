"""Connecting a user of a network directory: its transport key, its signing key, the network's genesis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.client.network import PocacheClient, open_client
from pocache.runtime.network import NetworkDirectory


@asynccontextmanager
async def connect(directory: NetworkDirectory, name: str, url: str) -> AsyncIterator[PocacheClient]:
    """Yield the client of one user while the context lasts. Raises ConfigError, BusError."""
    async with connect_bus(NatsSettings.of(directory, url, name)) as bus:
        async with open_client(bus, directory.genesis, directory.signing_key(name)) as client:
            yield client
