"""Stopping in order: SIGTERM or SIGINT sets an event, and what does not drain in time ends the process non-zero."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

_PR_SET_PDEATHSIG: Final = 1


class DrainTimeoutError(Exception):
    """What was in hand could not be finished within the drain time."""


async def run_until_signalled(
    run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], *, drain_s: float
) -> None:
    """Run ``run(stop)`` until it ends by itself or a signal sets ``stop``; then it has ``drain_s`` seconds to end.

    Raises DrainTimeoutError after that, or whatever ``run`` raised.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    work = asyncio.ensure_future(run(stop))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            structlog.get_logger().info("draining", drain_s=drain_s)
            done, _ = await asyncio.wait({work}, timeout=drain_s)
            if not done:
                raise DrainTimeoutError(f"not finished after {drain_s:g} s")
        await work
    finally:
        stopped.cancel()
        if not work.done():  # out of time, or cancelled from outside: nothing is left running unseen
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def make_die_with_parent() -> Callable[[], None] | None:
    """Return what a child runs before its program so that the kernel ends it with its parent; None off Linux.

    The library is loaded here, before the fork: the child may not wait for a lock.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return die_with_parent
