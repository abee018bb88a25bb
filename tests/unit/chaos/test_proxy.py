"""The relay alters nothing, cuts what it is told to, and scrambles only deliveries of streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chaos.proxy import Proxy

DELIVERIES = [b"MSG a 1 $JS.ACK.S.c.1.%d.1.1.0 2\r\n%02d\r\n" % (number, number) for number in range(60)]
OTHERS = [b"PING\r\n", b"MSG b 2 3\r\nxyz\r\n", b"HMSG c 3 _INBOX.x 4 6\r\nabcdef\r\n"]
TIMEOUT_S = 30.0


@asynccontextmanager
async def run_relay(answer: bytes, seed: int = 1) -> AsyncIterator[Proxy]:
    """A server that says ``answer`` to each connection, and a relay to it."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for start in range(0, len(answer), 7):  # cut anywhere, as a network cuts
                writer.write(answer[start : start + 7])
                await writer.drain()
            await reader.read()
        except ConnectionError:
            pass  # the relay cut it
        finally:
            writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    proxy = Proxy(lambda: [server.sockets[0].getsockname()[:2]], random.Random(seed))
    await proxy.serve()
    try:
        yield proxy
    finally:
        await proxy.close()
        server.close()
        await server.wait_closed()


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the relay."""
    host, _, port = proxy.url.removeprefix("nats://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def read(proxy: Proxy, size: int) -> bytes:
    """Read so many bytes through the relay."""
    reader, writer = await connect(proxy)
    async with asyncio.timeout(TIMEOUT_S):
        data = await reader.readexactly(size)
    writer.close()
    return data


async def test_what_is_not_scrambled_comes_as_it_was() -> None:
    """Byte for byte."""
    answer = b"".join([*OTHERS, *DELIVERIES])
    async with run_relay(answer) as proxy:
        assert await read(proxy, len(answer)) == answer
    assert (proxy.repeated_count, proxy.reordered_count) == (0, 0)


async def test_scrambled_deliveries_are_all_there_some_twice_some_late() -> None:
    """Nothing is lost or altered, and what is no delivery keeps its place."""
    answer = b"".join([OTHERS[0], *DELIVERIES, *OTHERS[1:]])
    async with run_relay(answer) as proxy:
        proxy.is_scrambling = True
        reader, writer = await connect(proxy)
        heard = b""
        async with asyncio.timeout(TIMEOUT_S):
            while heard.count(b"MSG a") < len(DELIVERIES) + proxy.repeated_count or b"abcdef" not in heard:
                heard += await reader.read(4_096)
        writer.close()
    assert proxy.repeated_count > 0
    assert proxy.reordered_count > 0
    assert all(unit in heard for unit in (*DELIVERIES, *OTHERS))
    numbers = [int(part.split(b"\r\n")[1]) for part in heard.split(b"MSG a")[1:]]
    assert numbers != sorted(numbers)


async def test_a_cut_ends_the_connection_and_a_refusal_every_later_one() -> None:
    """At once, and until it is lifted."""
    async with run_relay(b"PING\r\n") as proxy:
        reader, writer = await connect(proxy)
        assert await reader.readexactly(6) == b"PING\r\n"
        proxy.refuse(True)
        async with asyncio.timeout(TIMEOUT_S):
            assert await read_to_end(reader) == b""
            again, other = await connect(proxy)
            assert await read_to_end(again) == b""
        proxy.refuse(False)
        assert await read(proxy, 6) == b"PING\r\n"
        for one in (writer, other):
            one.close()


async def test_a_stalled_relay_moves_nothing_and_loses_nothing() -> None:
    """The connection stays; what was held comes afterwards."""
    async with run_relay(b"PING\r\n") as proxy:
        proxy.stall(True)
        reader, writer = await connect(proxy)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        proxy.stall(False)
        async with asyncio.timeout(TIMEOUT_S):
            assert await reader.readexactly(6) == b"PING\r\n"
        writer.close()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the connection ends, however it ends."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""
