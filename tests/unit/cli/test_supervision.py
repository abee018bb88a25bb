"""Keeping processes alive: pauses that grow and are bounded, and what is not worth another try."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from pocache.protocol.errors import BusError
from pocache_cli.children import ChildFailedError
from pocache_cli.supervision import PAUSE_S_MAX, STABLE_S, Supervisor, compute_pause_s


@dataclass
class Scripted:
    """Ends with these codes, one life after the other; then lives on."""

    name: str
    codes: list[int]
    failures: set[int] = field(default_factory=set)
    """Restarts that do not become ready, by number from 1."""
    restarts: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> int:
        if self.codes:
            return self.codes.pop(0)
        self.settled.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def restart(self, timeout_s: float) -> None:
        assert timeout_s == 5.0
        self.restarts += 1
        if self.restarts in self.failures:
            raise BusError(f"{self.name} was not ready")


class Clock:
    """Time that passes only in pauses, and as told between lives."""

    def __init__(self, life_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.life_s = life_s
        self.pauses: list[float] = []

    def read(self) -> float:
        self.now_s += self.life_s
        return self.now_s

    async def pause(self, pause_s: float) -> None:
        self.pauses.append(pause_s)


async def supervise(*scripted: Scripted, clock: Clock) -> list[str]:
    """Supervise until everybody lives on; returns what was said."""
    said: list[str] = []
    stop = asyncio.Event()
    supervisor = Supervisor(scripted, say=said.append, ready_s=5.0, pause=clock.pause, clock_s=clock.read)
    running = asyncio.ensure_future(supervisor.run(stop))

    async def wait_settled() -> None:
        for one in scripted:
            await one.settled.wait()

    settled = asyncio.ensure_future(wait_settled())
    await asyncio.wait({running, settled}, return_when=asyncio.FIRST_COMPLETED)
    settled.cancel()
    stop.set()
    await running
    return said


async def test_one_that_dies_is_started_again() -> None:
    clock = Clock()
    child, other = Scripted("router", [-9]), Scripted("ledger", [])
    assert await supervise(child, other, clock=clock) == [
        "router ended with code -9; starting it again in 1 s",
        "router is ready again",
    ]
    assert (child.restarts, other.restarts, clock.pauses) == (1, 0, [1.0])


async def test_pauses_grow_and_are_bounded() -> None:
    clock = Clock()
    await supervise(Scripted("router", [1] * 8), clock=clock)
    assert clock.pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert compute_pause_s(10**6) == PAUSE_S_MAX


async def test_who_has_run_long_is_trusted_again() -> None:
    clock = Clock(life_s=STABLE_S)
    await supervise(Scripted("router", [1, 1, 1]), clock=clock)
    assert clock.pauses == [1, 1, 1]


async def test_one_that_does_not_come_up_is_tried_again() -> None:
    clock = Clock()
    child = Scripted("router", [1, -9], failures={1})
    assert await supervise(child, clock=clock) == [
        "router ended with code 1; starting it again in 1 s",
        "router was not ready",
        "router ended with code -9; starting it again in 2 s",
        "router is ready again",
    ]


async def test_a_wrong_configuration_ends_everything() -> None:
    """Exit code 2: the same configuration would fail again."""
    clock = Clock()
    child, other = Scripted("router", [2]), Scripted("ledger", [])
    with pytest.raises(ChildFailedError, match="router cannot run as it is configured"):
        await supervise(child, other, clock=clock)
    assert clock.pauses == []


async def test_stopping_restarts_nobody() -> None:
    stop = asyncio.Event()
    stop.set()
    child = Scripted("router", [])
    await Supervisor([child], say=print, ready_s=5.0).run(stop)
    assert child.restarts == 0
