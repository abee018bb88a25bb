"""Bytes that nats-py cannot decode come through, or are dropped: its read loop would end at them."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from pocache.bus.client import TolerantClient


def test_a_subject_that_is_not_utf8_is_escaped() -> None:
    """And stays one subject, which no topic has."""
    message = TolerantClient()._build_message(1, b"results.\xff.\xc3\xa9", b"\xfe", b"data", None)
    assert (message.subject, message.reply, message.data) == ("results.\\xff.é", "\\xfe", b"data")


@pytest.mark.parametrize(
    "line", [b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 400 \xff\r\n\r\n", b"NATS/1.0"]
)
async def test_headers_that_do_not_decode_are_dropped(line: bytes) -> None:
    """In the status, in its description, and where nothing follows."""
    assert await TolerantClient()._process_headers(line) is None


async def test_good_headers_are_read() -> None:
    """The server's own statuses among them."""
    assert await TolerantClient()._process_headers(b"NATS/1.0 404 No Messages\r\n\r\n") == {
        "Status": "404",
        "Description": "No Messages",
    }


async def test_a_connection_without_a_greeting_is_closed() -> None:
    """A relay whose server went away accepts and says no more: each attempt closes what it opened, nobody else has to."""
    closed: asyncio.Queue[bytes] = asyncio.Queue()
    numbers = itertools.count()

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(numbers) == 0:
            writer.write(b'INFO {"max_payload": 1}\r\n')
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
        else:
            writer.write_eof()
            closed.put_nowait(await reader.read())
        writer.close()

    async def ignore(_error: Exception) -> None:
        return

    server = await asyncio.start_server(end, "127.0.0.1", 0)
    client = TolerantClient()
    await client.connect(
        f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=0,
        error_cb=ignore,
    )
    try:
        async with asyncio.timeout(60):
            for _ in range(3):
                assert await closed.get() == b""
    finally:
        await client.close()
        server.close()
        await server.wait_closed()
