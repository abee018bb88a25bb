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


META: Final = _table("meta", sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String))

JOBS: Final = _table(
    "jobs",
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("job_id", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("user", sa.String, nullable=False, server_default=""),
    sa.Column("model_id", sa.LargeBinary(32)),
    sa.Column("phase", sa.String, nullable=False, server_default=""),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("generator", sa.String),
    sa.Column("ending", sa.String, nullable=False, server_default=""),
    sa.Column("audit", sa.String, nullable=False, server_default=""),
    sa.Column("verdict", sa.String, nullable=False, server_default=""),
    sa.Column("peak_q16", sa.Integer),
    sa.Column("limit_q16", sa.Integer),
    sa.Column("prompt_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("token_count_max", sa.Integer, nullable=False, server_default="0"),
    sa.Column("output_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("admitted_ms", sa.Integer),
    sa.Column("recorded_ms", sa.Integer),
    sa.Column("settled_ms", sa.Integer),
    sa.Column("log_index", sa.Integer),
    sa.Column("generation_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("verification_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("pool_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("slashed_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("changed", sa.Integer, nullable=False, index=True),
    sa.Column("dossier_bytes", sa.Integer, nullable=False, server_default="0"),
    sa.Index("jobs_by_phase", "phase", "number"),
    sa.Index("jobs_by_ending", "ending", "number"),
    sa.Index("jobs_by_admission", "admitted_ms"),
    sa.Index("jobs_by_settlement", "settled_ms"),
    sa.Index("jobs_by_entry", "log_index"),
)
"""A row a job; ``number`` is the record's sequence of the first word about it, ``changed`` of the last."""

EVENTS: Final = _table(
    "events",
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("job_id", sa.LargeBinary(32), nullable=False, index=True),
    sa.Column("stored_ms", sa.Integer, nullable=False),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("code", sa.String, nullable=False),
    sa.Column("detail", sa.String, nullable=False),
)

MESSAGES: Final = _table(
    "messages",
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("job_id", sa.LargeBinary(32), nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("stored_ms", sa.Integer, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
"""Each job's envelopes, as they were signed."""

PARTS: Final = _table(
    "parts",
    sa.Column("participant", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("role", sa.String, primary_key=True),
    sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
    sa.Index("parts_by_job", "number"),
)
"""Who took part in which job, and as what."""

PAYOUTS: Final = _table(
    "payouts",
    sa.Column("account", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("held_micro", sa.Integer, nullable=False),
    sa.Column("amount_micro", sa.Integer, nullable=False),
    sa.Column("is_slashed", sa.Boolean, nullable=False),
    sa.Index("payouts_by_job", "number"),
    sa.Index("payouts_slashed", "is_slashed", "number"),
)

PARTICIPANTS: Final = _table(
    "participants",
    sa.Column("participant", sa.String, primary_key=True),
    sa.Column("is_user", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("is_verifier", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("stake_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("free_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("stake_entry", sa.Integer, nullable=False, server_default="-1"),
    sa.Column("submitted", sa.Integer, nullable=False, server_default="0"),
    sa.Column("generated", sa.Integer, nullable=False, server_default="0"),
    sa.Column("verified", sa.Integer, nullable=False, server_default="0"),
    sa.Column("slashed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("net_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lost_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("deposited_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("withdrawn_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("seen_ms", sa.Integer, nullable=False, server_default="0"),
)

STAKES: Final = _table(
    "stakes",
    sa.Column("participant", sa.String, primary_key=True),
    sa.Column("entry", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stored_ms", sa.Integer, nullable=False),
    sa.Column("stake_micro", sa.Integer, nullable=False),
)
"""A participant's whole stake, at each change."""

JOB_TESTS: Final = _table(
    "job_tests",
    sa.Column("participant", sa.String, primary_key=True),
    sa.Column("model_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("sum_q16", sa.Integer, nullable=False),
    sa.Column("token_sum_q16", sa.Integer, nullable=False),
    sa.Column("cycle_count", sa.Integer, nullable=False),
    sa.Column("grades", sa.JSON, nullable=False),
    sa.Column("standing", sa.String, nullable=False),
)
"""What the test over a worker's audited jobs says of it, for each model (docs/protocol.md 7.8)."""

EJECTIONS: Final = _table(
    "ejections",
    sa.Column("participant", sa.String, primary_key=True),
    sa.Column("model_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("stored_ms", sa.Integer, nullable=False),
    sa.Column("test", sa.String, nullable=False),
    sa.Column("job_id", sa.LargeBinary(32), nullable=False),
    sa.Column("job_count", sa.Integer, nullable=False),
    sa.Column("sum_q16", sa.Integer, nullable=False),
    sa.Column("token_sum_q16", sa.Integer, nullable=False),
    sa.Column("bond_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("taken_micro", sa.Integer, nullable=False, server_default="0"),
    sa.Column("open_micro", sa.Integer, nullable=False, server_default="0"),
)
"""Whom the pool has ejected from which model, and what that has cost so far."""

TRANSFERS: Final = _table(
    "transfers",
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("participant", sa.String, nullable=False, index=True),
    sa.Column("stored_ms", sa.Integer, nullable=False),
    sa.Column("what", sa.String, nullable=False),
    sa.Column("bucket", sa.String, nullable=False),
    sa.Column("amount_micro", sa.Integer, nullable=False),
    sa.Column("reference", sa.String, nullable=False),
)

SNAPSHOTS: Final = _table(
    "snapshots",
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("taken_ms", sa.Integer, nullable=False),
    sa.Column("member_count", sa.Integer, nullable=False),
    sa.Column("stake_micro", sa.Integer, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

EPOCHS: Final = _table(
    "epochs",
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

ROUNDS: Final = _table(
    "rounds",
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stored_ms", sa.Integer, nullable=False),
    sa.Column("randomness", sa.LargeBinary(32), nullable=False),
    sa.Column("uses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
"""``randomness`` is what the round's signature hashes to; the signature is verified when somebody relies on it."""

ROUND_USES: Final = _table(
    "round_uses",
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("what", sa.String, primary_key=True),
)
"""What was drawn from a round, for which job."""

CHECKPOINTS: Final = _table(
    "checkpoints",
    sa.Column("size", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    sa.Column("at_ms", sa.Integer, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

ENTRIES: Final = _table(
    "entries",
    sa.Column("log_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
)
"""The leaves of the commitment log, computed here from the recorded results."""

TALLIES: Final = _table(
    "tallies",
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
"""Sums that a page would otherwise have to walk all jobs for."""

FAULTS: Final = _table(
    "faults",
    sa.Column("stream", sa.String, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
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
