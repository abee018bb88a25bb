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
from types import FunctionType
from typing import Any, Final

from nats.aio.client import Client
from nats.protocol import parser

_ARGUMENTS: Final = rb"[ \t]+([^ \t\r\n]+)[ \t]+([0-9]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?"
_SERVERS_OWN: Final = {
    "MSG_RE": re.compile(rb"\AMSG" + _ARGUMENTS + rb"([0-9]+)\r\n", re.IGNORECASE),
    "HMSG_RE": re.compile(rb"\AHMSG" + _ARGUMENTS + rb"([0-9]+)[ \t]+([0-9]+)\r\n", re.IGNORECASE),
}
"""The library's two expressions with the server's separators, space and tab, in place of everything that is white."""


class TolerantParser(parser.Parser):
    """The library's parser, its own code, with the server's idea of what a subject is."""

    parse = FunctionType(parser.Parser.parse.__code__, {**vars(parser), **_SERVERS_OWN}, "parse", (b"",))


class TolerantClient(Client):
    """A client that reads on whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = TolerantParser(self)

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


def _escape(data: bytes) -> bytes:
    text = bytes(data).decode("utf-8", "backslashreplace")
    return text.encode() if text.isprintable() else text.encode("unicode_escape")
