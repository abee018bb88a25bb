"""What the routes of one gateway process share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from pocache.protocol.ids import ModelId
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import Genesis, Model, NetworkDirectory
from pocache_gateway.access import Access
from pocache_gateway.accounts import Accounts
from pocache_gateway.catalogue import Catalogue
from pocache_gateway.runs import Runs
from pocache_gateway.settings import GatewaySettings


@dataclass
class Drain:
    """Whether the process is on its way out, and what it still has in hand."""

    is_draining: bool = False
    in_hand: int = 0
    _emptied: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Count one piece of work in hand while the context lasts."""
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1
            if self.in_hand == 0:
                self._emptied.set()

    async def wait_empty(self) -> None:
        """Wait until nothing is in hand."""
        while self.in_hand:
            self._emptied.clear()
            await self._emptied.wait()


class Background:
    """Tasks that outlive the request that began them, and end with the process."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    async def close(self) -> None:
        """Cancel what is left, and wait for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            structlog.get_logger().error("task_failed", error=repr(error), exc_info=error)


@dataclass
class GatewayState:
    """What the routes are made from; ``app.state.gateway`` of the application."""

    settings: GatewaySettings
    directory: NetworkDirectory
    genesis: Genesis
    models: Mapping[ModelId, Model]
    accounts: Accounts
    access: Access
    catalogue: Catalogue
    metrics: Metrics = field(default_factory=lambda: Metrics("gateway"))
    is_ready: Callable[[], bool] = lambda: True
    drain: Drain = field(default_factory=Drain)
    background: Background = field(default_factory=Background)
    runs: Runs = field(init=False)

    def __post_init__(self) -> None:
        """Follow jobs in tasks of this process."""
        self.runs = Runs(
            reconnect_s=self.settings.reconnect_s, spawn=self.background.spawn, metrics=self.metrics
        )
