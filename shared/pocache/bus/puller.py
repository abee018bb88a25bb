"""The continuous puller: an endless, credit-bounded flow from one durable consumer (docs/protocol.md 11.4).

It keeps pull requests open through one inbox instead of fetching batch by batch. Credit is the most messages that
are asked for, waiting here, or handed out and unsettled; settling one frees its credit and asks for more. After a
reconnect, or when idle heartbeats stay away, what the server knew of our requests may be lost, so they are made
again. At shutdown what was not handed out goes back at once.

Bounds: a server that did not forget answers both the old requests and the new ones, so each reconnect or silence can
add one credit of messages until the old requests expire; the consumer's ``max_ack_pending`` is the hard bound. A
handed-out message that is never settled keeps its credit until the server delivers it again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import nats.errors
import structlog

from pocache.bus.barrier import pass_barrier
from pocache.bus.delivery import PullSettler, parse_delivery
from pocache.bus.port import StoredMessage
from pocache.protocol.errors import BusError

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from pocache.bus.client import TolerantClient

_LOG = structlog.get_logger(__name__)

_ACK_PREFIX: Final = "$JS.ACK."
_NS_PER_S: Final = 1_000_000_000
_CLOSE_S: Final = 5.0

_FATAL_STATUS: Final = ("400", "423")
_FATAL_DESCRIPTIONS: Final = ("consumer deleted", "push based", "maxrequest", "invalid", "bad request")

Bury = Callable[[StoredMessage, str, str], Awaitable[None]]
"""Stores a copy (message, consumer, reason) among the dead letters; a work queue forgets what is terminated."""


@dataclass(frozen=True, slots=True)
class PullSettings:
    """How one puller behaves. Times in seconds; a heartbeat is at most half of what a request lasts.

    ``unavailable_s`` is how long "nobody serves this consumer" is taken for a server that is starting.
    """

    credit: int
    batch_max: int = 1
    progress_s: float | None = None
    expires_s: float = 30.0
    heartbeat_s: float = 5.0
    retry_s: float = 0.25
    unavailable_s: float = 15.0

    def __post_init__(self) -> None:
        assert self.credit >= 1
        assert self.batch_max >= 1
        assert self.heartbeat_s * 2 <= self.expires_s


class ContinuousPuller:
    """Async context manager and iterator over lists of messages; may be iterated by several tasks."""

    def __init__(
        self, client: TolerantClient, stream: str, consumer: str, settings: PullSettings, bury: Bury
    ) -> None:
        self._client = client
        self._stream = stream
        self._consumer = consumer
        self._settings = settings
        self._bury = bury
        self._pull_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._ready: deque[StoredMessage] = deque()
        self._held: dict[int, PullSettler] = {}
        self._requested = 0
        self._tokens: set[str] = set()
        self._token_numbers = itertools.count(1)
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._is_closed = False
        self._failure: BusError | None = None
        self._heard_at = 0.0
        self._not_before = 0.0
        self._unavailable_since: float | None = None
        self._wake = asyncio.Event()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._open_inbox()
        loop = asyncio.get_running_loop()
        # Owned here and ended in __aexit__: a TaskGroup would wrap every error of the body that consumes.
        self._tasks.append(loop.create_task(self._keep_requesting()))
        if self._settings.progress_s is not None:
            self._tasks.append(loop.create_task(self._keep_alive(self._settings.progress_s)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._arrived.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_inbox()
        await self._give_back()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[StoredMessage]:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._is_closed:
                raise StopAsyncIteration
            batch = self._take()
            if batch:
                return batch
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def held_count(self) -> int:
        """Return how many messages wait here or are handed out and unsettled."""
        return len(self._held)

    def handle_reconnected(self) -> None:
        """Make the requests of the connection that was lost again."""
        self._forget_requests()
        self._wake.set()

    def handle_denied(self, subject: str) -> None:
        """End the flow when the server denies what it needs; ``subject`` as the server reports it (no case)."""
        needed = (self._pull_subject, f"{self._inbox}.*")
        if subject.lower() in (name.lower() for name in needed):
            self._fail(BusError(f"denied: {subject}"))

    def handle_closed(self) -> None:
        """End the flow when the connection is closed for good."""
        self._fail(BusError("the connection to the bus is closed"))

    def forget(self, settler: PullSettler) -> None:
        """Free the credit of a settled message."""
        if self._held.get(settler.delivery.sequence) is settler:
            del self._held[settler.delivery.sequence]
            if self._compute_due() > 0:
                self._wake.set()

    async def say(self, reply: str, data: bytes) -> None:
        """Send an acknowledgement. Raises BusError when the connection is closed or its buffer is full."""
        try:
            await self._client.publish(reply, data)
        except nats.errors.Error as error:
            raise BusError(f"{self._stream}.{self._consumer}: acknowledgement not sent: {error}") from error

    async def bury(self, message: StoredMessage, reason: str) -> None:
        """Store a copy among the dead letters."""
        await self._bury(message, self._consumer, reason)

    # requesting

    async def _keep_requesting(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                await self._request_more(loop.time())
                try:
                    async with asyncio.timeout_at(self._compute_deadline(loop.time())):
                        await self._wake.wait()
                except TimeoutError:
                    if self._requested and loop.time() >= self._heard_at + self._silence_s:
                        _LOG.warning("heartbeats missed", stream=self._stream, consumer=self._consumer)
                        self._forget_requests()
        except nats.errors.Error as error:
            self._fail(BusError(f"{self._stream}.{self._consumer}: {error}"))

    @property
    def _silence_s(self) -> float:
        """Two heartbeats and a half: one may be late, two missing are none."""
        return 2.5 * self._settings.heartbeat_s

    def _compute_deadline(self, now: float) -> float | None:
        deadlines = [self._heard_at + self._silence_s] if self._requested else []
        if self._not_before > now:
            deadlines.append(self._not_before)
        return min(deadlines, default=None)

    def _compute_due(self) -> int:
        """Return how many messages to ask for now: none until half the credit is free, or nothing is asked for."""
        free = self._settings.credit - len(self._held) - self._requested
        threshold = max(1, self._settings.credit // 2) if self._requested else 1
        return free if free >= threshold else 0

    async def _request_more(self, now: float) -> None:
        due = self._compute_due()
        if due <= 0 or now < self._not_before or not self._client.is_connected:
            return
        token = str(next(self._token_numbers))
        request = {
            "batch": due,
            "expires": round(self._settings.expires_s * _NS_PER_S),
            "idle_heartbeat": round(self._settings.heartbeat_s * _NS_PER_S),
        }
        if not self._requested:
            self._tokens.clear()
            self._heard_at = now
        self._requested += due
        self._tokens.add(token)
        await self._client.publish(
            self._pull_subject, json.dumps(request).encode(), reply=f"{self._inbox}.{token}"
        )

    def _forget_requests(self) -> None:
        """Count nothing as asked for; what an old request still brings is taken as well."""
        self._tokens.clear()
        self._requested = 0

    async def _open_inbox(self) -> None:
        self._inbox = self._client.new_inbox()
        # The credit bounds what can be pending.
        self._subscription = await self._client.subscribe_direct(f"{self._inbox}.*", self._on_message)

    async def _close_inbox(self) -> None:
        """End the interest, after which the server drops our requests, and take what it had already sent."""
        if self._subscription is None or self._client.is_closed:
            return
        try:
            if self._client.is_connected:
                async with asyncio.timeout(_CLOSE_S):
                    await self._subscription.drain()  # type: ignore[no-untyped-call]
            else:
                await self._subscription.unsubscribe()
        except (nats.errors.Error, TimeoutError, OSError) as error:
            _LOG.info("inbox not drained", stream=self._stream, consumer=self._consumer, error=repr(error))
        finally:
            self._client.forget_direct(self._subscription)

    # receiving

    def _on_message(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if message.reply.startswith(_ACK_PREFIX):
            self._on_delivery(message)
        else:
            self._on_status(message.subject.rpartition(".")[2], message.headers or {})

    def _on_delivery(self, message: Msg) -> None:
        delivery = parse_delivery(message.reply)
        if delivery is None or (delivery.stream, delivery.consumer) != (self._stream, self._consumer):
            _LOG.error("delivery not understood", reply=message.reply, stream=self._stream)
            return
        self._unavailable_since = None
        self._requested = max(0, self._requested - 1)
        settler = PullSettler(self, message.reply, delivery)
        stored = StoredMessage(
            subject=message.subject,
            data=message.data,
            headers=message.headers or {},
            stream=delivery.stream,
            sequence=delivery.sequence,
            stored_ms=delivery.stored_ms,
            delivered_count=delivery.delivered_count,
            settler=settler,
        )
        settler.message = stored
        earlier = self._held.get(delivery.sequence)
        if earlier is not None:
            earlier.is_superseded = True  # the same message again: its newer delivery takes the place
        self._held[delivery.sequence] = settler
        self._ready.append(stored)
        self._arrived.set()
        if self._compute_due() > 0:
            self._wake.set()

    def _on_status(self, token: str, headers: dict[str, str]) -> None:
        status, description = headers.get("Status", ""), headers.get("Description", "")
        if status == "100" or token not in self._tokens:
            return
        self._tokens.discard(token)
        pending = headers.get("Nats-Pending-Messages", "")
        self._requested = max(0, self._requested - int(pending)) if pending.isdigit() else self._requested
        if not self._tokens or status == "503":
            self._requested = 0
        if status in ("404", "408") or "batch completed" in description.lower():
            self._unavailable_since = None
        elif status == "503":
            self._on_unavailable()
        else:
            self._on_refusal(status, description)
        self._wake.set()

    def _on_unavailable(self) -> None:
        """Nobody serves the consumer: either the server is starting or the consumer was never provisioned."""
        now = asyncio.get_running_loop().time()
        if self._unavailable_since is None:
            self._unavailable_since = now
        elif now - self._unavailable_since > self._settings.unavailable_s:
            self._fail(BusError(f"consumer {self._stream}.{self._consumer} is not provisioned"))
        self._not_before = now + self._settings.retry_s

    def _on_refusal(self, status: str, description: str) -> None:
        text = f"consumer {self._stream}.{self._consumer}: {status} {description}"
        if status in _FATAL_STATUS or any(word in description.lower() for word in _FATAL_DESCRIPTIONS):
            self._fail(BusError(text))
            return
        _LOG.info(
            "pull ended by the server", stream=self._stream, consumer=self._consumer, status=description
        )
        self._not_before = asyncio.get_running_loop().time() + self._settings.retry_s

    def _take(self) -> list[StoredMessage]:
        batch: list[StoredMessage] = []
        while self._ready and len(batch) < self._settings.batch_max:
            message = self._ready.popleft()
            settler = message.settler
            assert isinstance(settler, PullSettler)
            if not settler.is_superseded:
                batch.append(message)
        return batch

    async def _give_back(self) -> None:
        """Return what was not handed out; others get it at once instead of after the acknowledgement wait."""
        unread = [message for message in self._ready if self._is_current(message)]
        self._ready.clear()
        if self._client.is_closed:
            return
        try:
            for message in unread:
                await message.nak()
            if unread and self._client.is_connected:
                await pass_barrier(self._client)
        except (BusError, nats.errors.Error, OSError) as error:
            _LOG.info("not given back", stream=self._stream, count=len(unread), error=repr(error))

    def _is_current(self, message: StoredMessage) -> bool:
        return self._held.get(message.sequence) is message.settler

    async def _keep_alive(self, progress_s: float) -> None:
        while True:
            await asyncio.sleep(progress_s)
            for settler in list(self._held.values()):
                try:
                    await settler.in_progress()
                except BusError as error:
                    _LOG.info("progress not told", stream=self._stream, error=str(error))
                    break

    def _fail(self, error: BusError) -> None:
        if self._failure is None and not self._is_closed:
            self._failure = error
            self._arrived.set()
