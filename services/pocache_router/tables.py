"""The router's tables: jobs with their lifecycle state, and the epochs of sampling seeds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.ids import ParticipantId
from pocache.protocol.lifecycle import TERMINAL_PHASES, JobState, Phase

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

EPOCHS: Final = sa.Table(
    "epochs",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.LargeBinary(32), nullable=False),
    sa.Column("opened_tick", sa.BigInteger, nullable=False),
)

_STATE_COLUMNS: Final = tuple(JobState.__dataclass_fields__)


def read_state(row: sa.Row[Any]) -> JobState:
    """Return the lifecycle state in a row of JOBS."""
    values = {name: getattr(row, name) for name in _STATE_COLUMNS}
    values["phase"] = Phase(values["phase"])
    values["holder"] = None if values["holder"] is None else ParticipantId(values["holder"])
    return JobState(**values)


def compute_state_columns(state: JobState) -> dict[str, Any]:
    """Return the columns of JOBS that hold a lifecycle state."""
    return {**asdict(state), "phase": state.phase.value}


def count_open_jobs(connection: sa.Connection) -> int:
    """Return how many jobs are in no terminal phase."""
    ended = [phase.value for phase in TERMINAL_PHASES]
    return int(
        connection.execute(
            sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.phase.not_in(ended))
        ).scalar_one()
    )
