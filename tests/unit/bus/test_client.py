"""Bytes that nats-py cannot decode come through, or are dropped: its read loop would end at them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

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


WIRE = (
    b"MSG a.b 7 5\r\nhello\r\n"
    b"PING\r\n"
    b"HMSG a.b 7 $JS.ACK.x 23 26\r\nNATS/1.0\r\nName: one\r\n\r\nraw\r\n"
    b"+OK\r\n"
    b"MSG a.c 7 _INBOX.1 0\r\n\r\n"
    b"HMSG a.d 7 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
)
MESSAGES = [
    ("a.b", "", b"hello", None),
    ("a.b", "$JS.ACK.x", b"raw", {"Name": "one"}),
    ("a.c", "_INBOX.1", b"", None),
    ("a.d", "", b"", {"Status": "503"}),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 40, len(WIRE)])
@pytest.mark.parametrize("is_direct", [False, True])
async def test_messages_are_the_same_however_they_are_cut(size: int, is_direct: bool) -> None:
    """Whole in one read or a byte at a time, by the short way and by the library's own."""
    client = TolerantClient()
    client._process_ping = _do_nothing  # type: ignore[method-assign]
    client._status = TolerantClient.CONNECTED
    client._send_subscribe = _do_nothing  # type: ignore[assignment,method-assign]
    client._sid = 6
    heard: list[Any] = []
    if is_direct:
        subscription = await client.subscribe_direct("a.*", heard.append)
    else:
        subscription = await client.subscribe("a.*")
    for start in range(0, len(WIRE), size):
        await client._ps.parse(WIRE[start : start + size])
    while not subscription._pending_queue.empty():
        heard.append(subscription._pending_queue.get_nowait())
    assert [(one.subject, one.reply, one.data, one.headers) for one in heard] == MESSAGES


async def test_a_handler_that_fails_ends_its_message_alone() -> None:
    client = TolerantClient()
    client._status = TolerantClient.CONNECTED
    client._send_subscribe = _do_nothing  # type: ignore[assignment,method-assign]
    heard: list[bytes] = []

    def handle(message: Any) -> None:
        heard.append(message.data)
        raise ValueError

    await client.subscribe_direct("a", handle)
    await client._ps.parse(b"MSG a 1 1\r\n1\r\nMSG a 1 1\r\n2\r\n")
    assert heard == [b"1", b"2"]


async def _do_nothing(*_arguments: Any) -> None:
    return
