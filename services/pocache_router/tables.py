"""The router's tables: jobs with their lifecycle state, what is asked of the ledger, who is leased no more, and seeds' epochs."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.ids import JobId, ParticipantId
from pocache.protocol.lifecycle import TERMINAL_PHASES, JobState, Phase
from pocache.storage.prepared import Prepared
from pocache.storage.rows import find_row

METADATA: Final = sa.MetaData()

JOBS: Final = sa.Table(
    "jobs",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("user", sa.String(56), nullable=False),
    sa.Column("model_id", sa.LargeBinary(32), nullable=False),
    sa.Column("submission", sa.LargeBinary, nullable=False, comment="the user's signed envelope"),
    sa.Column("generator_stake_micro", sa.BigInteger, nullable=False, comment="βCg for token_count_max"),
    sa.Column("lease", sa.LargeBinary, nullable=True, comment="the current attempt's signed lease"),
    sa.Column(
        "lease_deadline_ms", sa.BigInteger, nullable=True, comment="what that lease promises its holder"
    ),
    sa.Column("result", sa.LargeBinary, nullable=True, comment="the recorded attempt's signed result"),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("attempt_max", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(56), nullable=True),
    sa.Column("deadline_tick", sa.BigInteger, nullable=True),
    sa.Column("expires_tick", sa.BigInteger, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("publication", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.CheckConstraint("attempt >= 1 AND attempt <= attempt_max"),
    sa.Index("jobs_by_phase", "phase", "deadline_tick"),
)

CANCELLATIONS: Final = sa.Table(
    "cancellations",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("cancellation", sa.LargeBinary, nullable=False, comment="the user's signed envelope"),
)

EJECTIONS: Final = sa.Table(
    "ejections",
    METADATA,
    sa.Column("worker", sa.String(56), primary_key=True),
    sa.Column("model_id", sa.LargeBinary(32), primary_key=True),
    comment="Who gets no lease of which model any more.",
)

EPOCHS: Final = sa.Table(
    "epochs",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.LargeBinary(32), nullable=False),
    sa.Column("opened_tick", sa.BigInteger, nullable=False),
)

ESCROWS: Final = sa.Table(
    "escrows",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("user", sa.String(56), nullable=False),
    sa.Column(
        "record_bytes", sa.BigInteger, nullable=False, comment="what the job has taken of RECORD so far"
    ),
    sa.Column("is_new", sa.Boolean, nullable=False, comment="no deposit of its user had ever been held then"),
    sa.Column(
        "refused_round", sa.BigInteger, nullable=True, comment="empty while the ledger has not answered"
    ),
    sa.Index("escrows_by_user", "user"),
    sa.Index("escrows_by_is_new", "is_new"),
    comment="deposits that were asked for and not answered, or refused in the current round",
)

FUNDED: Final = sa.Table(
    "funded",
    METADATA,
    sa.Column("user", sa.String(56), primary_key=True),
    sa.Column(
        "refused_count", sa.Integer, nullable=False, comment="deposits refused since the last that was held"
    ),
    comment="accounts of which a deposit was held",
)

_STATE_COLUMNS: Final = tuple(JobState.__dataclass_fields__)
_OPEN_PHASES: Final = sorted(phase.value for phase in Phase if phase not in TERMINAL_PHASES)

_COUNT_OPEN: Final = Prepared(
    sa.select(sa.func.count().label("count")).select_from(JOBS).where(JOBS.c.phase.in_(_OPEN_PHASES))
)
_GET_EPOCH: Final = Prepared(sa.select(EPOCHS).order_by(EPOCHS.c.number.desc()).limit(1))
_GET_OVERDUE: Final = Prepared(
    sa.select(JOBS.c.job_id).where(
        sa.or_(
            sa.and_(JOBS.c.phase == Phase.QUEUED.value, JOBS.c.expires_tick < sa.bindparam("tick")),
            sa.and_(
                JOBS.c.phase == Phase.GENERATING.value,
                JOBS.c.deadline_tick <= sa.bindparam("tick"),
                # Ticks count whole rounds and may run ahead of the clock: what the lease promised comes first.
                JOBS.c.lease_deadline_ms < sa.bindparam("now_ms"),
            ),
        )
    )
)
_GET_UNANSWERED: Final = Prepared(
    sa.select(JOBS).where(
        JOBS.c.phase == Phase.LAPSING.value,
        JOBS.c.deadline_tick < sa.bindparam("tick"),
        (sa.bindparam("tick", type_=sa.BigInteger) - JOBS.c.deadline_tick) % sa.bindparam("every") == 0,
    )
)
_KEEP_RESULT: Final = Prepared(
    sa.update(JOBS)
    .where(JOBS.c.job_id == sa.bindparam("job_id"), JOBS.c.attempt == sa.bindparam("attempt"))
    .values(result=sa.bindparam("result"))
)


def get_job(connection: sa.Connection, job_id: bytes) -> Any:
    """Return a job's row, None for one that was never admitted."""
    return find_row(connection, JOBS, {"job_id": job_id})


def is_ejected(connection: sa.Connection, worker: str, model_id: bytes) -> bool:
    """Whether a worker gets no lease of a model any more."""
    return find_row(connection, EJECTIONS, {"worker": worker, "model_id": model_id}) is not None


def get_epoch(connection: sa.Connection) -> Any:
    """Return the latest epoch's row, None before the first."""
    return _GET_EPOCH.first(connection)


def get_overdue(connection: sa.Connection, *, tick: int, now_ms: int) -> list[JobId]:
    """Return the queued jobs that have expired and the leases that have lapsed."""
    return [JobId(row.job_id) for row in _GET_OVERDUE.all(connection, tick=tick, now_ms=now_ms)]


def get_unanswered(connection: sa.Connection, *, tick: int, every: int) -> list[Any]:
    """Return the jobs whose lapsed lease nobody has answered for, ``every`` so many ticks."""
    return _GET_UNANSWERED.all(connection, tick=tick, every=every)


def keep_result(connection: sa.Connection, job_id: bytes, attempt: int, result: bytes) -> None:
    """Write down what was recorded for the current attempt."""
    _KEEP_RESULT.run(connection, job_id=job_id, attempt=attempt, result=result)


def read_state(row: Any) -> JobState:
    """Return the lifecycle state in a row of JOBS."""
    return JobState(
        phase=Phase(row.phase),
        attempt=row.attempt,
        attempt_max=row.attempt_max,
        holder=None if row.holder is None else ParticipantId(row.holder),
        deadline_tick=row.deadline_tick,
        expires_tick=row.expires_tick,
        cancel_requested=bool(row.cancel_requested),
        publication=row.publication,
        reason=row.reason,
    )


def compute_state_columns(state: JobState) -> dict[str, Any]:
    """Return the columns of JOBS that hold a lifecycle state."""
    columns = {name: getattr(state, name) for name in _STATE_COLUMNS}
    return {**columns, "phase": state.phase.value}


def count_open_jobs(connection: sa.Connection) -> int:
    """Return how many jobs are in no terminal phase."""
    count: int = _COUNT_OPEN.scalar(connection)
    return count
