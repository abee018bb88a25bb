"""A TCP relay of ours between one process and NATS: connections are cut, refused, stalled; deliveries come twice or late.

What flows is bytes, unchanged, but for one thing: while scrambling is on, whole deliveries of a stream's messages
(recognised by their acknowledgement subject) are repeated or held back behind the ones after them, as a network of
servers may do. Nothing is invented and nothing is altered.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import Callable, Sequence
from typing import Final

Address = tuple[str, int]

_CHUNK_BYTES: Final = 65_536
_BACKLOG: Final = 128
_HELD_MAX: Final = 8
"""How many deliveries are held back at once, at most."""
_REORDER_S: Final = 0.2
"""The longest that one is held back when nothing follows it."""
_MESSAGE: Final = re.compile(rb"(MSG|HMSG) ([^\r\n]+)\r\n")
_ACK_PREFIX: Final = b"$JS.ACK."


class Proxy:
    """Listens from its construction on, so that whoever is started before :meth:`serve` only waits."""

    def __init__(self, upstreams: Callable[[], Sequence[Address]], draw: random.Random) -> None:
        """``upstreams`` says where NATS is now; several are tried in a drawn order."""
        self._upstreams = upstreams
        self._draw = draw
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_refusing = False
        self.is_scrambling = False
        self._flow = asyncio.Event()
        self._flow.set()
        self.repeated_count = 0
        self.reordered_count = 0

    @property
    def url(self) -> str:
        """Where the process connects to."""
        return f"nats://127.0.0.1:{self._socket.getsockname()[1]}"

    async def serve(self) -> None:
        """Relay from now on."""
        self._server = await asyncio.start_server(self._accept, sock=self._socket)

    async def close(self) -> None:
        """Cut everything and listen no more."""
        self._flow.set()
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        self._socket.close()

    def cut(self) -> None:
        """End every connection at once, without a goodbye."""
        for link in list(self._links):
            link.abort()

    def refuse(self, is_refusing: bool) -> None:
        """Cut, and take no new connection until told otherwise."""
        self.is_refusing = is_refusing
        if is_refusing:
            self.cut()

    def stall(self, is_stalled: bool) -> None:
        """Keep connections open and move nothing through them: a client that reads too slowly, a net that hangs."""
        if is_stalled:
            self._flow.clear()
        else:
            self._flow.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side is gone: the other one is told by the end of its connection
        finally:
            _abort(writer)
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            return
        upstream = await self._connect()
        if upstream is None:
            return
        above_reader, above_writer = upstream
        link = _Link(writer, above_writer)
        self._links.add(link)
        scrambler = Scrambler(self, writer)
        try:
            if self.is_refusing:
                return
            pumps = [
                asyncio.ensure_future(self._pump(reader, above_writer.write, above_writer)),
                asyncio.ensure_future(self._pump(above_reader, scrambler.feed, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            scrambler.close()
            link.abort()
            self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        addresses = list(self._upstreams())
        self._draw.shuffle(addresses)
        for host, port in addresses:
            try:
                return await asyncio.open_connection(host, port)
            except OSError:
                continue
        return None

    async def _pump(
        self, reader: asyncio.StreamReader, write: Callable[[bytes], None], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            chunk = await reader.read(_CHUNK_BYTES)
            await self._flow.wait()
            if not chunk:
                return
            write(chunk)
            await writer.drain()

    # for the scrambler

    def draw_fate(self) -> str:
        """Return what becomes of the next delivery: ``pass``, ``twice`` or ``late``."""
        if not self.is_scrambling:
            return "pass"
        return self._draw.choices(("pass", "twice", "late"), (4, 1, 1))[0]


class _Link:
    """The two connections of one relay."""

    def __init__(self, below: asyncio.StreamWriter, above: asyncio.StreamWriter) -> None:
        self._writers = (below, above)

    def abort(self) -> None:
        """End both at once."""
        for writer in self._writers:
            _abort(writer)


class Scrambler:
    """Cuts what a server sends into its protocol's units, and repeats or holds back deliveries of streams."""

    def __init__(self, proxy: Proxy, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writer = writer
        self._buffer = bytearray()
        self._held: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, chunk: bytes) -> None:
        """Take bytes from the server and pass on all that is whole."""
        self._buffer += chunk
        while (unit := self._take_unit()) is not None:
            self._send(unit)

    def close(self) -> None:
        """Forget what is held back: the server delivers it again."""
        if self._timer is not None:
            self._timer.cancel()

    def _take_unit(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        size = end + 2
        head = _MESSAGE.match(self._buffer)
        if head is not None:
            size += int(head.group(2).split()[-1]) + 2
        if len(self._buffer) < size:
            return None
        unit = bytes(self._buffer[:size])
        del self._buffer[:size]
        return unit

    def _send(self, unit: bytes) -> None:
        head = _MESSAGE.match(unit)
        is_delivery = head is not None and any(
            field.startswith(_ACK_PREFIX) for field in head.group(2).split()[2:3]
        )
        fate = self._proxy.draw_fate() if is_delivery else "pass"
        if fate == "late" and len(self._held) < _HELD_MAX:
            self._held.append(unit)
            self._proxy.reordered_count += 1
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_REORDER_S, self._release)
            return
        self._writer.write(unit)
        if fate == "twice":
            self._proxy.repeated_count += 1
            self._writer.write(unit)

    def _release(self) -> None:
        self._timer = None
        for unit in reversed(self._held):
            self._writer.write(unit)
        self._held.clear()


def _abort(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    if not transport.is_closing():
        transport.abort()
