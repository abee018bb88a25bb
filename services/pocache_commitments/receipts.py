"""Receipts: keeping what the record says about each job, and showing it to the job's user (docs/protocol.md 14.5).

The store takes every message of RECORD about a job, beside those that it acts on, and the rounds, snapshots, epochs and
checkpoints that many jobs share. Once the job is over it answers for its receipt, part by part. Refuses anybody but the
job's user and the operator, jobs that are not over, and receipts that are too large to travel. Nothing here moves a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.errors import EnvelopeError, NotAuthorizedError, NotYetError, UnknownJobError
from pocache.protocol.ids import ModelId
from pocache.protocol.limits import RECEIPT_PART_BYTES_MAX
from pocache.receipt.assemble import assemble_receipt, read_submission
from pocache.receipt.dossier import JOB_TOPICS, Dossier, Said, open_message
from pocache.receipt.format import LogProof, compute_receipt_hash, encode_binary
from pocache.runtime.network import Genesis, Model
from pocache.service.dispatch import ROUNDS_KEPT
from pocache.service.unit import Handler, Inbound, RoundView, Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import find_row, insert_row, update_rows, upsert
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role, Topic
from pocache_commitments.cosigning import find_cosigned_size, get_cosigned_note
from pocache_commitments.log_proofs import compute_consistency_proof, compute_inclusion_proof
from pocache_commitments.receipt_tables import DOSSIER, EXHIBITS, RECEIPTS

SNAPSHOTS_KEPT: Final = 2_000
"""As many as the pool itself remembers."""

_BUILT_MAX: Final = 4
"""Receipts kept in memory between the questions for their parts."""

_GET_CHECKPOINT_SIZE: Final = Prepared(
    sa.select(sa.func.max(EXHIBITS.c.number).label("number")).where(EXHIBITS.c.kind == "checkpoint")
)
_GET_EPOCHS: Final = Prepared(
    sa.select(EXHIBITS.c.data).where(EXHIBITS.c.kind == "epoch").order_by(EXHIBITS.c.number)
)
_GET_DOSSIER: Final = Prepared(
    sa.select(DOSSIER.c.data).where(DOSSIER.c.job_id == sa.bindparam("job_id")).order_by(DOSSIER.c.sequence)
)
_FORGET: Final = Prepared(
    sa.delete(EXHIBITS).where(
        EXHIBITS.c.kind == sa.bindparam("kind"),
        EXHIBITS.c.number <= sa.bindparam("number"),
        sa.not_(EXHIBITS.c.is_used),
    )
)


class Receipts:
    """Keeps the record of each job, and answers for its receipt."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._genesis = genesis
        self._models = models
        self._built: dict[bytes, bytes] = {}

    def extend(self, handlers: Mapping[Topic[Any], Handler]) -> dict[Topic[Any], Handler]:
        """Return the handlers with everything kept that a receipt needs, before it is acted on."""
        extended: dict[Topic[Any], Handler] = dict(handlers)
        for topic in JOB_TOPICS:
            extended[topic] = self._keeping(handlers.get(topic))
        extended[t.SNAPSHOT_TAKEN] = self._keep_snapshot
        extended[t.EPOCH] = self._keep_epoch
        extended[t.CHECKPOINT] = self._keep_checkpoint
        return extended

    def keep_round(self, unit: Unit, view: RoundView) -> None:
        """Keep a round's envelope; those that nobody needs are forgotten with their randomness."""
        _keep_exhibit(unit, "round", view.number, view.envelope)
        _forget(unit, "round", view.number - ROUNDS_KEPT)

    def answer(self, unit: Unit, inbound: Inbound[m.ReceiptQueryV1]) -> m.ReceiptPartV1:
        """Return one part of a receipt. Raises NotAuthorizedError, UnknownJobError, NotYetError, LimitError."""
        query = inbound.body
        if inbound.tokens["job"] != query.job_id.hex():
            raise EnvelopeError("the subject names another job than the question")
        if inbound.sender not in (inbound.tokens["user"], self._genesis.signer(Role.OPERATOR)):
            raise NotAuthorizedError("the subject names another user than the one who asks")
        row = find_row(unit.connection, RECEIPTS, {"job_id": query.job_id})
        allowed = (None if row is None else row.user, self._genesis.signer(Role.OPERATOR))
        # One answer to strangers, whether there is such a job or not.
        if inbound.sender not in allowed:
            raise NotAuthorizedError("a receipt is shown to the job's user and to the operator")
        if row is None:
            raise UnknownJobError(f"no job {query.job_id.hex()} was admitted here")
        if not row.is_over:
            raise NotYetError("the job is not over: there is no receipt of it yet")
        data = self._built.get(query.job_id) if query.part else None
        if data is None:
            data = self._build(unit, row)
        starts = range(0, len(data), RECEIPT_PART_BYTES_MAX)
        if query.part >= len(starts):
            raise UnknownJobError(f"the receipt has {len(starts)} parts, counted from 0")
        start = starts[query.part]
        return m.ReceiptPartV1(
            job_id=query.job_id,
            part=query.part,
            part_count=len(starts),
            data=data[start : start + RECEIPT_PART_BYTES_MAX],
            receipt_hash=compute_receipt_hash(data),
        )

    def _keeping(self, handle: Handler | None) -> Handler:
        def keep_and_handle(unit: Unit, inbound: Inbound[Any]) -> None:
            self._keep(unit, inbound)
            if handle is not None:
                handle(unit, inbound)

        return keep_and_handle

    def _keep(self, unit: Unit, inbound: Inbound[Any]) -> None:
        job_id = inbound.body.job_id
        said = {
            "job_id": job_id,
            "sequence": inbound.sequence,
            "subject": inbound.topic.subject(**inbound.tokens),
            "data": inbound.envelope,
        }
        insert_row(unit.connection, DOSSIER, said)
        if inbound.topic is t.JOB_ADMITTED:
            upsert(unit.connection, RECEIPTS, {"job_id": job_id}, {"user": inbound.body.user})
        is_refusal = inbound.topic is t.HOLD_REFUSED and inbound.body.purpose == "escrow"
        if inbound.topic is t.PAYOUT_SETTLED or is_refusal:
            self._complete(unit, job_id)

    def _complete(self, unit: Unit, job_id: bytes) -> None:
        """Fix what the receipt shows of the log, and keep the rounds and snapshots that the job was drawn from."""
        connection = unit.connection
        log_size = _GET_CHECKPOINT_SIZE.scalar(connection)
        update_rows(connection, RECEIPTS, {"job_id": job_id}, {"is_over": True, "log_size": log_size})
        dossier = self._open_dossier(connection, job_id)
        used = {"round": dossier.get_needed_rounds(), "snapshot": dossier.get_needed_snapshots()}
        for kind, numbers in used.items():
            for number in numbers:
                update_rows(connection, EXHIBITS, {"kind": kind, "number": number}, {"is_used": True})

    def _build(self, unit: Unit, row: Any) -> bytes:
        connection, job_id = unit.connection, row.job_id
        dossier = self._open_dossier(connection, job_id)
        model_id = ModelId(read_submission(dossier).model_id)
        network = self._genesis.network_id
        epochs: list[Said[m.EpochV1]] = [
            open_message(data, network, self._genesis, (t.EPOCH,)) for (data,) in _GET_EPOCHS.all(connection)
        ]
        receipt = assemble_receipt(
            dossier,
            genesis_json=self._genesis.canonical_json(),
            model_envelope=self._models[model_id].envelope,
            get_round=lambda number: _get_exhibit(connection, "round", number),
            get_snapshot=lambda number: _get_exhibit(connection, "snapshot", number),
            epochs=epochs,
            log=_prove(connection, dossier, row.log_size),
        )
        data = encode_binary(receipt)
        self._built.pop(job_id, None)
        while len(self._built) >= _BUILT_MAX:
            self._built.pop(next(iter(self._built)))
        self._built[job_id] = data
        return data

    def _open_dossier(self, connection: sa.Connection, job_id: bytes) -> Dossier:
        rows = _GET_DOSSIER.all(connection, job_id=job_id)
        network = self._genesis.network_id
        said = [open_message(data, network, self._genesis, JOB_TOPICS) for (data,) in rows]
        return Dossier(said, is_strict=False)

    def _keep_snapshot(self, unit: Unit, inbound: Inbound[m.SnapshotV1]) -> None:
        _keep_exhibit(unit, "snapshot", inbound.body.number, inbound.envelope)
        _forget(unit, "snapshot", inbound.body.number - SNAPSHOTS_KEPT)

    def _keep_epoch(self, unit: Unit, inbound: Inbound[m.EpochV1]) -> None:
        _keep_exhibit(unit, "epoch", inbound.body.number, inbound.envelope)

    def _keep_checkpoint(self, unit: Unit, inbound: Inbound[m.CheckpointV1]) -> None:
        _keep_exhibit(unit, "checkpoint", inbound.body.size, inbound.envelope)


