"""One identity's leases in its table: asked for, granted, ended. What a restart goes on from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.errors import PocacheError
from pocache.service.unit import Unit
from pocache.storage.prepared import Prepared, PreparedIn
from pocache.storage.rows import upsert
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode
from pocache_worker.grants import Grant
from pocache_worker.state import send
from pocache_worker.tables import CANCELLATIONS, LEASES, LeasePhase

LeaseKey = tuple[bytes, int]
"""Job and attempt."""


def _is_attempt(table: sa.Table) -> Any:
    return sa.and_(
        table.c.job_id == sa.bindparam("job_id"),
        table.c.attempt == sa.bindparam("attempt"),
    )


_GET_ANSWER: Final = Prepared(
    sa.select(LEASES.c.phase, LEASES.c.code, LEASES.c.reason).where(_is_attempt(LEASES))
)
_GET_ANSWERS: Final = PreparedIn(
    lambda keys: sa.select(
        LEASES.c.job_id, LEASES.c.attempt, LEASES.c.phase, LEASES.c.code, LEASES.c.reason
    ).where(LEASES.c.job_id.in_(keys))
)
_LIST_GRANTED: Final = Prepared(
    sa.select(LEASES.c.job_id, LEASES.c.attempt, LEASES.c.deadline_ms)
    .where(LEASES.c.phase == LeasePhase.GRANTED.value)
    .order_by(LEASES.c.deadline_ms)
)
_GET_GRANTED: Final = Prepared(
    sa.select(LEASES.c.granted, CANCELLATIONS.c.cancellation)
    .select_from(
        LEASES.outerjoin(
            CANCELLATIONS,
            sa.and_(CANCELLATIONS.c.job_id == LEASES.c.job_id, CANCELLATIONS.c.attempt == LEASES.c.attempt),
        )
    )
    .where(_is_attempt(LEASES))
)
_FINISH: Final = Prepared(
    sa.update(LEASES)
    .where(
        LEASES.c.job_id == sa.bindparam("of_job"),
        LEASES.c.attempt == sa.bindparam("of_attempt"),
        LEASES.c.phase == LeasePhase.GRANTED.value,
    )
    .values(phase=sa.bindparam("ended"), code=sa.bindparam("why"), reason=sa.bindparam("said"))
)
_GET_CANCELLATION: Final = Prepared(sa.select(CANCELLATIONS.c.cancellation).where(_is_attempt(CANCELLATIONS)))


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """Where an attempt is, and why, if it was denied or failed."""

    phase: LeasePhase
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class GrantedLease:
    """A lease that waits to be generated, and its user's signed wish for no more of it, where there is one already."""

    body: m.LeaseGrantedV1
    cancellation: bytes | None


def request_lease(unit: Unit, task: m.GenerateTaskV1, worker: str) -> LeaseAnswer | None:
    """Ask the router for an attempt; where it is settled between us already, return that and ask nothing."""
    known = read_lease(unit, task.job_id, task.attempt)
    if known is not None and known.phase not in (LeasePhase.REQUESTED, LeasePhase.DENIED):
        return known
    key = {"job_id": task.job_id, "attempt": task.attempt}
    upsert(unit.connection, LEASES, key, {"phase": LeasePhase.REQUESTED.value, "code": "", "reason": ""})
    request = m.LeaseRequestV1(
        job_id=task.job_id,
        attempt=task.attempt,
        requested_ms=unit.now_ms,
        publication=task.publication,
    )
    send(unit, t.LEASE_REQUESTED, request, job_id=task.job_id, attempt=task.attempt, worker=worker)
    return None


def read_lease(unit: Unit, job_id: bytes, attempt: int) -> LeaseAnswer | None:
    """Return where an attempt is, None when it is not known here."""
    row = _GET_ANSWER.first(unit.connection, job_id=job_id, attempt=attempt)
    return None if row is None else LeaseAnswer(LeasePhase(row.phase), row.code, row.reason)


def read_answers(unit: Unit, asked: Sequence[LeaseKey]) -> list[tuple[LeaseKey, LeaseAnswer | None]]:
    """Return where each attempt is, None of one that is not known here."""
    if not asked:
        return []
    rows = _GET_ANSWERS.rows(unit.connection, [job_id for job_id, _ in asked])
    found = {
        (bytes(job_id), attempt): LeaseAnswer(LeasePhase(phase), code, reason)
        for job_id, attempt, phase, code, reason in rows
    }
    return [(key, found.get(key)) for key in asked]


def read_granted(unit: Unit, begun: Collection[LeaseKey] = (), count_max: int = 256) -> list[GrantedLease]:
    """Return at most ``count_max`` granted leases that are not ``begun``, the one that ends first before the others.

    Those that are over are marked so.
    """
    found: list[GrantedLease] = []
    for row in _LIST_GRANTED.all(unit.connection):
        if (row.job_id, row.attempt) in begun:
            continue
        if row.deadline_ms <= unit.now_ms:
            said = "the deadline passed before it was begun"
            _end(unit, row.job_id, row.attempt, LeasePhase.EXPIRED, "", said)
        elif len(found) < count_max:
            granted = _GET_GRANTED.first(unit.connection, job_id=row.job_id, attempt=row.attempt)
            cancellation = None if granted.cancellation is None else bytes(granted.cancellation)
            found.append(GrantedLease(decode(m.LeaseGrantedV1, granted.granted), cancellation))
    return found


def read_cancellation(unit: Unit, grant: Grant) -> bytes | None:
    """Return the user's signed wish for no more of this attempt, None while there is none."""
    found = _GET_CANCELLATION.scalar(unit.connection, job_id=grant.job_id, attempt=grant.lease.attempt)
    return None if found is None else bytes(found)


def finish_lease(unit: Unit, body: m.LeaseGrantedV1, phase: LeasePhase, error: PocacheError) -> None:
    """Mark a granted lease as ended without a result."""
    _end(unit, body.job_id, body.attempt, phase, error.code, str(error))


def _end(unit: Unit, job_id: bytes, attempt: int, phase: LeasePhase, code: str, reason: str) -> None:
    _FINISH.run(unit.connection, of_job=job_id, of_attempt=attempt, ended=phase.value, why=code, said=reason)
