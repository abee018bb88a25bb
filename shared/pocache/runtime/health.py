"""Liveness, readiness and metrics over HTTP: ``GET /livez``, ``GET /readyz`` and ``GET /metrics``, nothing else.

Live: the event loop answers. Ready: the service is connected, bound to its consumers, and working. One request a
connection, a bounded request line, a bounded time to send it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from pocache.runtime.metrics import CONTENT_TYPE, Metrics

_REQUEST_BYTES_MAX: Final = 4_096
_REQUEST_TIMEOUT_S: Final = 5.0


@asynccontextmanager
async def serve_health(
    host: str, port: int, is_ready: Callable[[], bool], metrics: Metrics | None = None
) -> AsyncIterator[int]:
    """Serve while the context lasts; yields the port, chosen by the system when ``port`` is 0."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, text = _respond(head.split(b"\r\n", 1)[0], is_ready, metrics)
            body = text.encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
                f"Connection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a client that does not speak HTTP gets no answer
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, port, limit=_REQUEST_BYTES_MAX)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def _respond(request_line: bytes, is_ready: Callable[[], bool], metrics: Metrics | None = None) -> tuple[str, str]:
    parts = request_line.split(b" ")
    if len(parts) != 3 or parts[0] != b"GET":
        return "405 Method Not Allowed", "only GET\n"
    if parts[1] == b"/livez":
        return "200 OK", "live\n"
    if parts[1] == b"/readyz":
        return ("200 OK", "ready\n") if is_ready() else ("503 Service Unavailable", "not ready\n")
    if parts[1] == b"/metrics" and metrics is not None:
        metrics.is_ready.set(is_ready())
        return "200 OK", metrics.render()
    return "404 Not Found", "try /livez, /readyz or /metrics\n"
