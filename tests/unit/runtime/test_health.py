"""The health endpoint, over a real socket on loopback."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pocache.runtime.health import serve_health


async def ask(port: int, request: bytes) -> tuple[str, str]:
    """Send bytes, and return the status line and the body; two empty texts where nothing was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return head.split("\r\n")[0], body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_live_as_long_as_the_loop_turns() -> None:
    async with serve_health("127.0.0.1", 0, lambda: False) as port:
        assert port > 0
        assert await ask(port, get("/livez")) == ("HTTP/1.1 200 OK", "live\n")


async def test_ready_when_the_service_says_so() -> None:
    is_ready = False
    async with serve_health("127.0.0.1", 0, lambda: is_ready) as port:
        assert await ask(port, get("/readyz")) == ("HTTP/1.1 503 Service Unavailable", "not ready\n")
        is_ready = True
        assert await ask(port, get("/readyz")) == ("HTTP/1.1 200 OK", "ready\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/"), "404 Not Found"),
        (get("/livez/"), "404 Not Found"),
        (b"POST /livez HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /livez\r\n\r\n", "405 Method Not Allowed"),
        (b"\r\n\r\n", "405 Method Not Allowed"),
    ],
)
async def test_nothing_else_is_answered(request_bytes: bytes, status: str) -> None:
    async with serve_health("127.0.0.1", 0, lambda: True) as port:
        assert (await ask(port, request_bytes))[0] == f"HTTP/1.1 {status}"


async def test_a_client_that_sends_too_much_gets_no_answer() -> None:
    """The head of a request is bounded, and the next client is served all the same."""
    async with serve_health("127.0.0.1", 0, lambda: True) as port:
        with_flood = b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"
        with contextlib.suppress(ConnectionError):  # the server may close before it has read everything
            assert await ask(port, with_flood) == ("", "")
        assert (await ask(port, get("/livez")))[0] == "HTTP/1.1 200 OK"


async def test_a_client_that_leaves_does_no_harm() -> None:
    async with serve_health("127.0.0.1", 0, lambda: True) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /liv")
        writer.close()
        await writer.wait_closed()
        assert (await ask(port, get("/livez")))[0] == "HTTP/1.1 200 OK"


async def test_the_port_is_free_again_behind_the_context() -> None:
    async with serve_health("127.0.0.1", 0, lambda: True) as port:
        pass
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_in_use_is_an_error() -> None:
    async with serve_health("127.0.0.1", 0, lambda: True) as port:
        with pytest.raises(OSError, match="in use"):
            async with serve_health("127.0.0.1", port, lambda: True):
                pass
