"""``python -m pocache_beacon``: the beacon that the network's genesis says, local, threshold or relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.bus.port import Bus
from pocache.runtime.config import Settings
from pocache.service.entry import ServiceContext, load_context, run_process, serve_until
from pocache.wire.topics import Role


class Beacon(Protocol):
    """What publishes a network's rounds."""

    @property
    def is_ready(self) -> bool:
        """Whether it keeps up with its chain."""
        ...

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop`` is set."""
        ...


def main() -> None:
    """Run the beacon until it is told to stop."""
    run_process(Role.BEACON.value, serve)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Connect, and publish rounds until ``stop`` is set."""
    async with AsyncExitStack() as stack:
        nats = NatsSettings.of(settings.directory, settings.nats_url, settings.name)
        context = load_context(settings)
        bus = await stack.enter_async_context(connect_bus(nats))
        beacon = await stack.enter_async_context(open_beacon(context, bus))
        await serve_until(stack, settings, beacon.run, stop, lambda: beacon.is_ready and bus.is_connected)


async def run(context: ServiceContext, bus: Bus, stop: asyncio.Event) -> None:
    """Publish rounds on an open bus until ``stop`` is set."""
    async with open_beacon(context, bus) as beacon:
        await beacon.run(stop)


@asynccontextmanager
async def open_beacon(context: ServiceContext, bus: Bus) -> AsyncIterator[Beacon]:
    """Make the beacon of a network, from its genesis, its directory and the process's settings. Raises ConfigError."""
    genesis, settings = context.genesis, context.settings
    if genesis.chain.source == "relay":
        from pocache_beacon.relay import open_relay, read_relay_settings

        async with open_relay(genesis, read_relay_settings(settings), key=context.key, bus=bus) as relay:
            yield relay
    elif genesis.chain.source == "threshold":
        from pocache_beacon.threshold import ThresholdBeacon, read_share

        share = read_share(settings.directory, settings.name)
        yield ThresholdBeacon(genesis, key=context.key, share=share, bus=bus)
    else:
        from pocache_beacon.local import LocalBeacon, read_bls_secret

        secret = read_bls_secret(settings.directory)
        yield LocalBeacon(genesis, key=context.key, bls_secret=secret, bus=bus)


if __name__ == "__main__":
    main()
