"""The claims that verifiers sealed, as they signed them, and which of them the record shows.

A stage that is sealed shows those of its parties. A committee of which too few sealed never is: the claims of those who
did are shown by the outcome, so that anybody can tell them from who was silent.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import sqlalchemy as sa

from pocache.storage.prepared import Prepared
from pocache.storage.rows import upsert
from pocache_verifier.jobs import Job
from pocache_verifier.tables import CLAIMS

_GET_CLAIMS: Final = Prepared(
    sa.select(CLAIMS.c.stage, CLAIMS.c.envelope, CLAIMS.c.is_shown)
    .where(CLAIMS.c.job_id == sa.bindparam("job_id"))
    .order_by(CLAIMS.c.stage)
)
_SHOW_CLAIM: Final = Prepared(
    sa.update(CLAIMS)
    .where(CLAIMS.c.job_id == sa.bindparam("job_id"), CLAIMS.c.stage == sa.bindparam("stage"))
    .values(is_shown=True)
)


def keep_claim(connection: sa.Connection, job: Job, seat: int, envelope: bytes) -> None:
    """Keep a claim; a second look's replaces the first."""
    key = {"job_id": job.job_id, "stage": seat}
    upsert(connection, CLAIMS, key, {"envelope": envelope, "is_shown": False})


def show_claims(connection: sa.Connection, job: Job, seats: Collection[int]) -> dict[int, bytes]:
    """Return the claims of these seats, and note that the record has them."""
    shown = {
        row.stage: row.envelope
        for row in _GET_CLAIMS.all(connection, job_id=job.job_id)
        if row.stage in seats
    }
    _SHOW_CLAIM.run_many(connection, [{"job_id": job.job_id, "stage": stage} for stage in shown])
    return shown


def read_hidden_claims(connection: sa.Connection, job: Job, seats: Collection[int]) -> tuple[bytes, ...]:
    """Return the claims of these seats that the record does not have yet, by seat."""
    rows = _GET_CLAIMS.all(connection, job_id=job.job_id)
    return tuple(row.envelope for row in rows if row.stage in seats and not row.is_shown)
