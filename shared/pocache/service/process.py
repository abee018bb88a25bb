"""A service's process: pull, apply in one thread, publish the outbox, answer queries and reports, stop in order.

Effects commit before a message is acknowledged and before anything they announce is published; a crash between any two
steps is repaired by redelivery and by the outbox. On SIGTERM the process stops pulling, finishes the batch in
hand, gives up its reports, empties its outbox and leaves; it exits non-zero when that takes longer than the drain time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from functools import partial
from typing import Final, TypeVar

import structlog

from pocache.bus.port import Bus, CoreMessage, Outgoing, StoredMessage
from pocache.protocol.errors import BusError, PocacheError
from pocache.runtime.metrics import Metrics
from pocache.runtime.tracing import Tracer
from pocache.service.dispatch import Decision, Delivery, Dispatcher
from pocache.service.outbox import OutboxRow
from pocache.service.reports import ReportDesk
from pocache.service.unit import Unit

CREDIT: Final = 256
BATCH_MAX: Final = 64
OUTBOX_BATCH_MAX: Final = 256
ASIDE_MAX: Final = 10_000
"""Refused messages that are passed over at once; behind so many, the rest waits as well."""
PROGRESS_S: Final = 1.5
RETRY_DELAY_S: Final = 0.5
FORGET_S: Final = 0.5
"""How long rows that the bus has stored lie in an idle service's database: the next transaction deletes them sooner."""
OBSERVE_S: Final = 30.0
"""How often the database is looked at for its gauges: sums over it take a moment."""

T = TypeVar("T")


