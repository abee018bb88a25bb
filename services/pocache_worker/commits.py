"""Saying a result: the commitment with its binding, said once; and again when the beacon had gone on meanwhile.

What is said again has the same root, leaf count and binding and only a later round, so it never contradicts itself.
"""

from __future__ import annotations

import hashlib
from typing import Final

import sqlalchemy as sa

from pocache.engine.port import Capture
from pocache.protocol.commitment import compute_binding_digest
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.ids import NetworkId, ParticipantId
from pocache.service.unit import Unit
from pocache.storage.prepared import Prepared
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode, encode
from pocache_worker.grants import Grant, compute_binding
from pocache_worker.leaves import SealedLeaves
from pocache_worker.state import send
from pocache_worker.tables import LEASES, LeasePhase

ANNOUNCE_COUNT_MAX: Final = 8
"""How often one result is said at most."""

_COMMIT: Final = Prepared(
    sa.update(LEASES)
    .where(
        LEASES.c.job_id == sa.bindparam("of_job"),
        LEASES.c.attempt == sa.bindparam("of_attempt"),
        LEASES.c.phase == LeasePhase.GRANTED.value,
    )
    .values(
        phase=LeasePhase.COMMITTED.value,
        root=sa.bindparam("of_root"),
        result=sa.bindparam("said"),
        announced_round=sa.bindparam("said_round"),
        announce_count=1,
    )
)


def commit_result(
    unit: Unit,
    grant: Grant,
    capture: Capture,
    sealed: SealedLeaves,
    *,
    participant: ParticipantId,
    network: NetworkId,
    stack: str,
    latest_round: int,
    cancellation: bytes | None = None,
    commits_twice: bool = False,
) -> bool:
    """Commit to leaves that are durable and say so; False when the lease ended meanwhile and nothing was said."""
    lease = grant.lease
    output = pack_tokens(capture.output)
    binding = compute_binding(grant, network=network, stack=stack, output=output)
    result = m.ResultV1(
        job_id=lease.job_id,
        attempt=lease.attempt,
        lease=grant.lease_envelope,
        output=output,
        finish_reason=capture.finish_reason,
        leaf_count=sealed.leaf_count,
        root=sealed.root,
        binding=compute_binding_digest(binding),
        stack=stack,
        latest_round=latest_round,
        cancellation=cancellation,
    )
    changed = _COMMIT.run(
        unit.connection,
        of_job=lease.job_id,
        of_attempt=lease.attempt,
        of_root=sealed.root,
        said=encode(result),
        said_round=latest_round,
    )
    if not changed:
        return False
    _say(unit, result, participant)
    if commits_twice:
        other_root = hashlib.sha256(sealed.root).digest()
        _say(unit, result.model_copy(update={"root": other_root}), participant)
    return True


def announce_again(
    unit: Unit, job_id: bytes, attempt: int, *, participant: ParticipantId, latest_round: int
) -> bool:
    """Say a result again under a later round; False when its time is over, or there is no later round."""
    row = unit.connection.execute(
        sa.select(LEASES).where(
            LEASES.c.job_id == job_id,
            LEASES.c.attempt == attempt,
            LEASES.c.phase == LeasePhase.COMMITTED.value,
            LEASES.c.deadline_ms >= unit.now_ms,
            LEASES.c.announced_round < latest_round,
            LEASES.c.announce_count < ANNOUNCE_COUNT_MAX,
        )
    ).one_or_none()
    if row is None:
        return False
    result = decode(m.ResultV1, row.result).model_copy(update={"latest_round": latest_round})
    unit.connection.execute(
        sa.update(LEASES)
        .where(LEASES.c.job_id == job_id, LEASES.c.attempt == attempt)
        .values(result=encode(result), announced_round=latest_round, announce_count=row.announce_count + 1)
    )
    _say(unit, result, participant)
    return True


def read_announced(unit: Unit) -> list[tuple[bytes, int]]:
    """Return job and attempt of the results whose lease still runs: a refusal may have been missed."""
    rows = unit.connection.execute(
        sa.select(LEASES.c.job_id, LEASES.c.attempt).where(
            LEASES.c.phase == LeasePhase.COMMITTED.value, LEASES.c.deadline_ms >= unit.now_ms
        )
    ).all()
    return [(row.job_id, row.attempt) for row in rows]


def read_announced_round(unit: Unit, job_id: bytes, attempt: int) -> int | None:
    """Return the round that a result named when it was said last, None when there is none."""
    return unit.connection.execute(
        sa.select(LEASES.c.announced_round).where(
            LEASES.c.job_id == job_id,
            LEASES.c.attempt == attempt,
            LEASES.c.phase == LeasePhase.COMMITTED.value,
            LEASES.c.deadline_ms >= unit.now_ms,
        )
    ).scalar_one_or_none()


def _say(unit: Unit, result: m.ResultV1, participant: ParticipantId) -> None:
    send(
        unit,
        t.RESULT_COMPLETED,
        result,
        job_id=result.job_id,
        attempt=result.attempt,
        worker=participant,
        job=result.job_id,
    )
