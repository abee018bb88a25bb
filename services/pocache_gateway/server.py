"""The HTTP server under the application: bound sockets, a bounded number of connections, and an end in order.

Stopping: no new work is taken while it is still answered that none is (503), what is in hand is finished, then
connections are closed. Signals are the process's business (``pocache.runtime.lifecycle``), never the server's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp

from pocache.protocol.errors import ConfigError
from pocache_gateway.settings import GatewaySettings

_CLOSE_S: Final = 5
_KEEP_ALIVE_S: Final = 30
_HEAD_BYTES_MAX: Final = 32_768
_BACKLOG: Final = 2_048


class _Server(uvicorn.Server):
    """uvicorn without hands on the process's signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_http(app: ASGIApp, settings: GatewaySettings) -> AsyncIterator[int]:
    """Serve ``app`` while the context lasts; yields the port. Raises ConfigError when it cannot be bound."""
    AppStatus.enable_automatic_graceful_drain = False  # streams end when their jobs do, and not before
    listener = _bind(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=settings.connections_max,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_S,
        h11_max_incomplete_event_size=_HEAD_BYTES_MAX,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def _bind(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    listener.setblocking(False)
    return listener
