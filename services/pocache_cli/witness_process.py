"""A witness as a process of a local network: ``pocache up --witness NAME`` keeps one running for each.

Settings come from ``POCACHE_*`` as a service's do. It ends with code 1 when the log forks from what it cosigned, the
evidence written beside its memory, and cosigns nothing more until somebody has looked at it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.client import RefusedError
from pocache.protocol.errors import BusError, ConfigError
from pocache.receipt.witness import ForkError
from pocache.runtime.config import Settings
from pocache.service.entry import run_process
from pocache_cli.witness import STATE_FOLDER, cosign_once, open_witness, report_fork

EVERY_S: Final = 5.0


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Cosign the log every few seconds until told to stop. Raises ForkError, ConfigError."""
    directory, name = settings.directory, settings.name
    memory = directory.path / STATE_FOLDER / f"{name}.note"
    key, watcher = open_witness(directory, name, memory)
    if memory.with_name(f"{memory.name}.fork.json").exists():
        raise ConfigError(f"the log forked from what {name} cosigned: look at {memory.name}.fork.json")
    log = structlog.get_logger()
    nats = NatsSettings.of(directory, settings.nats_url, name)
    async with connect_bus(nats) as bus:
        log.info("ready", service=name)
        while not stop.is_set():
            before = watcher.seen_size
            try:
                await cosign_once(bus, directory.genesis, key, watcher)
            except (BusError, RefusedError) as error:  # no entry yet, or the store is away: the next time
                log.info("not_cosigned", code=error.code, reason=str(error))
            except ForkError as error:
                report_fork(error, memory, as_json=False)
                raise
            else:
                log.info("cosigned", size=watcher.seen_size, before=before)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await stop.wait()


if __name__ == "__main__":
    run_process("witness", serve)
