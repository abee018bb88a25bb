"""Recording: a result becomes the one commitment of its attempt, or evidence against its generator.

Owns the order of the checks: the lease and its holder first, because evidence needs no more than that;
then time and content. Refuses a second attempt at anything that is decided. Does not judge rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from pocache.protocol.beacon import compute_round_at
from pocache.protocol.commitment import Promise, is_equivocation
from pocache.protocol.errors import ConflictError, ExpiredError, UnknownModelError
from pocache.protocol.ids import Digest, JobId, ModelId
from pocache.runtime.network import Genesis, Model
from pocache.service.binding import bind_event
from pocache.service.unit import Inbound, Unit
from pocache.storage.rows import find_row, insert_row, update_rows
from pocache.wire.messages import (
    AttemptClosedV1,
    CheckpointV1,
    CommitmentRecordedV1,
    EquivocationV1,
    EvidenceV1,
    LeaseLapsedV1,
    LeaseV1,
    RefusalV1,
    ResultV1,
)
from pocache.wire.topics import (
    ATTEMPT_CLOSED,
    CHECKPOINT,
    COMMITMENT_RECORDED,
    EQUIVOCATION,
    EVIDENCE,
    REFUSALS,
    Role,
)
from pocache_commitments import log
from pocache_commitments.results import open_lease, verify_arrival, verify_result
from pocache_commitments.rows import forget_stages, get_commitment
from pocache_commitments.tables import CLOSED_ATTEMPTS, COMMITMENTS, Phase


class Recording:
    """Handles results, and leases that lapsed without one."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._genesis = genesis
        self._models = models

    def record(self, unit: Unit, inbound: Inbound[ResultV1]) -> None:
        """Record a result. The same promise again changes nothing; another one is an equivocation."""
        result = inbound.body
        lease = open_lease(self._genesis, result, inbound.sender)
        recorded = get_commitment(unit.connection, result.job_id, result.attempt)
        if recorded is not None:
            self._compare(unit, inbound, recorded)
            return
        if _is_closed(unit.connection, result.job_id, result.attempt):
            raise ExpiredError(
                "the attempt was closed when its lease lapsed: no commitment is accepted any more"
            )
        model = self._models.get(ModelId(lease.body.model_id))
        if model is None:
            raise UnknownModelError(f"model {lease.body.model_id.hex()} is not served here")
        verify_result(self._genesis, model, lease, result)
        verify_arrival(self._genesis, lease.body, result, inbound.stored_ms)
        self._append(unit, inbound, lease.body)

    def lapse(self, unit: Unit, inbound: Inbound[LeaseLapsedV1]) -> None:
        """Close an attempt that has no commitment."""
        job_id, attempt = inbound.body.job_id, inbound.body.attempt
        recorded = get_commitment(unit.connection, job_id, attempt)
        if recorded is not None or _is_closed(unit.connection, job_id, attempt):
            return
        insert_row(unit.connection, CLOSED_ATTEMPTS, {"job_id": job_id, "attempt": attempt})
        unit.emit(ATTEMPT_CLOSED, AttemptClosedV1(job_id=job_id, attempt=attempt), job=job_id)

    def _append(self, unit: Unit, inbound: Inbound[ResultV1], lease: LeaseV1) -> None:
        result = inbound.body
        entry = log.compute_log_leaf(
            job_id=JobId(result.job_id),
            attempt=result.attempt,
            root=Digest(result.root),
            leaf_count=result.leaf_count,
            binding=Digest(result.binding),
            result_id=inbound.envelope_id,
        )
        log_index = log.append_entry(unit.connection, entry)
        # The later of the two clocks: a commitment never counts as older than the moment it was seen.
        recorded_ms = max(unit.now_ms, inbound.stored_ms)
        audit_round = bind_event(self._genesis, unit, recorded_ms)
        window_rounds = self._genesis.audit.window_rounds
        current_round = compute_round_at(self._genesis.beacon_chain, recorded_ms)
        window_close_round = max(current_round + window_rounds, audit_round + 1)
        unit.emit(
            COMMITMENT_RECORDED,
            CommitmentRecordedV1(
                job_id=result.job_id,
                attempt=result.attempt,
                generator=inbound.sender,
                result=inbound.envelope,
                log_index=log_index,
                received_ms=inbound.stored_ms,
                recorded_ms=recorded_ms,
                audit_round=audit_round,
                window_close_round=window_close_round,
            ),
            job=result.job_id,
        )
        size = log_index + 1
        root = log.get_root(unit.connection, size)
        note = unit.sign_checkpoint(size, root)
        unit.emit(CHECKPOINT, CheckpointV1(size=size, root=root, at_ms=recorded_ms, note=note))
        commitment = {
            "job_id": result.job_id,
            "attempt": result.attempt,
            "generator": inbound.sender,
            "user": lease.user,
            "model_id": lease.model_id,
            "prompt_count": lease.prompt_count,
            "leaf_count": result.leaf_count,
            "root": result.root,
            "binding": result.binding,
            "result_id": inbound.envelope_id,
            "log_index": log_index,
            "recorded_ms": recorded_ms,
            "audit_round": audit_round,
            "window_close_round": window_close_round,
            # Rounds that this service did not see when they were due extend the window.
            "window_close_tick": unit.tick + window_rounds,
            "outbox_number": unit.last_number,
            "phase": Phase.WINDOW.value,
        }
        insert_row(unit.connection, COMMITMENTS, commitment)

    def _compare(self, unit: Unit, inbound: Inbound[ResultV1], recorded: Any) -> None:
        """Hold a further result of the leaseholder against the recorded one, however late or stale it is."""
        result = inbound.body
        if not is_equivocation(_promise_of_row(recorded), _promise_of_result(result)):
            return
        if recorded.phase == Phase.CLOSED:
            raise ConflictError("another result is recorded for this attempt, and the job is decided")
        if recorded.phase == Phase.EQUIVOCATED:
            raise ConflictError("this generator's equivocation is recorded already")
        key = {"job_id": result.job_id, "attempt": result.attempt}
        update_rows(unit.connection, COMMITMENTS, key, {"phase": Phase.EQUIVOCATED.value})
        forget_stages(unit.connection, result.job_id)
        unit.emit(
            EQUIVOCATION,
            EquivocationV1(
                job_id=result.job_id,
                attempt=result.attempt,
                generator=inbound.sender,
                first_envelope_id=recorded.result_id,
                second_envelope_id=inbound.envelope_id,
            ),
            job=result.job_id,
        )
        unit.emit(
            EVIDENCE,
            EvidenceV1(job_id=result.job_id, attempt=result.attempt, result=inbound.envelope),
            job=result.job_id,
        )
        # Said rather than raised: raising would undo the evidence.
        reason = (
            "another result is recorded for this attempt: both are signed, which convicts their generator"
        )
        message_hash = hashlib.sha256(inbound.envelope).digest()
        unit.emit(
            REFUSALS[Role.COMMITMENTS],
            RefusalV1(
                message_hash=message_hash,
                subject=inbound.topic.subject(**inbound.tokens),
                code=ConflictError.code,
                reason=reason,
            ),
            ref=message_hash,
        )


def _is_closed(connection: sa.Connection, job_id: bytes, attempt: int) -> bool:
    return find_row(connection, CLOSED_ATTEMPTS, {"job_id": job_id, "attempt": attempt}) is not None


def _promise_of_row(row: Any) -> Promise:
    return Promise(JobId(row.job_id), row.attempt, row.leaf_count, Digest(row.root), Digest(row.binding))


def _promise_of_result(result: ResultV1) -> Promise:
    return Promise(
        JobId(result.job_id), result.attempt, result.leaf_count, Digest(result.root), Digest(result.binding)
    )
