"""The claims that verifiers sealed, as they signed them, and which of them the record shows.

A stage that is sealed shows those of its parties. A committee of which too few sealed never is: the claims of those who
did are shown by the outcome, so that anybody can tell them from who was silent.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from pocache.storage.store import upsert
from pocache_verifier.jobs import Job
from pocache_verifier.tables import CLAIMS


def keep_claim(connection: sa.Connection, job: Job, seat: int, envelope: bytes) -> None:
    """Keep a claim; a second look's replaces the first."""
    key = {"job_id": job.job_id, "stage": seat}
    upsert(connection, CLAIMS, key, {"envelope": envelope, "is_shown": False})


def show_claims(connection: sa.Connection, job: Job, seats: Collection[int]) -> dict[int, bytes]:
    """Return the claims of these seats, and note that the record has them."""
    where = (CLAIMS.c.job_id == job.job_id, CLAIMS.c.stage.in_(seats))
    connection.execute(sa.update(CLAIMS).where(*where).values(is_shown=True))
    rows = connection.execute(sa.select(CLAIMS.c.stage, CLAIMS.c.envelope).where(*where))
    return {row.stage: row.envelope for row in rows}


def read_hidden_claims(connection: sa.Connection, job: Job, seats: Collection[int]) -> tuple[bytes, ...]:
    """Return the claims of these seats that the record does not have yet, by seat."""
    rows = connection.execute(
        sa.select(CLAIMS.c.envelope)
        .where(CLAIMS.c.job_id == job.job_id, CLAIMS.c.stage.in_(seats), sa.not_(CLAIMS.c.is_shown))
        .order_by(CLAIMS.c.stage)
    )
    return tuple(row.envelope for row in rows)
