"""``python -m pocache_beacon``."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.bus.port import Bus
from pocache.runtime.config import Settings
from pocache.service.entry import ServiceContext, load_context, run_process, serve_until
from pocache.wire.topics import Role
from pocache_beacon.local import LocalBeacon, read_bls_secret


def main() -> None:
    """Run the local beacon until it is told to stop."""
    run_process(Role.BEACON.value, serve)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Connect, and publish rounds until ``stop`` is set."""
    async with AsyncExitStack() as stack:
        seed = settings.directory.transport_seed(settings.name)
        nats = NatsSettings(url=settings.nats_url, name=settings.name, nkey_seed=seed)
        bus = await stack.enter_async_context(connect_bus(nats))
        beacon = make_beacon(load_context(settings), bus)
        await serve_until(stack, settings, beacon.run, stop, lambda: beacon.is_ready and bus.is_connected)


async def run(context: ServiceContext, bus: Bus, stop: asyncio.Event) -> None:
    """Publish rounds on an open bus until ``stop`` is set."""
    await make_beacon(context, bus).run(stop)


def make_beacon(context: ServiceContext, bus: Bus) -> LocalBeacon:
    """Return the beacon of a network whose secret lies in its directory. Raises ConfigError."""
    secret = read_bls_secret(context.settings.directory)
    return LocalBeacon(context.genesis, key=context.key, bls_secret=secret, bus=bus)


if __name__ == "__main__":
    main()
