"""Filling the read model from the bus, and keeping it filled: reads by position, wakes when something is published.

What is heard on core NATS is only the reason to read; what counts is what the streams hold, in their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from pocache.bus.port import Bus, CoreMessage, StreamRecord
from pocache.protocol.errors import BusError
from pocache.readmodel.model import ReadModel
from pocache.wire import topics as t
from pocache.wire.topics import Stream

_LOG = structlog.get_logger(__name__)

BATCH_MAX: Final = 256
RETRY_S: Final = 2.0
"""After a failure, and where nothing was heard: a wake-up that was lost costs no more than this."""
GATHER_S: Final = 0.2
"""Between one look and the next: what one job says comes in bursts, and each look costs a transaction."""

STREAMS: Final = (Stream.BEACON.value, Stream.RECORD.value)
"""Rounds first: what the record says may rest on one."""
_WAKING: Final = (t.JOB_EVENT, t.AUDIT_OPENED, t.OUTCOME_DECIDED, t.PAYOUT_SETTLED, t.BEACON_ROUND)


async def catch_up(model: ReadModel, bus: Bus, *, report: Callable[[int], None] = lambda _count: None) -> int:
    """Read everything that the streams hold beyond what is known, and return how many messages that was.

    Raises BusError; what was read until then is kept.
    """
    count = 0
    for stream in STREAMS:
        cursor = await asyncio.to_thread(model.get_cursor, stream)
        last = await bus.get_last(stream, ">")
        if cursor > (0 if last is None else last.sequence):
            _LOG.warning("the stream has begun anew", stream=stream, cursor=cursor)
            await asyncio.to_thread(model.empty)
            return await catch_up(model, bus, report=report)
        batch: list[StreamRecord] = []
        async for record in bus.read(stream, start_sequence=cursor + 1):
            batch.append(record)
            if len(batch) >= BATCH_MAX:
                count += await asyncio.to_thread(model.apply, batch)
                report(count)
                batch = []
        if batch:
            count += await asyncio.to_thread(model.apply, batch)
            report(count)
    return count


async def follow(model: ReadModel, bus: Bus, *, changed: Callable[[], None] = lambda: None) -> None:
    """Keep the read model up with the bus until cancelled; ``changed`` is called after each batch of news.

    A bus that is away is waited for.
    """
    awake = asyncio.Event()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for topic in _WAKING:
            heard = await stack.enter_async_context(bus.subscribe_core(topic.filter()))
            group.create_task(_wake(heard, awake))
        while True:
            awake.clear()
            is_behind = False
            try:
                is_behind = bool(await catch_up(model, bus, report=lambda _count: changed()))
            except BusError as error:
                _LOG.warning("the record cannot be read", error=str(error))
                awake.clear()
            if not is_behind:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await awake.wait()
            await asyncio.sleep(GATHER_S)


async def _wake(heard: AsyncIterator[CoreMessage], awake: asyncio.Event) -> None:
    async for _message in heard:
        awake.set()
