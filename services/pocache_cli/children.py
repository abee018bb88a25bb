"""Child processes of a local network: started, waited for until ready, restarted, ended with their parent.

A child says that it is ready by the log line ``{"event": "ready"}`` on standard error, which goes to a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pocache.protocol.errors import ConfigError, PocacheError
from pocache.runtime.lifecycle import make_die_with_parent

_LINE_BYTES_MAX: Final = 1 << 20
STOP_S: Final = 30.0


class ChildFailedError(PocacheError):
    """A child process ended, or was not ready in time."""

    code = "E803"


class Child:
    """One process of the network, by the module that is its entry point."""

    def __init__(self, name: str, module: str, environ: Mapping[str, str], log_file: Path) -> None:
        self.name = name
        self._module = module
        self._environ = environ
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._last_line = ""

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def exit_code(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        """Start it; :meth:`wait_ready` waits for it."""
        assert self.pid is None, f"{self.name} runs already"
        self._ready = asyncio.Event()
        self._last_line = ""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            env={**_get_neutral_environment(), **self._environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the children in order
            preexec_fn=make_die_with_parent(),
            limit=_LINE_BYTES_MAX,
        )
        self._reader = asyncio.create_task(self._read_log(self._process))

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until it says that it is ready. Raises ChildFailedError with its last words."""
        assert self._process is not None
        ready = asyncio.ensure_future(self._ready.wait())
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({ready, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                what = f"was not ready after {timeout_s:g} s"
                if ended.done():
                    what = (
                        f"ended with code {await self.wait()}"  # with its log read to the end: its last words
                    )
                raise ChildFailedError(f"{self.name} {what}: {self._last_line[:500]} (log: {self._log_file})")
        finally:
            ready.cancel()
            ended.cancel()

    async def wait(self) -> int:
        """Wait until it ends and return its exit code."""
        assert self._process is not None
        code = await self._process.wait()
        if self._reader is not None:
            await asyncio.shield(self._reader)  # who waits may be cancelled; the log is read on
        return code

    async def restart(self, timeout_s: float) -> None:
        """Start it again, whatever it is doing, and wait until it is ready.

        Raises ChildFailedError when it is not; it does not run then.
        """
        await self.kill()
        await self.start()
        try:
            await self.wait_ready(timeout_s)
        except ChildFailedError:
            await self.kill()
            raise

    async def stop(self) -> int | None:
        """End it in order, by force when that takes too long; returns its exit code."""
        process = self._process
        if process is None:
            return None
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
        return await self.wait()

    async def kill(self) -> None:
        """End it at once, as a crash would (SIGKILL)."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self.wait()

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with self._log_file.open("ab") as log:
            while True:
                try:
                    line = await process.stderr.readline()
                except ValueError:
                    continue  # a line beyond the limit was dropped
                if not line:
                    return
                log.write(line)
                log.flush()
                self._last_line = line.decode(errors="replace").strip()
                if _is_ready_line(line):
                    self._ready.set()


def pick_python_environment() -> dict[str, str]:
    """Return what every child gets besides its own settings: where this project's packages are."""
    roots = [str(Path(__file__).resolve().parents[1])]
    import pocache

    if pocache.__file__ is None:
        raise ConfigError("the package pocache has no file: install it as a normal package")
    roots.append(str(Path(pocache.__file__).resolve().parents[1]))
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([*dict.fromkeys(roots), *([known] if known else [])])}


def _is_ready_line(line: bytes) -> bool:
    if b'"ready"' not in line:
        return False
    try:
        entry = json.loads(line)
    except ValueError:
        return False  # a child may print anything
    return isinstance(entry, dict) and entry.get("event") == "ready"


def _get_neutral_environment() -> dict[str, str]:
    """Return this process's environment without its own settings: one port or database is not for all children."""
    return {name: value for name, value in os.environ.items() if not name.startswith("POCACHE_")}
