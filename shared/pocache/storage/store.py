"""One service's durable state: an SQL database in which a message's effects and its answers commit together.

SQLite (WAL, synchronous=FULL) is the embedded default, PostgreSQL (``postgresql+psycopg://``) the one for production:
one schema in SQLAlchemy Core, one contract suite for both. Two tables belong to every service: ``applied`` remembers
which envelopes had their effect, ``outbox`` holds what must still be published.

Refuses a database written by another schema version or with tables that cannot be completed
(``pocache.storage.schema``), a second writer while one is at work, and a PostgreSQL server that does not sync what it
has acknowledged. Used from one thread, but for :meth:`Store.snapshot`: a service's state has one writer. Not covered: two
machines on one SQLite file, over a network file system that keeps no locks.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import StaticPool

from pocache.protocol.errors import ConfigError, PocacheError
from pocache.storage.prepared import Prepared
from pocache.storage.rows import upsert
from pocache.storage.schema import WHAT_TO_DO, prepare_tables
from pocache.storage.snapshot import Snapshots, is_in_memory

SCHEMA_VERSION: Final = 1
WRITER_WAIT_S: Final = 5.0
"""How long a process waits for the writer before it to be gone: a killed one's server session lives a moment longer."""

_BUSY_TIMEOUT_MS: Final = 10_000
_WRITER_LOCK: Final = int.from_bytes(b"pocache\x01", "big")
"""The advisory lock, one per PostgreSQL database, that its only writer holds for as long as it is connected."""
_LOCK_NOT_AVAILABLE: Final = "55P03"
_PG_DISK_FULL: Final = "53100"
_KEEPALIVES: Final = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
"""The server's: the session of a machine that vanished ends, and its lock with it."""

BASE_METADATA: Final = sa.MetaData()

APPLIED: Final = sa.Table(
    "applied",
    BASE_METADATA,
    sa.Column("envelope_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("stream", sa.String(32), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    comment="Envelopes that have had their effect, and the stream position that carried them.",
)

OUTBOX: Final = sa.Table(
    "outbox",
    BASE_METADATA,
    # SQLite numbers rows of an INTEGER key only, and that one has 64 bits.
    sa.Column(
        "number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True
    ),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("message_id", sa.String(64), nullable=False),
    sqlite_autoincrement=True,
    comment="What was decided and must still be published, in order.",
)

META: Final = sa.Table(
    "meta",
    BASE_METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    comment="Counters and settings of the service itself.",
)

ROUNDS: Final = sa.Table(
    "rounds",
    BASE_METADATA,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("randomness", sa.LargeBinary(32), nullable=False),
    comment="Beacon rounds that this service has verified itself.",
)

_BEGIN: Final = Prepared(sa.text("BEGIN IMMEDIATE"))
_GET_META: Final = Prepared(sa.select(META.c.value).where(META.c.name == sa.bindparam("name")))

Prepare = Callable[[sa.Connection], None]
"""Brings a database to the schema that a service needs, or raises ConfigError saying how to."""


class Store:
    """An open database with this project's tables and a service's own.

    ``prepare`` makes or checks the schema in place of creating what is missing, for a service with migrations.
    """

    def __init__(
        self,
        url: str,
        *metadatas: sa.MetaData,
        prepare: Prepare | None = None,
        writer_wait_s: float | None = None,
    ) -> None:
        with ExitStack() as stack:  # what fails lets go of its lock
            self._engine = _create_engine(
                stack, url, WRITER_WAIT_S if writer_wait_s is None else writer_wait_s
            )
            try:
                # One for all transactions, as there is one writer: to fetch it for each costs more than a small one.
                self._connection = stack.enter_context(self._engine.connect())
                self._snapshots = Snapshots(
                    self._connection, busy_timeout_ms=_BUSY_TIMEOUT_MS, options=_KEEPALIVES
                )
                self._writing = self._snapshots.writing or nullcontext()
                with self.begin() as connection:
                    if prepare is not None:
                        prepare(connection)
                        self._verify_version(connection)
                    else:
                        # The version first: tables of another one are not to be completed.
                        BASE_METADATA.create_all(connection, tables=[META])
                        self._verify_version(connection)
                        prepare_tables(connection, (BASE_METADATA, *metadatas), shown=self._shown)
            except sa.exc.OperationalError as error:
                raise ConfigError(f"cannot open the database {self._shown}: {error.orig}") from error
            self._stack = stack.pop_all()

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """One write transaction: all of it is durable when the block ends, none of it when it raises.

        Raises DiskFullError when there is no room for it.
        """
        try:
            with self._writing, self._connection.begin():
                yield self._connection
        except sa.exc.OperationalError as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"no room for {self._shown} ({error.orig}): make room and start the service again; nothing that it "
                    "did not write was acknowledged, and it goes on where it was"
                ) from error
            raise

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """The committed state of one moment, in any thread, to read for as long as it takes while the writer goes on.

        On a connection of its own that cannot write; of a database in memory, a copy. Not inside a transaction of this
        thread's. Raises BackpressureError while another snapshot is open.
        """
        with self._snapshots.open() as connection:
            yield connection

    @property
    def _shown(self) -> str:
        return self._engine.url.render_as_string()

    def close(self) -> None:
        """Close every connection, and let the next writer in."""
        self._stack.close()

    def _verify_version(self, connection: sa.Connection) -> None:
        found = get_meta(connection, "schema_version")
        if found is None:
            set_meta(connection, "schema_version", str(SCHEMA_VERSION))
        elif found != str(SCHEMA_VERSION):
            raise ConfigError(
                f"the database {self._shown} has schema version {found}, this release writes {SCHEMA_VERSION}: {WHAT_TO_DO}"
            )


