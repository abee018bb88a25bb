"""What services ask of the bus, free of any NATS type.

Delivery is at least once and acknowledgement is an optimisation, never a guarantee: every effect is idempotent by
content. What comes out of here is bytes from outside: opening envelopes and decoding is the caller's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, Protocol

from pocache.protocol.errors import PocacheError


class Settler(Protocol):
    """How a stored message answers the consumer that it came from; each adapter brings its own."""

    async def ack(self, *, keeps_credit: bool = False) -> None: ...
    def release(self) -> None: ...
    async def nak(self, delay_s: float) -> None: ...
    async def term(self, reason: str) -> None: ...
    async def in_progress(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class StoredMessage:
    """A message of a stream, delivered through a consumer; its holder settles it exactly once.

    ``sequence`` is its position in the stream, ``stored_ms`` the server's clock when it was stored (milliseconds),
    ``delivered_count`` how often it was delivered so far, this time included.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    stream: str
    sequence: int
    stored_ms: int
    delivered_count: int
    settler: Settler = field(repr=False)

    async def ack(self, *, keeps_credit: bool = False) -> None:
        """Say that its effects are durable. Safe to repeat.

        With ``keeps_credit`` nothing is asked for in its place before :meth:`release`: who took it is busy with it.
        """
        await self.settler.ack(keeps_credit=keeps_credit)

    def release(self) -> None:
        """Free the credit that an acknowledgement kept. Safe to repeat."""
        self.settler.release()

    async def nak(self, delay_s: float = 0.0) -> None:
        """Ask for it again, not before ``delay_s`` seconds."""
        await self.settler.nak(delay_s)

    async def term(self, reason: str) -> None:
        """Never deliver it again; the dead-letter collector keeps a copy with ``reason``."""
        await self.settler.term(reason)

    async def in_progress(self) -> None:
        """Restart its acknowledgement wait."""
        await self.settler.in_progress()


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A message read from a stream by position, outside any consumer: nothing to settle."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    stream: str
    sequence: int
    stored_ms: int


class CoreMessage(NamedTuple):
    """A message outside any stream: at most once."""

    subject: str
    data: bytes


class Outgoing(NamedTuple):
    """One publish of many. ``message_id`` lets the stream drop a repetition inside its window."""

    subject: str
    data: bytes
    message_id: str | None = None
    headers: Mapping[str, str] | None = None


RequestHandler = Callable[[CoreMessage], Awaitable[bytes]]


class Bus(Protocol):
    """A connection to the bus. Everything raises BusError when the bus is unreachable, denied or not provisioned."""

    @property
    def is_connected(self) -> bool:
        """Answer whether a server is reachable at this moment (readiness)."""
        ...

    @property
    def denied(self) -> tuple[str, ...]:
        """Return the latest permission violations that the server reported, oldest first (bounded)."""
        ...

    async def wait_closed(self) -> NoReturn:
        """Wait until the connection is closed for good, then raise BusError: a service dies with its bus."""
        ...

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        expected_last_sequence: int | None = None,
        expected_last_subject_sequence: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        """Store a message in the stream of its subject and return its sequence, after the stream's own answer.

        BackpressureError: the stream is full and nothing was stored. ConflictError: an expected sequence is not the
        last one. BusError: everything else; whether it was stored is unknown, so repeat with the same message id.
        """
        ...

    async def publish_many(self, messages: Sequence[Outgoing]) -> list[int | PocacheError]:
        """Store messages with a bounded number in flight; return each one's sequence, or why it was not stored.

        The order in the stream is theirs, but for those that had to be sent again.
        """
        ...

    async def publish_core(self, subject: str, data: bytes) -> None:
        """Send to whoever listens now; nothing is stored."""
        ...

    def subscribe_core(
        self, subject: str, *, pending_max: int = 65_536
    ) -> AbstractAsyncContextManager[AsyncIterator[CoreMessage]]:
        """Listen while the context lasts. Also hears messages of streams as they are published.

        ``pending_max`` bounds the number of unread messages; later ones are dropped by the client.
        """
        ...

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Ask whoever serves ``subject``; BusError on no server, no answer in time, or a server that failed."""
        ...

    def serve_requests(
        self, subject: str, handler: RequestHandler, *, concurrency: int = 64
    ) -> AbstractAsyncContextManager[None]:
        """Answer requests while the context lasts, shared with others that serve the same subject.

        A handler's exception is logged and answered as a failure; the service goes on.
        """
        ...

    def pull(
        self,
        stream: str,
        consumer: str,
        *,
        credit: int,
        batch_max: int = 1,
        progress_s: float | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[list[StoredMessage]]]:
        """Consume while the context lasts, in lists of 1 to ``batch_max`` messages, whatever is there.

        ``credit`` bounds how many messages are asked for, waiting here, or handed out and not settled, together:
        a message that is never settled keeps its credit. With ``progress_s`` all that is held is kept alive by
        ``in_progress`` at that interval. On exit what was not handed out is given back at once (NAK); what was
        handed out can still be settled.
        """
        ...

    async def get_last(self, stream: str, subject: str) -> StreamRecord | None:
        """Return the last message of a stream on ``subject`` (wildcards allowed), None when there is none."""
        ...

    def read(
        self, stream: str, *, subject: str = ">", start_sequence: int = 1
    ) -> AsyncIterator[StreamRecord]:
        """Iterate over what a stream holds on ``subject`` now, from a sequence on, then end."""
        ...
