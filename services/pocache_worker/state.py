"""One identity's state as its tasks use it: transactions in the state thread, messages out of them, and a bell.

Everything that is decided and everything that is said about it commit together, in the one thread that also applies
what comes in; the bell tells waiting tasks which table to look at again, never what it says.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final, TypeVar

import sqlalchemy as sa

from pocache.protocol.ids import NetworkId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.runtime.metrics import Metrics
from pocache.runtime.tracing import Tracer
from pocache.service.process import ServiceProcess
from pocache.service.unit import Unit
from pocache.storage.prepared import Prepared
from pocache.wire.envelope import seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Topic
from pocache_worker.tables import SENT

M = TypeVar("M", bound=WireModel)
T = TypeVar("T")

_GET_SENT: Final = Prepared(sa.select(SENT.c.kind).where(SENT.c.message_hash == sa.bindparam("message_hash")))
_ADD_SENT: Final = Prepared(
    sa.insert(SENT).values({column: sa.bindparam(column.name) for column in SENT.columns})
)


class WorkerState:
    """Transactions of one identity, from its asyncio tasks."""

    def __init__(
        self,
        process: ServiceProcess,
        *,
        key: SigningKey,
        network: NetworkId,
        clock_ms: Callable[[], int],
    ) -> None:
        self._process = process
        self._key = key
        self._network = network
        self._clock_ms = clock_ms

    @property
    def tracer(self) -> Tracer:
        """Return what is told of the work on jobs."""
        return self._process.tracer

    @property
    def metrics(self) -> Metrics | None:
        """Return what is counted."""
        return self._process.metrics

    @property
    def participant(self) -> ParticipantId:
        """Whose state it is."""
        return self._key.participant_id

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds."""
        return self._clock_ms()

    def seal(self, body: WireModel) -> bytes:
        """Return ``body`` in a signed envelope, for what is sent outside any transaction."""
        return seal(self._key, self._network, body)

    async def transact(self, work: Callable[[Unit], T]) -> T:
        """Run ``work`` as one durable transaction in the state thread; what it emits is published afterwards."""
        return await self._process.transact(work)


class News(Enum):
    """What a waiting task may have to look at again."""

    LEASES = auto()
    CANCELLATIONS = auto()
    OPENINGS = auto()
    REMOVALS = auto()


class Bell:
    """Wakes who listens for one kind of news; rung from any thread, listened to on one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: dict[News, set[asyncio.Event]] = {news: set() for news in News}
        self._counts: dict[News, int] = dict.fromkeys(News, 0)

    def ring(self, *news: News) -> None:
        """Wake the listeners, of all news unless named. What rang inside a transaction is visible to those begun afterwards."""
        self._loop.call_soon_threadsafe(self._set, news or tuple(News))

    def get_count(self, news: News) -> int:
        """Return how often it rang for this: who compares sees whether it rang since, without having listened."""
        return self._counts[news]

    @contextmanager
    def listen(self, news: News) -> Iterator[asyncio.Event]:
        """Yield an event that is set at every ring for this: clear it, look, then wait for it."""
        event = asyncio.Event()
        self._events[news].add(event)
        try:
            yield event
        finally:
            self._events[news].discard(event)

    def _set(self, news: Iterable[News]) -> None:
        for one in news:
            self._counts[one] += 1
            for event in self._events[one]:
                event.set()


def send(unit: Unit, topic: Topic[M], body: M, *, job_id: bytes, attempt: int, **tokens: str | bytes) -> None:
    """Emit a message about a job and remember its hash, so that a refusal of it is understood."""
    message_hash = hashlib.sha256(unit.emit_signed(topic, body, **tokens)).digest()
    if _GET_SENT.first(unit.connection, message_hash=message_hash) is None:
        _ADD_SENT.run(
            unit.connection,
            message_hash=message_hash,
            kind=topic.model.kind,
            job_id=job_id,
            attempt=attempt,
        )


async def wait_event(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until ``event`` is set; answers False when that takes longer than ``timeout_s`` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def raise_if_cancelled() -> None:
    """End the current task if it was cancelled: the NATS client swallows a cancellation while it (un)subscribes."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
