"""The read model's tables and its database file: a cache of the record that may be thrown away at any time.

One writer and any number of readers, SQLite in WAL mode. A file of another network, of another schema, or of a stream
that has begun anew is emptied and filled again from the bus: nothing here is the only copy of anything.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from pocache.protocol.errors import ConfigError

SCHEMA_VERSION: Final = "3"
_READERS_MAX: Final = 8
_BUSY_TIMEOUT_MS: Final = 10_000

METADATA: Final = sa.MetaData()


def _table(name: str, *columns: Any) -> sa.Table:
    return sa.Table(name, METADATA, *columns)


def _number(name: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer, nullable=False, **options)


def _count(name: str) -> sa.Column[Any]:
    return _number(name, server_default="0")


def _key(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer, primary_key=True, autoincrement=False)


def _text(name: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.String, nullable=False, **options)


def _name(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.String, primary_key=True)


def _bytes(name: str, length: int | None = None, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.LargeBinary(length), nullable=False, **options)


META: Final = _table("meta", _name("name"), sa.Column("value", sa.String))

JOBS: Final = _table(
    "jobs",
    _key("number"),
    _bytes("job_id", 32, unique=True),
    _text("user", server_default=""),
    sa.Column("model_id", sa.LargeBinary(32)),
    _text("phase", server_default=""),
    _count("attempt"),
    sa.Column("generator", sa.String),
    _text("ending", server_default=""),
    _text("audit", server_default=""),
    _text("verdict", server_default=""),
    sa.Column("peak_q16", sa.Integer),
    sa.Column("limit_q16", sa.Integer),
    _count("prompt_count"),
    _count("token_count_max"),
    _count("output_count"),
    sa.Column("admitted_ms", sa.Integer),
    sa.Column("recorded_ms", sa.Integer),
    sa.Column("settled_ms", sa.Integer),
    sa.Column("log_index", sa.Integer),
    _count("generation_micro"),
    _count("verification_micro"),
    _count("pool_micro"),
    _count("slashed_count"),
    _number("changed", index=True),
    _count("dossier_bytes"),
    sa.Index("jobs_by_phase", "phase", "number"),
    sa.Index("jobs_by_ending", "ending", "number"),
    sa.Index("jobs_by_admission", "admitted_ms"),
    sa.Index("jobs_by_settlement", "settled_ms"),
    sa.Index("jobs_by_entry", "log_index"),
)
"""A row a job; ``number`` is the record's sequence of the first word about it, ``changed`` of the last."""

EVENTS: Final = _table(
    "events",
    _key("sequence"),
    _bytes("job_id", 32, index=True),
    _number("stored_ms"),
    _text("phase"),
    _number("attempt"),
    _text("code"),
    _text("detail"),
)

MESSAGES: Final = _table(
    "messages",
    _key("sequence"),
    _bytes("job_id", 32, index=True),
    _text("kind"),
    _number("stored_ms"),
    _bytes("data"),
)
"""Each job's envelopes, as they were signed."""

PARTS: Final = _table(
    "parts",
    _name("participant"),
    _key("number"),
    _name("role"),
    _key("stage"),
    sa.Index("parts_by_job", "number"),
)
"""Who took part in which job, and as what."""

PAYOUTS: Final = _table(
    "payouts",
    _name("account"),
    _key("number"),
    _number("held_micro"),
    _number("amount_micro"),
    sa.Column("is_slashed", sa.Boolean, nullable=False),
    sa.Index("payouts_by_job", "number"),
    sa.Index("payouts_slashed", "is_slashed", "number"),
)

