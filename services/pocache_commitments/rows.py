"""Reading and forgetting rows that more than one concern of the commitment store works with."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pocache.protocol.ids import Digest, JobId
from pocache.storage.rows import delete_rows, find_row
from pocache_commitments.draws import Committed
from pocache_commitments.tables import COMMITMENTS, PARTIES, PARTS, STAGES


def get_commitment(connection: sa.Connection, job_id: bytes, attempt: int) -> Any:
    """Return an attempt's commitment, None when there is none."""
    return find_row(connection, COMMITMENTS, {"job_id": job_id, "attempt": attempt})


def to_committed(row: Any) -> Committed:
    """Return what draws about a recorded commitment depend on."""
    return Committed(
        job_id=JobId(row.job_id),
        root=Digest(row.root),
        leaf_count=row.leaf_count,
        prompt_count=row.prompt_count,
    )


def forget_stages(connection: sa.Connection, job_id: bytes) -> None:
    """Delete a job's stages: nothing has to be opened any more."""
    for table in (PARTS, PARTIES, STAGES):
        delete_rows(connection, table, {"job_id": job_id})
