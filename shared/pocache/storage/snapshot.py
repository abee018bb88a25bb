"""A database as it was at one moment, read beside the writer: for what takes too long to stand in the writer's way.

Owns a second connection, opened for one reader and closed after it, on which nothing can be written. SQLite (WAL) and
PostgreSQL (repeatable read) let the writer commit meanwhile, and the reader sees none of it. A database in memory is its
one connection's alone: there the reader is given a copy, made between two of the writer's transactions.

Refuses a second reader while one is at work: each one keeps the database from throwing away what the writer has replaced
(SQLite's WAL grows until the reader is done, PostgreSQL's vacuum waits for it). The writer's lock is not touched.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool, StaticPool

from pocache.protocol.errors import BackpressureError
from pocache.storage.prepared import Prepared

_BEGIN: Final = Prepared(sa.text("BEGIN"))
_FIX: Final = {
    # Both databases take their snapshot with a transaction's first statement that reads, not with its BEGIN.
    "sqlite": Prepared(sa.text("SELECT count(*) FROM sqlite_master")),
    "postgresql": Prepared(sa.text("SELECT 1")),
}


class Snapshots:
    """Opens snapshots of one writer's database, one at a time."""

    def __init__(self, writer: sa.Connection, *, busy_timeout_ms: int, options: str) -> None:
        """Keep whose database it is; ``options`` are those of a PostgreSQL session."""
        self._writer = writer
        self._busy_timeout_ms = busy_timeout_ms
        self._options = options
        self._reading = threading.Lock()
        self.writing = threading.RLock() if is_in_memory(writer.engine.url) else None
        """Held by each transaction of a database in memory, which can be copied only between two of them."""

    @contextmanager
    def open(self) -> Iterator[sa.Connection]:
        """A connection for the calling thread. Raises BackpressureError while another is open."""
        if not self._reading.acquire(blocking=False):
            raise BackpressureError("a snapshot of this database is being read: one at a time, ask again")
        with ExitStack() as stack:
            stack.callback(self._reading.release)
            engine = self._create_engine(stack)
            stack.callback(engine.dispose)
            connection = stack.enter_context(engine.connect())
            if engine.dialect.name == "postgresql":
                connection.execution_options(postgresql_readonly=True)
            stack.enter_context(connection.begin())
            _FIX[engine.dialect.name].scalar(connection)
            yield connection

    def _create_engine(self, stack: ExitStack) -> sa.Engine:
        url = self._writer.engine.url
        if url.get_backend_name() != "sqlite":
            return sa.create_engine(
                url,
                poolclass=NullPool,
                isolation_level="REPEATABLE READ",
                connect_args={"options": self._options},
            )
        if self.writing is None:
            engine = sa.create_engine(url, poolclass=NullPool)
        else:
            copy = self._copy()
            stack.callback(copy.close)
            engine = sa.create_engine(url, poolclass=StaticPool, creator=lambda: copy)
        event.listen(engine, "connect", self._configure_sqlite)
        event.listen(engine, "begin", _BEGIN.run)
        return engine

    def _copy(self) -> sqlite3.Connection:
        """Return another database in memory with what this one has committed."""
        assert self.writing is not None, "a database in memory has the lock"
        copy = sqlite3.connect(":memory:")
        with self.writing:
            assert not self._writer.in_transaction(), "a snapshot is not asked for inside a transaction"
            source: Any = self._writer.connection.driver_connection
            source.backup(copy)
        return copy

    def _configure_sqlite(self, dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # as the writer's: BEGIN is ours
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={self._busy_timeout_ms}")
        cursor.execute("PRAGMA query_only=ON")
        cursor.close()


def is_in_memory(url: sa.URL) -> bool:
    """Whether a database ends with its connection."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")
