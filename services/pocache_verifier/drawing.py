"""Drawing: in which round a stage's verifiers are drawn, from which snapshot, and in which order.

The first stage is drawn by the audit's round, each later one by a round to come when the stage before it ended
(docs/protocol.md 6.7): nobody knows who will be called while an earlier stage runs. A recheck's round says by a lottery
of its own whether there is one, and how deep it goes. What a draw was made from is said
in the record, before the round is known and after, so anybody can draw it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from pocache.protocol.beacon import compute_round_time_ms
from pocache.protocol.challenge import (
    Corner,
    DeterministicStream,
    Tag,
    compute_seed,
    draw_corner,
    draw_order,
    is_drawn,
)
from pocache.protocol.dispute_terms import AwaitDraw, Phase, RequestHold
from pocache.protocol.ids import ParticipantId
from pocache.protocol.sortition import compute_weights
from pocache.runtime.network import Genesis
from pocache.service.binding import bind_event
from pocache.service.unit import Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import update_rows
from pocache.storage.store import ROUNDS
from pocache.wire.messages import StageBoundV1, VerifierDrawnV1
from pocache.wire.topics import STAGE_BOUND, VERIFIER_DRAWN
from pocache_verifier.jobs import Job
from pocache_verifier.membership import get_snapshot_before
from pocache_verifier.tables import DISPUTES

FIRST_STAGE: Final = 1

_GET_DUE: Final = Prepared(
    sa.select(DISPUTES.c.job_id, ROUNDS.c.number, ROUNDS.c.randomness)
    .join(ROUNDS, ROUNDS.c.number == DISPUTES.c.draw_round)
    .where(DISPUTES.c.phase == Phase.DRAWING.value)
    .order_by(DISPUTES.c.draw_round, DISPUTES.c.job_id)
)
_GET_DRAW: Final = Prepared(
    sa.select(DISPUTES.c.draw_round, DISPUTES.c.snapshot).where(DISPUTES.c.job_id == sa.bindparam("job_id"))
)


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


def read_due(connection: sa.Connection) -> list[tuple[bytes, RoundDrawn]]:
    """Return job and round of every dispute whose stage can be drawn."""
    return [(row.job_id, RoundDrawn(row.number, row.randomness)) for row in _GET_DUE.all(connection)]


@dataclass(frozen=True, slots=True)
class RoundDrawn:
    """A round that a draw is made from."""

    number: int
    randomness: bytes


def draw_stage(
    genesis: Genesis,
    unit: Unit,
    job: Job,
    drawn: RoundDrawn,
    *,
    stage: int,
    excluded: tuple[ParticipantId, ...],
) -> tuple[ParticipantId, ...]:
    """Return a stage's candidates in sortition's order, without those of the parties' owners and the excluded.

    From the latest snapshot that was taken before the round was due; its number is kept for :func:`announce_drawn`,
    so the dispute must be in the database.
    """
    snapshot = get_snapshot_before(unit.connection, compute_round_time_ms(genesis.beacon_chain, drawn.number))
    _update(unit, job, draw_round=drawn.number, snapshot=None if snapshot is None else snapshot.number)
    if snapshot is None:
        return ()
    weights = compute_weights(
        (
            (ParticipantId(member.participant), member.stake_micro)
            for member in snapshot.members
            if job.model.model_id in member.model_ids
        ),
        owners={ParticipantId(one.participant): ParticipantId(one.owner) for one in snapshot.owners},
        parties=(job.generator, job.user),
        excluded=excluded,
        share_max=genesis.share(genesis.audit.owner_stake_share),
    )
    return draw_order(_open_stream(genesis, job, drawn, genesis.procedure.get_tag(stage), stage), weights)


def draw_recheck(genesis: Genesis, job: Job, drawn: RoundDrawn, *, stage: int) -> tuple[bool, Corner]:
    """Return whether an agreement is looked at again, and which corner is, by the round after it.

    Without a lottery of its own a stage is always held, and its corner is the whole job's.
    """
    share = genesis.recheck_share if genesis.procedure.is_recheck(stage) else None
    if share is None:
        return True, job.full_corner
    corner = draw_corner(
        _open_stream(genesis, job, drawn, Tag.CORNER, stage),
        layer_count=job.model.schema.layer_count,
        leaf_count=job.leaf_count,
        prompt_count=job.prompt_count,
        full_share=genesis.share(genesis.audit.full_depth_share),
    )
    return is_drawn(_open_stream(genesis, job, drawn, Tag.RECHECK, stage), *share), corner


def _open_stream(genesis: Genesis, job: Job, drawn: RoundDrawn, tag: Tag, stage: int) -> DeterministicStream:
    return DeterministicStream(
        compute_seed(
            tag,
            network=genesis.network_id,
            chain_hash=genesis.beacon_chain.chain_hash,
            round_number=drawn.number,
            randomness=drawn.randomness,
            root=job.root,
            leaf_count=job.leaf_count,
            job_id=job.job_id,
            stage=stage,
        )
    )


def announce_drawn(unit: Unit, job: Job, command: RequestHold) -> None:
    """Say who was drawn, and from what."""
    row = _GET_DRAW.first(unit.connection, job_id=job.job_id)
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
    update_rows(unit.connection, DISPUTES, {"job_id": job.job_id}, values)
