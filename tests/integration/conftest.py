"""A real nats-server for each test, on a free loopback port with a store of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pocache.bus.server import EmbeddedServer, ServerSettings


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """An open server that does not sync each message: tests kill the process, not the machine."""
    async with EmbeddedServer(ServerSettings(tmp_path / "nats", sync_always=False)) as server:
        yield server