PARTICIPANTS: Final = _table(
    "participants",
    _name("participant"),
    sa.Column("is_user", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("is_verifier", sa.Boolean, nullable=False, server_default=sa.false()),
    _count("stake_micro"),
    _count("free_micro"),
    _number("stake_entry", server_default="-1"),
    _count("submitted"),
    _count("generated"),
    _count("verified"),
    _count("slashed"),
    _count("net_micro"),
    _count("lost_micro"),
    _count("deposited_micro"),
    _count("withdrawn_micro"),
    _count("seen_ms"),
)

STAKES: Final = _table(
    "stakes",
    _name("participant"),
    _key("entry"),
    _number("stored_ms"),
    _number("stake_micro"),
)
"""A participant's whole stake, at each change."""

JOB_TESTS: Final = _table(
    "job_tests",
    _name("participant"),
    sa.Column("model_id", sa.LargeBinary(32), primary_key=True),
    _number("sum_q16"),
    _number("token_sum_q16"),
    _number("cycle_count"),
    sa.Column("grades", sa.JSON, nullable=False),
    _text("standing"),
)
"""What the test over a worker's audited jobs says of it, for each model (docs/protocol.md 7.8)."""

EJECTIONS: Final = _table(
    "ejections",
    _name("participant"),
    sa.Column("model_id", sa.LargeBinary(32), primary_key=True),
    _number("stored_ms"),
    _text("test"),
    _bytes("job_id", 32),
    _number("job_count"),
    _number("sum_q16"),
    _number("token_sum_q16"),
    _count("bond_micro"),
    _count("taken_micro"),
    _count("open_micro"),
)
"""Whom the pool has ejected from which model, and what that has cost so far."""

TRANSFERS: Final = _table(
    "transfers",
    _key("sequence"),
    _text("participant", index=True),
    _number("stored_ms"),
    _text("what"),
    _text("bucket"),
    _number("amount_micro"),
    _text("reference"),
)

SNAPSHOTS: Final = _table(
    "snapshots",
    _key("number"),
    _number("taken_ms"),
    _number("member_count"),
    _number("stake_micro"),
    _bytes("data"),
)

EPOCHS: Final = _table(
    "epochs",
    _key("number"),
    _bytes("data"),
)

ROUNDS: Final = _table(
    "rounds",
    _key("number"),
    _number("stored_ms"),
    _bytes("randomness", 32),
    _count("uses"),
    _bytes("data"),
)
"""``randomness`` is what the round's signature hashes to; the signature is verified when somebody relies on it."""

ROUND_USES: Final = _table(
    "round_uses",
    _key("round"),
    _key("number"),
    _name("what"),
)
"""What was drawn from a round, for which job."""

CHECKPOINTS: Final = _table(
    "checkpoints",
    _key("size"),
    _bytes("root", 32),
    _number("at_ms"),
    _bytes("data"),
)

ENTRIES: Final = _table(
    "entries",
    _key("log_index"),
    _number("number"),
    _bytes("leaf_hash", 32),
)
"""The leaves of the commitment log, computed here from the recorded results."""

TALLIES: Final = _table(
    "tallies",
    _name("kind"),
    _name("name"),
    _number("value"),
)
"""Sums that a page would otherwise have to walk all jobs for."""

FAULTS: Final = _table(
    "faults",
    _name("stream"),
    _key("sequence"),
    _text("subject"),
    _text("reason"),
)
"""Messages of the record that are not what they must be; the first thousand."""


def open_database(file: Path, *, network_id: bytes) -> tuple[sa.Engine, Any]:
    """Return the database, and the open file that holds its writer's lock; of another network it begins empty.

    Raises ConfigError when another process writes to it, or it cannot be opened.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{file}.writer", "ab")  # noqa: PTH123, SIM115 - closed with the read model
    except OSError as error:
        raise ConfigError(f"cannot open the read model {file}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigError(
            f"another process writes to {file}: stop it first, or choose another state directory"
        ) from None
    try:
        return _prepare(file, f"{SCHEMA_VERSION}/{network_id.hex()}"), lock
    except sa.exc.DatabaseError as error:
        lock.close()
        raise ConfigError(f"cannot open the read model {file}: {error.orig}; it may be removed") from error


def empty(connection: sa.Connection, tag: str) -> None:
    """Forget everything; ``tag`` says what the next content is of."""
    METADATA.drop_all(connection)
    METADATA.create_all(connection)
    connection.execute(sa.insert(META).values(name="tag", value=tag))


def _prepare(file: Path, tag: str) -> sa.Engine:
    engine = sa.create_engine(
        f"sqlite:///{file}", pool_size=_READERS_MAX, max_overflow=0, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        # The driver's own transaction handling breaks savepoints; the BEGIN below takes its place.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        # What a power cut takes from a cache is read from the bus again: the cursor is in the same transaction.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    try:
        with engine.begin() as connection:
            known = None
            if sa.inspect(connection).has_table(META.name):
                known = connection.execute(sa.select(META.c.value).where(META.c.name == "tag")).scalar()
            if known != tag:
                empty(connection, tag)
    except BaseException:
        engine.dispose()
        raise
    return engine
