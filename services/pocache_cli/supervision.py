"""Keeping a local network's processes alive: whoever ends is started again, more slowly each time it fails.

Owns the pauses and what is said about them. Refuses to restart a process that says it is wrongly configured (exit
code 2): the same configuration would fail again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pocache.bus.server import EmbeddedServer
from pocache.protocol.errors import PocacheError
from pocache_cli.children import ChildFailedError

PAUSE_S: Final = 1.0
PAUSE_S_MAX: Final = 30.0
STABLE_S: Final = 60.0
"""Whoever has run this long is trusted again: its next failure counts as the first."""
EXIT_CONFIG: Final = 2
EXIT_NEVER_STARTED: Final = -1


class Supervised(Protocol):
    """What can be waited for and started again."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    async def wait(self) -> int:
        """Wait until it ends and return its exit code."""
        ...

    async def restart(self, timeout_s: float) -> None:
        """Start it again and wait until it is ready; PocacheError when it is not in time."""
        ...


@dataclass(frozen=True, slots=True)
class SupervisedServer:
    """The embedded nats-server as one of the supervised."""

    server: EmbeddedServer
    name: str = "nats-server"

    async def wait(self) -> int:
        """Wait until it ends and return its exit code."""
        code = await self.server.wait()
        return EXIT_NEVER_STARTED if code is None else code

    async def restart(self, timeout_s: float) -> None:
        """Start it on the same store and port."""
        del timeout_s  # the server has its own
        try:
            await self.server.restart()
        except PocacheError:
            await self.server.stop()
            raise


def compute_pause_s(failure_count: int) -> float:
    """Return the pause before the restart after the n-th failure in a row: doubling, bounded (seconds)."""
    return float(min(PAUSE_S_MAX, PAUSE_S * 2 ** min(failure_count - 1, 16)))


class Supervisor:
    """Restarts what ends, until told to stop."""

    def __init__(
        self,
        supervised: Sequence[Supervised],
        *,
        say: Callable[[str], None],
        ready_s: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock_s: Callable[[], float] | None = None,
    ) -> None:
        self._supervised = supervised
        self._say = say
        self._ready_s = ready_s
        self._pause = pause
        self._clock_s = clock_s

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until ``stop`` is set. Raises ChildFailedError for a process that cannot run as configured."""
        keepers = [asyncio.ensure_future(self._keep(one)) for one in self._supervised]
        stopped = asyncio.ensure_future(stop.wait())
        try:
            done, _ = await asyncio.wait({stopped, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper in done:
                    keeper.result()
        finally:
            for task in (stopped, *keepers):
                task.cancel()
            await asyncio.gather(stopped, *keepers, return_exceptions=True)

    async def _keep(self, one: Supervised) -> None:
        clock_s = self._clock_s or asyncio.get_running_loop().time
        failure_count, since_s = 0, clock_s()
        while True:
            code = await one.wait()
            if code == EXIT_CONFIG:
                raise ChildFailedError(f"{one.name} cannot run as it is configured; its log says why")
            failure_count = 1 if clock_s() - since_s >= STABLE_S else failure_count + 1
            pause_s = compute_pause_s(failure_count)
            self._say(f"{one.name} ended with code {code}; starting it again in {pause_s:g} s")
            await self._pause(pause_s)
            since_s = clock_s()
            try:
                await one.restart(self._ready_s)
            except PocacheError as error:
                self._say(str(error))
            else:
                self._say(f"{one.name} is ready again")
