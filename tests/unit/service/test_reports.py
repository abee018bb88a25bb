"""Reports are made one at a time in a thread of their own, for few at once, and are given up when the service stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from pocache.bus.port import CoreMessage
from pocache.protocol.errors import BackpressureError, PocacheError
from pocache.service.reports import PAUSE_S, REPORTS_MAX, SLICE_S, Pace, ReportDesk

GATE_S = 60.0


class Maker:
    """Makes reports that take until they are let go, and notes how many it makes at once."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.free = threading.Semaphore(0)
        self.at_once = self.at_once_max = 0
        self.threads: set[str] = set()

    def report(self, subject: str, data: bytes, check: Callable[[], None]) -> bytes:
        self.threads.add(threading.current_thread().name)
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        self.begun.release()
        try:
            while not self.free.acquire(timeout=0.001):
                check()
        except PocacheError as error:
            return self.refuse(subject, data, error)
        finally:
            self.at_once -= 1
        return b"report " + data

    def refuse(self, subject: str, data: bytes, error: PocacheError) -> bytes:
        return f"{error.code} {subject} ".encode() + data


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def desk(maker: Maker) -> Iterator[ReportDesk]:
    opened = ReportDesk(maker, name="test")
    yield opened
    opened.close()


def ask(desk: ReportDesk, number: int) -> asyncio.Task[bytes]:
    """Ask, with the number as the question."""
    return asyncio.get_running_loop().create_task(desk.answer(CoreMessage("q", str(number).encode())))


async def test_one_at_a_time_and_a_few_that_wait(desk: ReportDesk, maker: Maker) -> None:
    """Who comes when they are too many is refused at once; when one has gone there is room again."""
    asked = [ask(desk, number) for number in range(REPORTS_MAX)]
    await asyncio.to_thread(maker.begun.acquire, timeout=GATE_S)
    assert await ask(desk, 99) == b"E205 q 99"
    assert not any(task.done() for task in asked)
    maker.free.release()
    assert await asked[0] == b"report 0"
    asked.append(ask(desk, REPORTS_MAX))
    maker.free.release(REPORTS_MAX)
    assert await asyncio.gather(*asked) == [f"report {number}".encode() for number in range(REPORTS_MAX + 1)]
    assert maker.at_once_max == 1
    assert maker.threads == {"reports-test_0"}


async def test_a_stop_gives_up_the_one_in_hand_and_those_that_wait(desk: ReportDesk, maker: Maker) -> None:
    """Whoever asked is told, and nobody has to wait for a report to end."""
    asked = [ask(desk, number) for number in range(3)]
    await asyncio.to_thread(maker.begun.acquire, timeout=GATE_S)
    desk.stop()
    async with asyncio.timeout(GATE_S):
        assert await asyncio.gather(*asked) == [b"E205 q 0", b"E205 q 1", b"E205 q 2"]
    desk.close()


def test_it_pauses_between_slices() -> None:
    """Within one it does not: a clock that stands still never ends it."""
    now_s, pauses = 100.0, []

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now_s
            pauses.append(timeout)
            now_s += timeout or 0.0
            return self.is_set()

    stopped = Stopped()
    pace = Pace(stopped, clock_s=lambda: now_s)
    for _ in range(1_000):
        pace()
    assert pauses == []
    now_s += SLICE_S
    pace()
    pace()
    assert pauses == [PAUSE_S]
    now_s += SLICE_S * 1.01
    pace()
    assert pauses == [PAUSE_S] * 2
    stopped.set()
    with pytest.raises(BackpressureError, match="stops"):
        pace()
