"""Drawing: in which round a stage's verifiers are drawn, from which snapshot, and in which order.

The first stage is drawn by the audit's round, each later one by a round to come when the stage before it ended
(docs/protocol.md 6.7): nobody knows who will be called while an earlier stage runs. What a draw was made from is said
in the record, before the round is known and after, so anybody can draw it again.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from pocache.protocol.beacon import compute_round_time_ms
from pocache.protocol.challenge import Tag, compute_seed
from pocache.protocol.dispute_terms import AwaitDraw, Phase, RequestHold
from pocache.protocol.ids import ParticipantId
from pocache.runtime.network import Genesis
from pocache.service.binding import bind_event
from pocache.service.unit import Unit
from pocache.storage.store import ROUNDS
from pocache.wire.messages import StageBoundV1, VerifierDrawnV1
from pocache.wire.topics import STAGE_BOUND, VERIFIER_DRAWN
from pocache_verifier.jobs import Job
from pocache_verifier.membership import compute_verifier_order, get_snapshot_before
from pocache_verifier.tables import DISPUTES

FIRST_STAGE: Final = 1


def bind_stage(genesis: Genesis, unit: Unit, job: Job, command: AwaitDraw) -> None:
    """Bind a stage to the first round after the end of the stage before it, which is now, and say so."""
    round_number = bind_event(genesis, unit, unit.now_ms)
    _update(unit, job, draw_round=round_number, snapshot=None)
    bound = StageBoundV1(
        job_id=job.job_id,
        attempt=job.attempt,
        stage=command.stage,
        ended_ms=unit.now_ms,
        round_number=round_number,
    )
    unit.emit(STAGE_BOUND, bound, job=job.job_id)


def read_due(connection: sa.Connection) -> list[tuple[bytes, int, bytes]]:
    """Return job, round and randomness of every dispute whose stage can be drawn."""
    rows = connection.execute(
        sa.select(DISPUTES.c.job_id, ROUNDS.c.number, ROUNDS.c.randomness)
        .join(ROUNDS, ROUNDS.c.number == DISPUTES.c.draw_round)
        .where(DISPUTES.c.phase == Phase.DRAWING.value)
        .order_by(DISPUTES.c.draw_round, DISPUTES.c.job_id)
    )
    return [(row.job_id, row.number, row.randomness) for row in rows]


def draw_stage(
    genesis: Genesis,
    unit: Unit,
    job: Job,
    *,
    stage: int,
    round_number: int,
    randomness: bytes,
    drawn: tuple[ParticipantId, ...],
) -> tuple[ParticipantId, ...]:
    """Return a stage's candidates in sortition's order, without the job's parties and those drawn before.

    From the latest snapshot that was taken before the round was due; its number is kept for :func:`announce_drawn`,
    so the dispute must be in the database.
    """
    chain = genesis.beacon_chain
    seed = compute_seed(
        Tag.VERIFIERS,
        network=genesis.network_id,
        chain_hash=chain.chain_hash,
        round_number=round_number,
        randomness=randomness,
        root=job.root,
        leaf_count=job.leaf_count,
        job_id=job.job_id,
        stage=stage,
    )
    snapshot = get_snapshot_before(unit.connection, compute_round_time_ms(chain, round_number))
    _update(unit, job, draw_round=round_number, snapshot=None if snapshot is None else snapshot.number)
    return compute_verifier_order(
        snapshot, seed, model_id=job.model.model_id, excluded=(job.generator, job.user, *drawn)
    )


def announce_drawn(unit: Unit, job: Job, command: RequestHold) -> None:
    """Say who was drawn, and from what."""
    row = unit.connection.execute(
        sa.select(DISPUTES.c.draw_round, DISPUTES.c.snapshot).where(DISPUTES.c.job_id == job.job_id)
    ).one()
    drawn = VerifierDrawnV1(
        job_id=job.job_id,
        attempt=job.attempt,
        stage=command.stage,
        round_number=row.draw_round,
        snapshot=row.snapshot,
        place=command.place,
        participant=command.participant,
    )
    unit.emit(VERIFIER_DRAWN, drawn, job=job.job_id)


def _update(unit: Unit, job: Job, **values: int | None) -> None:
    unit.connection.execute(sa.update(DISPUTES).where(DISPUTES.c.job_id == job.job_id).values(**values))
