"""Matches at partial depth: they wait for the end of the window, in which the user may still ask for the whole job.

Owns which end of openings is held back, and until when (docs/protocol.md 8.7.2). The machine is told nothing meanwhile: its
stage stays open, so that a challenge or an equivocation comes before the end of the openings, as it could at any time.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from pocache.protocol import dispute_terms as d
from pocache.protocol.matching import Verdict
from pocache.protocol.procedure import Procedure, State
from pocache.storage.prepared import Prepared
from pocache.storage.rows import update_rows
from pocache.wire.codec import decode, encode
from pocache.wire.messages import OpeningsClosedV1
from pocache_verifier.comparison import compare_parties
from pocache_verifier.jobs import Job
from pocache_verifier.tables import DISPUTES

_GET_HELD: Final = Prepared(sa.select(DISPUTES.c.held).where(DISPUTES.c.job_id == sa.bindparam("job_id")))
_GET_HELD_DUE: Final = Prepared(
    sa.select(DISPUTES.c.job_id, DISPUTES.c.held)
    .where(DISPUTES.c.held_until <= sa.bindparam("latest_round"))
    .order_by(DISPUTES.c.held_until, DISPUTES.c.job_id)
)


def is_partial_match(
    connection: sa.Connection, job: Job, procedure: Procedure, state: State, event: d.OpeningsClosed
) -> bool:
    """Whether an end of openings would decide for the generator by a part of the job that nobody challenged."""
    if procedure.is_full_depth_asked(state) or state.corner.full_depth:
        return False
    commands = procedure.advance(state, event).commands
    # The generator is always compared first; without a comparison, this end decides against it or begins a stage.
    return any(
        isinstance(one, d.Compare) and compare_parties(connection, job, one).verdict is Verdict.MATCH
        for one in commands
    )


def hold_closing(connection: sa.Connection, job: Job, body: OpeningsClosedV1) -> None:
    """Keep an end of openings until the round after the window's: a challenge of its last moment has a round to come."""
    _update(connection, job, held=encode(body), held_until=job.window_close_round + 1)


def release_closing(connection: sa.Connection, job: Job) -> None:
    """Forget what was held."""
    _update(connection, job, held=None, held_until=None)


def read_held(connection: sa.Connection, job: Job) -> OpeningsClosedV1 | None:
    """Return the end of openings that is held of a job."""
    data = _GET_HELD.scalar(connection, job_id=job.job_id)
    return None if data is None else decode(OpeningsClosedV1, data)


def read_held_due(connection: sa.Connection, latest_round: int) -> list[tuple[bytes, OpeningsClosedV1]]:
    """Return what need not be held any longer, by job."""
    rows = _GET_HELD_DUE.all(connection, latest_round=latest_round)
    return [(row.job_id, decode(OpeningsClosedV1, row.held)) for row in rows]


def _update(connection: sa.Connection, job: Job, **values: bytes | int | None) -> None:
    update_rows(connection, DISPUTES, {"job_id": job.job_id}, values)