class DiskFullError(PocacheError):
    """The database cannot grow. The process ends rather than go on without writing; it may be started again."""

    code = "E804"


def is_disk_full(error: sa.exc.OperationalError) -> bool:
    """Whether a database failed for want of room, as far as its driver tells."""
    cause = error.orig
    if getattr(cause, "sqlstate", None) == _PG_DISK_FULL:
        return True
    # A write that fails for another reason than room is an I/O error to SQLite; beyond a quota it is one as well.
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def get_meta(connection: sa.Connection, name: str) -> str | None:
    """Return a setting, None when it was never set."""
    value: str | None = _GET_META.scalar(connection, name=name)
    return value


def set_meta(connection: sa.Connection, name: str, value: str) -> None:
    """Set a setting."""
    upsert(connection, META, {"name": name}, {"value": value})


def _create_engine(stack: ExitStack, url: str, writer_wait_s: float) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigError(f"not a database URL: {error}") from error
    if parsed.get_backend_name() == "sqlite":
        if not is_in_memory(parsed):
            _lock_file(stack, str(parsed.database))
        engine = _create_sqlite(parsed)
    elif parsed.drivername == "postgresql+psycopg":
        engine = _create_postgres(parsed, writer_wait_s)
    else:
        raise ConfigError(
            f"{parsed.drivername} is not supported: use sqlite:///FILE or postgresql+psycopg://HOST/NAME"
        )
    stack.callback(engine.dispose)
    return engine


def _lock_file(stack: ExitStack, database: str) -> None:
    """Hold the writer's lock of a SQLite file until ``stack`` closes; the kernel lets it go with its process."""
    try:
        file = stack.enter_context(open(f"{database}.writer", "ab"))  # noqa: PTH123, SIM115 - the stack closes it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another process writes to {database}: stop it first, a database has one writer"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot open the database {database}: {error}") from error


def _create_sqlite(url: sa.URL) -> sa.Engine:
    # One connection, shared: a service's state has one writer, and SQLite one lock.
    engine = sa.create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        # The driver's own transaction handling breaks savepoints; SQLAlchemy's BEGIN below takes its place.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        _BEGIN.run(connection)

    return engine


def _create_postgres(url: sa.URL, writer_wait_s: float) -> sa.Engine:
    try:
        # One connection, and with it the writer's lock: a connection that breaks takes the lock with it, and the next
        # one has to win it again before it writes.
        engine = sa.create_engine(
            url, poolclass=StaticPool, isolation_level="SERIALIZABLE", connect_args={"options": _KEEPALIVES}
        )
    except ModuleNotFoundError as error:
        raise ConfigError(f"PostgreSQL needs {error.name}: install proof-of-cache[postgres]") from error

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        try:
            _configure_writer(dbapi_connection, url.render_as_string(), writer_wait_s)
        except BaseException:
            dbapi_connection.close()
            raise

    return engine


def _configure_writer(dbapi_connection: Any, shown: str, writer_wait_s: float) -> None:
    """Make a session durable, and win the writer's lock for as long as it lasts."""
    dbapi_connection.autocommit = True  # what is set here is for the session, and outside of any transaction
    with dbapi_connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
        if cursor.execute("SHOW fsync").fetchone() != ("on",):
            raise ConfigError(f"{shown} runs with fsync off: what it acknowledges can be lost; turn it on")
        cursor.execute(f"SET lock_timeout = {max(1, int(writer_wait_s * 1_000))}")
        try:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_WRITER_LOCK,))
        except Exception as error:
            if getattr(error, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            raise ConfigError(
                f"another process writes to {shown}: stop it first, a database has one writer"
            ) from error
        cursor.execute("SET lock_timeout = 0")
    dbapi_connection.autocommit = False
