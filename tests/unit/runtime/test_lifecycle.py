"""Stopping in order: a signal asks, the work drains, and what does not drain is ended."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from pocache.runtime.lifecycle import DrainTimeoutError, run_until_signalled

LONG_S = 60.0


def signal_soon(number: signal.Signals) -> None:
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_and_the_work_drains(number: signal.Signals) -> None:
    done: list[str] = []

    async def run(stop: asyncio.Event) -> None:
        signal_soon(number)
        await stop.wait()
        await asyncio.sleep(0)
        done.append("drained")

    await run_until_signalled(run, drain_s=LONG_S)
    assert done == ["drained"]


async def test_what_does_not_drain_is_ended() -> None:
    """And says so by an error: the process must not exit as if all were well."""
    ended: list[str] = []

    async def run(stop: asyncio.Event) -> None:
        signal_soon(signal.SIGTERM)
        await stop.wait()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(DrainTimeoutError, match=r"0\.01 s"):
        await run_until_signalled(run, drain_s=0.01)
    assert ended == ["cancelled"]


async def test_work_that_ends_by_itself_ends_it() -> None:
    async def run(_stop: asyncio.Event) -> None:
        await asyncio.sleep(0)

    await run_until_signalled(run, drain_s=LONG_S)


async def test_an_error_comes_out_as_it_is() -> None:
    async def fail_at_once(_stop: asyncio.Event) -> None:
        raise LookupError("at once")

    async def fail_while_draining(stop: asyncio.Event) -> None:
        signal_soon(signal.SIGTERM)
        await stop.wait()
        raise LookupError("while draining")

    for run in (fail_at_once, fail_while_draining):
        with pytest.raises(LookupError):
            await run_until_signalled(run, drain_s=LONG_S)


async def test_cancelling_it_ends_the_work() -> None:
    """Nothing is left running when the caller itself is cancelled."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def run(_stop: asyncio.Event) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    outer = asyncio.ensure_future(run_until_signalled(run, drain_s=LONG_S))
    await started.wait()
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert ended.is_set()


async def test_signals_mean_what_they_meant_before_again() -> None:
    async def run(_stop: asyncio.Event) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL

    await run_until_signalled(run, drain_s=LONG_S)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
