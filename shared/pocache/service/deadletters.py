"""``python -m pocache.service.deadletters``: the dead-letter collector as a process of its own.

It signs nothing and keeps no state: it has a NATS key, and what it has not finished the server delivers again. Two of
them do no harm, because a copy is stored under the id of its message.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

from pocache.bus.deadletter import DeadLetterCollector
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.runtime.config import Settings
from pocache.service.entry import run_process, serve_until
from pocache.wire.topics import Stream

NAME: Final = "deadletters"
WORK_QUEUES: Final = frozenset({Stream.SUBMISSIONS.value, Stream.INTAKE.value, Stream.TASKS.value})
"""Where a message that was given up would lie for ever: it is deleted there once it is copied."""


def main() -> None:
    """Run the collector until it is told to stop."""
    run_process(NAME, serve)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Connect, and collect until ``stop`` is set."""
    async with AsyncExitStack() as stack:
        nats = NatsSettings.of(settings.directory, settings.nats_url, settings.name)
        bus = await stack.enter_async_context(connect_bus(nats))
        collecting = Collecting(bus)
        await serve_until(stack, settings, collecting.run, stop, lambda: collecting.is_ready)


class Collecting:
    """One collector on an open bus."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self._collector = DeadLetterCollector(bus, work_queues=WORK_QUEUES)
        self._is_running = False

    @property
    def is_ready(self) -> bool:
        """Whether it follows the advisories."""
        return self._is_running and self._bus.is_connected

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until ``stop`` is set. Raises BusError when the connection or the advisory stream is gone."""
        tasks: list[asyncio.Future[object]] = [
            asyncio.ensure_future(self._collector.run()),
            asyncio.ensure_future(self._bus.wait_closed()),
            asyncio.ensure_future(stop.wait()),
        ]
        self._is_running = True
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._is_running = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    main()
