"""The NATS client as the adapter uses it: what a stranger may put into a subject or a header must not end its reading.

nats-py decodes both as it reads, and what raises there ends its read loop for good, with the connection still called
connected; it also takes for separators what the server takes for part of a subject, and then disconnects, at every
delivery again. Here a subject with bytes that nobody can print is given on with those escaped, so that it is refused
like any other that is no topic's; headers that do not decode are dropped, as no message of ours needs a sender's.

It also forgets to close a connection on which the server's greeting did not come: behind a relay that accepts and has no
server, each attempt to reconnect would leave a socket open, until the process has none left. Here it is closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import structlog
from nats.aio.client import Client
from nats.protocol import parser

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

_LOG = structlog.get_logger(__name__)

_CRLF: Final = b"\r\n"
_PLAIN_HEADERS: Final = b"NATS/1.0\r\n"

_ARGUMENTS: Final = rb"[ \t]+([^ \t\r\n]+)[ \t]+([0-9]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?"
_SERVERS_OWN: Final = {
    "MSG_RE": re.compile(rb"\AMSG" + _ARGUMENTS + rb"([0-9]+)\r\n", re.IGNORECASE),
    "HMSG_RE": re.compile(rb"\AHMSG" + _ARGUMENTS + rb"([0-9]+)[ \t]+([0-9]+)\r\n", re.IGNORECASE),
}
"""The library's two expressions with the server's separators, space and tab, in place of everything that is white."""


class TolerantParser(parser.Parser):
    """The library's parser, its own code, with the server's idea of what a subject is.

    Messages that lie there whole, which nearly all do, are taken out without its two steps through one state.
    """

    parse_rest = FunctionType(parser.Parser.parse.__code__, {**vars(parser), **_SERVERS_OWN}, "parse", (b"",))

    async def parse(self, data: bytes = b"") -> None:
        """Take ``data`` from the server, and give on each message in it."""
        buffer = self.buf
        buffer.extend(data)
        while self.state == parser.AWAITING_CONTROL_LINE:
            has_headers = buffer[:1] == b"H"
            line = _SERVERS_OWN["HMSG_RE" if has_headers else "MSG_RE"].match(buffer)
            if line is None:
                break
            subject, sid, _, reply, *sizes = line.groups()
            start, size = line.end(), int(sizes[-1])
            if len(buffer) < start + size + len(_CRLF):
                break
            body = bytes(buffer[start : start + size])
            del buffer[: start + size + len(_CRLF)]
            head = int(sizes[0]) if has_headers else 0
            message = (int(sid), subject, reply or b"", body[head:], body[:head] or None)
            await self.nc._process_msg(*message)  # noqa: SLF001 - what the library's own parser does
            if buffer is not self.buf:  # it was reset meanwhile: another connection begins
                return
        if buffer:
            await self.parse_rest()


class TolerantClient(Client):
    """A client that reads on whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = TolerantParser(self)
        self._direct: dict[int, Callable[[Msg], None]] = {}
        self._numbers: dict[Subscription, int] = {}

    async def subscribe_direct(self, subject: str, handle: Callable[[Msg], None]) -> Subscription:
        """Subscribe with a function that is called as messages are read, without a queue and a task between.

        It has to be quick and must not raise. What bounds its messages is what was asked for.
        """
        number = self._sid + 1
        self._direct[number] = handle  # before the first message can come
        subscription = await self.subscribe(subject)
        self._numbers[subscription] = number
        return subscription

    def forget_direct(self, subscription: Subscription) -> None:
        """Give up the function of a subscription that has ended."""
        del self._direct[self._numbers.pop(subscription)]

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        handle = self._direct.get(sid)
        if handle is None or sid not in self._subs:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        read = _read_headers(headers) if headers else None
        if headers and read is None:
            read = await self._process_headers(headers)
        try:
            handle(self._build_message(sid, subject, reply, data, read))
        except Exception:  # noqa: BLE001 - a task's boundary: one message must not end the reading of all
            _LOG.exception("message not handled", subject=subject)

    def abort(self) -> None:
        """Drop the transport as it is."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    def _build_message(self, sid: int, subject: bytes, reply: bytes, *rest: Any, **named: Any) -> Any:
        return super()._build_message(sid, _escape(subject), _escape(reply), *rest, **named)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
            raise

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError):
            return None


def _read_headers(data: bytes) -> dict[str, str] | None:
    """Return headers that are plain lines of ASCII; None for all else, which the library reads."""
    if not data.startswith(_PLAIN_HEADERS) or not data.isascii():
        return None
    lines = data[len(_PLAIN_HEADERS) :].decode().split("\r\n")
    fields = [line.partition(":") for line in lines if line]
    return (
        {name: value.strip() for name, _, value in fields} if all(colon for _, colon, _ in fields) else None
    )


def _escape(data: bytes) -> bytes:
    text = bytes(data).decode("utf-8", "backslashreplace")
    return text.encode() if text.isprintable() else text.encode("unicode_escape")
