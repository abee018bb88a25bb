"""Audits: the lottery, the user's challenge inside the window, and the window's end.

A commitment leaves its window in one of three ways: the lottery of its round takes it, its user challenges
it, or the window closes on it. Every draw waits for the round that was named before it was known: when the
round is there before the checkpoint that covers the entry is known to be published, another one is named. Refuses
challenges by others, outside the window, and a second one. How an audit goes on is the pool's to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.beacon import compute_round_at
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.errors import ConflictError, ExpiredError, NotAuthorizedError, UnknownJobError
from pocache.protocol.ids import ModelId
from pocache.runtime.network import Genesis, Model
from pocache.service.binding import bind_event
from pocache.service.unit import Inbound, Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import update_rows
from pocache.storage.store import ROUNDS
from pocache.wire.messages import (
    AuditDeepenedV1,
    AuditOpenedV1,
    ChallengeRequestV1,
    CommitmentReboundV1,
    CornerV1,
    OutcomeV1,
    PayoutSettledV1,
    WindowClosedV1,
)
from pocache.wire.topics import AUDIT_DEEPENED, AUDIT_OPENED, COMMITMENT_REBOUND, WINDOW_CLOSED
from pocache_commitments.draws import Draw, draw_audit_corner, is_audited
from pocache_commitments.rows import forget_stages, get_commitment, to_committed
from pocache_commitments.tables import COMMITMENTS, Phase


def _select_due(due_round: sa.Column[int], *conditions: sa.ColumnElement[bool]) -> Prepared:
    """Return the query for commitments in their window whose due round has been verified, and that round."""
    return Prepared(
        sa.select(COMMITMENTS, ROUNDS.c.number, ROUNDS.c.randomness)
        .join(ROUNDS, ROUNDS.c.number == due_round)
        .where(COMMITMENTS.c.phase == Phase.WINDOW.value, *conditions)
        .order_by(COMMITMENTS.c.log_index)
    )


_GET_CHALLENGED: Final = _select_due(COMMITMENTS.c.challenge_round, COMMITMENTS.c.is_challenged)
# A challenged commitment is audited in full anyway, so no lottery is drawn for it.
_GET_UNDRAWN: Final = _select_due(
    COMMITMENTS.c.audit_round, sa.not_(COMMITMENTS.c.is_challenged), sa.not_(COMMITMENTS.c.is_lottery_drawn)
)
_GET_ENDED: Final = Prepared(
    sa.select(COMMITMENTS)
    .where(
        COMMITMENTS.c.phase == Phase.WINDOW.value,
        COMMITMENTS.c.window_close_round <= sa.bindparam("latest_round"),
        COMMITMENTS.c.window_close_tick <= sa.bindparam("tick"),
        COMMITMENTS.c.is_lottery_drawn,
        sa.not_(COMMITMENTS.c.is_challenged),
    )
    .order_by(COMMITMENTS.c.log_index)
)


class Audits:
    """Handles challenges, outcomes and settlements, and opens and closes what is due in a round."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._genesis = genesis
        self._models = models

    def challenge(self, unit: Unit, inbound: Inbound[ChallengeRequestV1]) -> None:
        """Bind the user's challenge to a round to come, or deepen the audit that is open already."""
        request = inbound.body
        row = get_commitment(unit.connection, request.job_id, request.attempt)
        if row is None:
            raise UnknownJobError("no commitment is recorded for this job and attempt")
        if row.user != inbound.sender:
            raise NotAuthorizedError("only the user who submitted the job may challenge it")
        if row.is_challenged:
            raise ConflictError("the job was challenged before: there is one dispute per job")
        if row.phase == Phase.EQUIVOCATED:
            raise ConflictError("the generator contradicted itself: it is convicted without a challenge")
        if row.phase == Phase.CLOSED:
            raise ExpiredError("the job is decided")
        arrival_round = compute_round_at(self._genesis.beacon_chain, inbound.stored_ms)
        if arrival_round >= row.window_close_round:
            raise ExpiredError(
                f"it came in round {arrival_round}, the window closed in {row.window_close_round}"
            )
        if row.phase == Phase.AUDIT:
            _update(unit, row, is_challenged=True)
            deepened = AuditDeepenedV1(
                job_id=request.job_id, attempt=request.attempt, challenge=inbound.envelope
            )
            unit.emit(AUDIT_DEEPENED, deepened, job=request.job_id)
            return
        due_round = bind_event(self._genesis, unit, inbound.stored_ms)
        _update(unit, row, is_challenged=True, challenge_round=due_round, challenge=inbound.envelope)

    def open_due(self, unit: Unit) -> None:
        """Open every audit whose round has come: the challenged first, then those that the lottery takes."""
        for row in _GET_CHALLENGED.all(unit.connection):
            corner = compute_full_corner(self._get_model(row).schema.layer_count, row.leaf_count)
            self._open(unit, row, _read_draw(row), "challenge", corner)
        for row in _GET_UNDRAWN.all(unit.connection):
            if unit.is_unpublished(row.outbox_number):
                self._rebind(unit, row)
                continue
            _update(unit, row, is_lottery_drawn=True)
            draw = _read_draw(row)
            if is_audited(self._genesis, to_committed(row), draw):
                corner = draw_audit_corner(self._genesis, self._get_model(row), to_committed(row), draw)
                self._open(unit, row, draw, "lottery", corner)

    def close_windows(self, unit: Unit) -> None:
        """Close every window that has ended with its lottery drawn and without a challenge."""
        for row in _GET_ENDED.all(unit.connection, latest_round=unit.get_latest_round(), tick=unit.tick):
            _update(unit, row, phase=Phase.CLOSED.value)
            closed = WindowClosedV1(job_id=row.job_id, attempt=row.attempt)
            unit.emit(WINDOW_CLOSED, closed, job=row.job_id)

    def conclude(self, unit: Unit, inbound: Inbound[OutcomeV1]) -> None:
        """Close a commitment that the pool decided on, and forget its stages."""
        row = get_commitment(unit.connection, inbound.body.job_id, inbound.body.attempt)
        if row is None:
            raise UnknownJobError("no commitment is recorded for this job and attempt")
        _close(unit, inbound.body.job_id)

    def settle(self, unit: Unit, inbound: Inbound[PayoutSettledV1]) -> None:
        """Close whatever is left of a job whose pool was emptied: nothing about it can change any more."""
        _close(unit, inbound.body.job_id)

    def _rebind(self, unit: Unit, row: Any) -> None:
        """Bind a commitment to another round: to strangers it looks as if it were made with its round in view."""
        audit_round = bind_event(self._genesis, unit, unit.now_ms)
        window_close_round = max(row.window_close_round, audit_round + 1)
        rebound = CommitmentReboundV1(
            job_id=row.job_id,
            attempt=row.attempt,
            missed_round=row.audit_round,
            rebound_ms=unit.now_ms,
            audit_round=audit_round,
            window_close_round=window_close_round,
        )
        unit.emit(COMMITMENT_REBOUND, rebound, job=row.job_id)
        _update(
            unit,
            row,
            audit_round=audit_round,
            window_close_round=window_close_round,
            outbox_number=unit.last_number,
        )

    def _open(self, unit: Unit, row: Any, draw: Draw, reason: str, corner: Corner) -> None:
        _update(unit, row, phase=Phase.AUDIT.value, challenge=None)
        opened = AuditOpenedV1(
            job_id=row.job_id,
            attempt=row.attempt,
            reason="challenge" if reason == "challenge" else "lottery",
            round_number=draw.round_number,
            randomness=draw.randomness,
            corner=CornerV1(
                layer_max=corner.layer_max, position_max=corner.position_max, full_depth=corner.full_depth
            ),
            challenge=row.challenge,
        )
        unit.emit(AUDIT_OPENED, opened, job=row.job_id)

    def _get_model(self, row: Any) -> Model:
        return self._models[ModelId(row.model_id)]


def _read_draw(row: Any) -> Draw:
    """Return the round that a row that is due came with."""
    return Draw(row.number, row.randomness)


def _update(unit: Unit, row: Any, **values: object) -> None:
    update_rows(unit.connection, COMMITMENTS, {"job_id": row.job_id, "attempt": row.attempt}, values)


def _close(unit: Unit, job_id: bytes) -> None:
    forget_stages(unit.connection, job_id)
    update_rows(unit.connection, COMMITMENTS, {"job_id": job_id}, {"phase": Phase.CLOSED.value})
