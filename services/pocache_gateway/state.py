"""What the routes of one gateway process share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pocache.protocol.ids import ModelId
from pocache.runtime.network import Genesis, Model, NetworkDirectory
from pocache_gateway.settings import GatewaySettings


@dataclass
class Drain:
    """Whether the process is on its way out, and what it still has in hand."""

    is_draining: bool = False
    in_hand: int = 0
    emptied: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Count one piece of work in hand while the context lasts."""
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1
            if self.in_hand == 0:
                self.emptied.set()

    async def wait_empty(self) -> None:
        """Wait until nothing is in hand."""
        while self.in_hand:
            self.emptied.clear()
            await self.emptied.wait()


@dataclass
class GatewayState:
    """What the routes are made from; ``app.state.gateway`` of the application."""

    settings: GatewaySettings
    directory: NetworkDirectory
    genesis: Genesis
    models: Mapping[ModelId, Model]
    is_ready: Callable[[], bool] = lambda: True
    drain: Drain = field(default_factory=Drain)