def _prove(connection: sa.Connection, dossier: Dossier, log_size: int | None) -> LogProof | None:
    """Return that a job's entry is in the log, by the checkpoint it was made with and by the last before its end."""
    recorded = dossier.find(t.COMMITMENT_RECORDED)
    if recorded is None:
        return None
    size = recorded.log_index + 1
    cosigned_size = find_cosigned_size(connection, size)
    latest = cosigned_size or max(size, log_size or 0)
    own, last = (_get_exhibit(connection, "checkpoint", number) for number in (size, latest))
    if own is None or last is None:
        raise NotYetError("the checkpoint of the job's entry has not come back from the record yet")
    return LogProof(
        checkpoint=own,
        inclusion=compute_inclusion_proof(connection, recorded.log_index, size),
        latest=last,
        consistency=compute_consistency_proof(connection, size, latest),
        cosigned=get_cosigned_note(connection, last, latest) if cosigned_size else b"",
    )


def _keep_exhibit(unit: Unit, kind: str, number: int, data: bytes) -> None:
    upsert(unit.connection, EXHIBITS, {"kind": kind, "number": number}, {"data": data})


def _get_exhibit(connection: sa.Connection, kind: str, number: int) -> bytes | None:
    row = find_row(connection, EXHIBITS, {"kind": kind, "number": number})
    return None if row is None else row.data


def _forget(unit: Unit, kind: str, number: int) -> None:
    _FORGET.run(unit.connection, kind=kind, number=number)
