"""Core NATS for the bus adapter: listening and answering outside any stream, at most once, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Self

import nats.errors
import structlog

from pocache.bus.barrier import pass_barrier
from pocache.bus.port import CoreMessage, RequestHandler
from pocache.protocol.errors import BusError, PocacheError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

_LOG = structlog.get_logger(__name__)

_QUEUE_GROUP: Final = "servers"


class CoreSubscription:
    """An async iterator over a subject; what arrives while ``pending_max`` messages are unread is dropped."""

    def __init__(self, client: Client, subject: str, pending_max: int) -> None:
        assert pending_max >= 1
        self._client = client
        self._subject = subject
        self._unread: asyncio.Queue[CoreMessage | None] = asyncio.Queue()
        self._pending_max = pending_max
        self._dropped_count = 0
        self._is_lost = False
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        """Subscribe, and return when the server knows it: what is published from now on is heard."""
        try:
            self._subscription = await self._client.subscribe(self._subject, cb=self._on_message)
            await pass_barrier(self._client)
        except nats.errors.Error as error:
            raise BusError(f"{self._subject}: {error}") from error

    async def close(self) -> None:
        """End the subscription; what is unread is dropped."""
        if self._subscription is not None and not self._client.is_closed:
            await _unsubscribe(self._subscription)

    def handle_closed(self) -> None:
        """End the iteration with an error: silence would look like a quiet subject."""
        self._is_lost = True
        self._unread.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CoreMessage:
        message = None if self._is_lost and self._unread.empty() else await self._unread.get()
        if message is None:
            raise BusError(f"{self._subject}: the connection to the bus is closed")
        return message

    async def _on_message(self, message: Msg) -> None:
        if self._unread.qsize() >= self._pending_max:
            self._dropped_count += 1
            if self._dropped_count == 1 or self._dropped_count % self._pending_max == 0:
                _LOG.warning("listener too slow", subject=self._subject, dropped=self._dropped_count)
            return
        self._unread.put_nowait(CoreMessage(message.subject, message.data))


@asynccontextmanager
async def serve(
    client: Client, subject: str, handler: RequestHandler, concurrency: int, failure_header: str
) -> AsyncIterator[None]:
    """Answer requests on ``subject`` while the context lasts; on exit, finish those that were received."""
    free = asyncio.Semaphore(concurrency)
    running: set[asyncio.Task[None]] = set()

    async def answer(message: Msg) -> None:
        data, headers = b"", None
        try:
            data = await handler(CoreMessage(message.subject, message.data))
        except PocacheError as error:
            headers = {failure_header: f"{error.code} {type(error).__name__}"}
            _LOG.warning("request failed", subject=message.subject, code=error.code, error=str(error))
        except Exception:  # noqa: BLE001  the boundary of a request's task: the service goes on, the requester is told
            headers = {failure_header: "E000 internal error"}
            _LOG.exception("request failed", subject=message.subject)
        finally:
            free.release()
        try:
            if message.reply:
                await client.publish(message.reply, data, headers=headers)
        except nats.errors.Error as error:
            _LOG.warning("answer not sent", subject=message.subject, error=repr(error))

    async def accept(message: Msg) -> None:
        await free.acquire()
        task = asyncio.get_running_loop().create_task(answer(message))
        running.add(task)
        task.add_done_callback(running.discard)

    try:
        subscription = await client.subscribe(subject, queue=_QUEUE_GROUP, cb=accept)
        await pass_barrier(client)
    except nats.errors.Error as error:
        raise BusError(f"{subject}: {error}") from error
    try:
        yield
    finally:
        if not client.is_closed:
            await _unsubscribe(subscription)
        await asyncio.gather(*running, return_exceptions=True)


async def _unsubscribe(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except nats.errors.Error as error:
        _LOG.info("not unsubscribed", subject=subscription.subject, error=repr(error))