class ServiceProcess:
    """Runs one dispatcher on a bus until told to stop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        bus: Bus,
        *,
        consumers: Sequence[tuple[str, str]],
        query_subjects: Sequence[str] = (),
        report_subjects: Sequence[str] = (),
        name: str,
    ) -> None:
        self._dispatcher = dispatcher
        self._metrics = dispatcher.metrics
        self._bus = bus
        self._consumers = consumers
        self._query_subjects = query_subjects
        self._report_subjects = report_subjects
        self._reports = ReportDesk(dispatcher, name=name)
        self._outbox_filled = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"state-{name}")
        self._log = structlog.get_logger().bind(service=name)
        self.is_ready = False

    @property
    def tracer(self) -> Tracer:
        """Return what is told of the work on jobs."""
        return self._dispatcher.tracer

    @property
    def metrics(self) -> Metrics | None:
        """Return what is counted."""
        return self._metrics

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then drain. Raises what ended it otherwise."""
        try:
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                closed = group.create_task(self._bus.wait_closed())
                publisher_stop = asyncio.Event()
                publisher = group.create_task(self._publish_outbox(publisher_stop))
                for subject in self._query_subjects:
                    await stack.enter_async_context(self._bus.serve_requests(subject, self._answer))
                for subject in self._report_subjects:
                    await stack.enter_async_context(self._bus.serve_requests(subject, self._reports.answer))
                stack.callback(self._reports.stop)  # before those above wait for what they have taken
                pullers = [
                    group.create_task(self._consume(stream, consumer, stop))
                    for stream, consumer in self._consumers
                ]
                observing = group.create_task(self._observe()) if self._metrics is not None else None
                self.is_ready = True
                await stop.wait()
                self._reports.stop()
                if observing is not None:
                    observing.cancel()
                self.is_ready = False
                if pullers:
                    await asyncio.wait(pullers)
                publisher_stop.set()
                self._outbox_filled.set()
                await publisher
                closed.cancel()
        finally:
            self.is_ready = False
            self._reports.close()
            self._thread.shutdown(wait=True)

    async def submit(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the state thread, then publish what it left in the outbox."""
        result = await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
        self._outbox_filled.set()
        return result

    async def _consume(self, stream: str, consumer: str, stop: asyncio.Event) -> None:
        async with self._bus.pull(
            stream, consumer, credit=CREDIT, batch_max=BATCH_MAX, progress_s=PROGRESS_S
        ) as batches:
            async for batch in iterate_until(batches, stop):
                deliveries = [
                    Delivery(one.subject, one.data, one.stream, one.sequence, one.stored_ms, one.headers)
                    for one in batch
                ]
                with self._timed():
                    decisions = await self.submit(lambda work=deliveries: self._dispatcher.apply(work))  # type: ignore[misc]
                for message, decision in zip(batch, decisions, strict=True):
                    await _settle(message, decision)

    async def _answer(self, message: CoreMessage) -> bytes:
        return await self.submit(lambda: self._dispatcher.answer(message.subject, message.data))

    async def transact(self, work: Callable[[Unit], T]) -> T:
        """Run ``work`` as one durable transaction in the state thread; what it says is published afterwards."""
        return await self.submit(lambda: self._dispatcher.transact(work))

    async def _publish_outbox(self, stop: asyncio.Event) -> None:
        """Publish what is decided, in order, until nothing is left and ``stop`` is set.

        What a full stream refuses waits aside, so that it does not hold up what goes elsewhere, and is tried again.
        """
        outbox = self._dispatcher.outbox
        aside: set[int] = set()
        while True:
            self._outbox_filled.clear()
            if self._metrics is not None:
                self._metrics.outbox_rows.set(len(outbox))
            rows = outbox.take(OUTBOX_BATCH_MAX) if len(aside) < ASIDE_MAX else []
            if rows:
                stored = await self._publish(rows)
                outbox.confirm(stored)
                if len(stored) < len(rows):
                    aside.update({row.number for row in rows} - set(stored))
            elif aside:
                if stop.is_set() and not self._bus.is_connected:
                    raise BusError(
                        "the bus went away with messages in the outbox; they are sent at the next start"
                    )
                await asyncio.sleep(RETRY_DELAY_S)
                await self._in_thread(partial(outbox.catch_up, min(aside)))
                aside.clear()
            elif outbox.is_behind:
                await self._in_thread(outbox.catch_up)
            elif stop.is_set():
                await self._in_thread(self._forget_confirmed)
                return
            elif not await self._wait_filled():
                await self._in_thread(self._forget_confirmed)

    async def _wait_filled(self) -> bool:
        """Wait for more to publish; answers False when none came for a while and rows that are done lie about."""
        try:
            async with asyncio.timeout(FORGET_S if self._dispatcher.outbox.has_confirmed else None):
                await self._outbox_filled.wait()
        except TimeoutError:
            return False
        return True

    def _forget_confirmed(self) -> None:
        with self._dispatcher.outbox.begin():
            """What the bus has stored is deleted with each transaction: here is one of its own."""

    async def _publish(self, rows: Sequence[OutboxRow]) -> list[int]:
        """Publish rows together and return the numbers of those that the bus has stored."""
        take_headers = self._dispatcher.tracer.take_headers
        outcomes = await self._bus.publish_many(
            [Outgoing(row.subject, row.data, row.message_id, take_headers(row.message_id)) for row in rows]
        )
        published = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, int):
                published.append(row.number)
                continue
            if self._metrics is not None:
                self._metrics.publish_delays.inc()
            self._log.warning("publish_delayed", subject=row.subject, code=outcome.code, reason=str(outcome))
        return published

    def _timed(self) -> AbstractContextManager[object]:
        return nullcontext() if self._metrics is None else self._metrics.apply_s.time()

    async def _observe(self) -> None:
        """Count what lies in the database, now and then, until cancelled."""
        while True:
            await self._in_thread(self._dispatcher.observe_state)
            await asyncio.sleep(OBSERVE_S)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))


async def iterate_until(iterator: AsyncIterator[T], stop: asyncio.Event) -> AsyncIterator[T]:
    """Yield what ``iterator`` gives until ``stop`` is set; what is awaited then is given up, nothing in hand is."""
    waiter = asyncio.ensure_future(stop.wait())
    following: asyncio.Future[T] | None = None
    try:
        while not stop.is_set():
            following = asyncio.ensure_future(_next(iterator))
            await asyncio.wait({following, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                yield following.result()
            except StopAsyncIteration:
                return
    finally:
        waiter.cancel()
        if following is not None and not following.done():  # also when the consumer itself is cancelled
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _next(iterator: AsyncIterator[T]) -> T:
    return await iterator.__anext__()


async def _settle(message: StoredMessage, decision: Decision) -> None:
    settle: Awaitable[None]
    if decision.action == "ack":
        settle = message.ack()
    elif decision.action == "nak":
        settle = message.nak(decision.delay_s)
    elif decision.action == "term":
        settle = message.term(decision.reason)
    else:
        raise HaltedError(f"stopped at {message.stream} {message.sequence}: {decision.reason}")
    await settle


class HaltedError(PocacheError):
    """The service stopped itself rather than skip a message of a stream that carries money."""

    code = "E802"
