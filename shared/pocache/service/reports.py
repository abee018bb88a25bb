"""Reports: answers that only read, and read so much that nothing else may wait for them.

Owns the thread in which they are made, one at a time, each from a snapshot of the service's database as it was when the
report began. The state thread goes on beside it: a report works in slices and pauses between them, because two threads
share one interpreter. A few askers wait for their turn; who comes when they are too many, or when the service stops, is
refused in a signed answer and may ask again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

import sqlalchemy as sa

from pocache.bus.port import CoreMessage
from pocache.protocol.errors import BackpressureError
from pocache.service.unit import Inbound
from pocache.wire.model import WireModel
from pocache.wire.topics import Topic

REPORTS_MAX: Final = 4
"""Askers at once, the one whose report is made among them; more are refused."""
SLICE_S: Final = 0.002
"""How long a report works before it pauses: whoever else needs the interpreter waits no longer than that."""
PAUSE_S: Final = 0.002
"""How long it pauses then. An even share: an unhurried report takes twice as long, the service keeps half."""


@dataclass(frozen=True, slots=True)
class ReportView:
    """What a report is made from: the state of one moment, which it cannot change."""

    connection: sa.Connection
    now_ms: int
    check: Callable[[], None]
    """To be called often, within a millisecond of work. Raises BackpressureError when the service stops."""


Report = Callable[[ReportView, Inbound[Any]], WireModel]


@runtime_checkable
class Reporter(Protocol):
    """A service with questions that take too long for its state thread."""

    def reports(self) -> Mapping[Topic[Any], Report]:
        """Return what it answers from a snapshot, by core NATS request; no topic of its queries."""
        ...


class ReportMaker(Protocol):
    """Who makes a report, and signs what is answered."""

    def report(self, subject: str, data: bytes, check: Callable[[], None]) -> bytes:
        """Answer a question in a signed envelope: the report, or a refusal. Called in the reports' thread."""
        ...

    def refuse(self, subject: str, data: bytes, error: BackpressureError) -> bytes:
        """Return a refusal in a signed envelope."""
        ...


class ReportDesk:
    """Takes questions on the event loop and has them answered in a thread of their own."""

    def __init__(self, maker: ReportMaker, *, name: str) -> None:
        self._maker = maker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"reports-{name}")
        self._stopped = threading.Event()
        self._asker_count = 0

    async def answer(self, message: CoreMessage) -> bytes:
        """Return the answer when it is made, or a refusal at once."""
        if self._asker_count >= REPORTS_MAX:
            error = BackpressureError(f"{self._asker_count} reports are asked for already; ask again later")
            return self._maker.refuse(message.subject, message.data, error)
        self._asker_count += 1
        try:
            work = partial(self._maker.report, message.subject, message.data, Pace(self._stopped))
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
        finally:
            self._asker_count -= 1

    def stop(self) -> None:
        """Give up the report in hand and those that wait: whoever asked is told so, within moments."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, and wait for the thread to end."""
        self.stop()
        self._thread.shutdown(wait=True)


class Pace:
    """A report's :attr:`ReportView.check`: says when to give up, and pauses when a slice of work is over."""

    def __init__(
        self,
        stopped: threading.Event,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._stopped = stopped
        self._clock_s = clock_s
        self._slice_end_s = clock_s() + SLICE_S

    def __call__(self) -> None:
        """Return at once within a slice, after a pause at its end. Raises BackpressureError when stopped."""
        now_s = self._clock_s()
        if now_s >= self._slice_end_s:
            self._stopped.wait(PAUSE_S)
            self._slice_end_s = self._clock_s() + SLICE_S
        if self._stopped.is_set():
            raise BackpressureError("the service stops; ask again when it is back")
