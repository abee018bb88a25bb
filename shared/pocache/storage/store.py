"""One service's durable state: an SQL database in which a message's effects and its answers commit together.

SQLite (WAL, synchronous=FULL) is the embedded default; any SQLAlchemy URL works. Two tables belong to every service:
``applied`` remembers which envelopes had their effect, ``outbox`` holds what must still be published. Refuses a
database written by another schema version. Used from one thread: a service's state has one writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import StaticPool

from pocache.protocol.errors import ConfigError

SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_MS: Final = 10_000

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
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
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


class Store:
    """An open database with this project's tables and a service's own."""

    def __init__(self, url: str, *metadatas: sa.MetaData) -> None:
        self._engine = _create_engine(url)
        with self.begin() as connection:
            for metadata in (BASE_METADATA, *metadatas):
                metadata.create_all(connection)
            found = get_meta(connection, "schema_version")
            if found is None:
                set_meta(connection, "schema_version", str(SCHEMA_VERSION))
            elif found != str(SCHEMA_VERSION):
                raise ConfigError(
                    f"database {self._engine.url.render_as_string()} has schema version {found}, this release writes "
                    f"{SCHEMA_VERSION}: migrate it, or point the service at an empty state directory"
                )

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """One write transaction: all of it is durable when the block ends, none of it when it raises."""
        with self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def get_meta(connection: sa.Connection, name: str) -> str | None:
    """Return a setting, None when it was never set."""
    return connection.execute(sa.select(META.c.value).where(META.c.name == name)).scalar_one_or_none()


def set_meta(connection: sa.Connection, name: str, value: str) -> None:
    """Set a setting."""
    upsert(connection, META, {"name": name}, {"value": value})


def upsert(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Update the row of ``key`` with ``values``, or insert it."""
    condition = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if values:
        done = connection.execute(sa.update(table).where(condition).values(**values)).rowcount
    else:
        done = connection.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one()
    if not done:
        connection.execute(sa.insert(table).values(**key, **values))


def _create_engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, isolation_level="SERIALIZABLE")
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
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
