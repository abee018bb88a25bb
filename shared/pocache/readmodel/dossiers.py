"""One job out of the read model: the case as a receipt's verifier sees it, and the receipt itself.

Nothing here judges. A case is opened from the same envelopes that a receipt carries, so what a page shows of draws and
distances is computed and not copied from whoever decided.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pocache.protocol.errors import NotYetError, ReceiptError, UnknownJobError
from pocache.protocol.ids import JobId, ModelId
from pocache.readmodel import tables as tb
from pocache.readmodel.model import ReadModel
from pocache.receipt.assemble import assemble_receipt, read_submission
from pocache.receipt.case import Case, RoundBook
from pocache.receipt.dossier import JOB_TOPICS, Dossier, Said, open_message
from pocache.receipt.format import LogProof, Receipt, encode_json
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role


def load_dossier(model: ReadModel, connection: sa.Connection, job_id: bytes) -> Dossier:
    """Return what was said about a job, opened. Raises UnknownJobError where nothing is kept of it."""
    messages = tb.MESSAGES.c
    rows = connection.execute(
        sa.select(messages.data).where(messages.job_id == job_id).order_by(messages.sequence)
    ).scalars()
    said = [open_message(data, model.network, model.genesis, JOB_TOPICS) for data in rows]
    if not said:
        raise UnknownJobError(f"nothing is kept here about job {job_id.hex()}")
    return Dossier(said, is_strict=False)


def load_case(model: ReadModel, connection: sa.Connection, job_id: bytes) -> Case:
    """Return a job as the steps of a verification see it.

    Raises UnknownJobError, NotYetError for a job that was not admitted or whose model is not known here.
    """
    dossier = load_dossier(model, connection, job_id)
    if dossier.find(t.JOB_ADMITTED) is None:
        raise NotYetError("the job is not admitted yet")
    model_id = ModelId(read_submission(dossier).model_id)
    if model_id not in model.models:
        raise NotYetError(f"the entry of model {model_id.hex()} is not known here")
    numbers = set(dossier.get_needed_snapshots())
    snapshots = tb.SNAPSHOTS.c
    rows = connection.execute(sa.select(snapshots.data).where(snapshots.number.in_(numbers))).scalars()
    opened = [open_message(data, model.network, model.genesis, (t.SNAPSHOT_TAKEN,)).body for data in rows]
    needed = dossier.get_needed_rounds()
    rounds = {number: data for number in needed if (data := get_round(connection, number)) is not None}
    return Case(
        network=model.network,
        genesis=model.genesis,
        trust=None,
        dossier=dossier,
        model=model.models[model_id],
        model_sender=model.genesis.signer(Role.OPERATOR),
        rounds=RoundBook(model.network, model.genesis, rounds.get),
        rounds_shown=None,
        snapshots={one.number: one for one in opened},
        is_record_whole=False,
    )


def build_receipt(model: ReadModel, connection: sa.Connection, job_id: bytes) -> Receipt:
    """Return a finished job's receipt, assembled from the record alone.

    Raises UnknownJobError, NotYetError while the job is not over, ReceiptError where something is not kept any more.
    """
    dossier = load_dossier(model, connection, job_id)
    if not dossier.is_over:
        raise NotYetError("the job is not over: there is no receipt of it yet")
    model_id = ModelId(read_submission(dossier).model_id)
    if model_id not in model.models:
        raise ReceiptError(f"the entry of model {model_id.hex()} is not known here")
    epochs: list[Said[m.EpochV1]] = [
        open_message(data, model.network, model.genesis, (t.EPOCH,))
        for data in connection.execute(sa.select(tb.EPOCHS.c.data).order_by(tb.EPOCHS.c.number)).scalars()
    ]
    return assemble_receipt(
        dossier,
        genesis_json=model.genesis.canonical_json(),
        model_envelope=model.models[model_id].envelope,
        get_round=lambda number: get_round(connection, number),
        get_snapshot=lambda number: _get(connection, tb.SNAPSHOTS, tb.SNAPSHOTS.c.number == number),
        epochs=epochs,
        log=_prove(model, connection, dossier, job_id),
    )


def build_receipt_json(model: ReadModel, connection: sa.Connection, job_id: bytes) -> bytes:
    """Return the receipt as the file that is kept and verified."""
    return encode_json(build_receipt(model, connection, job_id))


def get_round(connection: sa.Connection, number: int) -> bytes | None:
    """Return a round's envelope."""
    return _get(connection, tb.ROUNDS, tb.ROUNDS.c.number == number)


def to_job_id(text: str) -> JobId | None:
    """Return the job id that 64 lower-case hexadecimal digits are, None for anything else."""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        return None
    return JobId(bytes.fromhex(text))


def _prove(model: ReadModel, connection: sa.Connection, dossier: Dossier, job_id: bytes) -> LogProof | None:
    """Return that the job's entry is in the log, under its own checkpoint and the last before the job's end."""
    recorded = dossier.find(t.COMMITMENT_RECORDED)
    if recorded is None:
        return None
    size = recorded.log_index + 1
    own = _get(connection, tb.CHECKPOINTS, tb.CHECKPOINTS.c.size == size)
    if own is None or len(model.tree) < size:
        raise NotYetError("the checkpoint of the job's entry is not in the record yet")
    ended = sa.select(tb.JOBS.c.settled_ms).where(tb.JOBS.c.job_id == job_id)
    ended_ms = connection.execute(ended).scalar_one_or_none() or 0
    latest_size = connection.execute(
        sa.select(sa.func.max(tb.CHECKPOINTS.c.size)).where(
            tb.CHECKPOINTS.c.at_ms <= ended_ms, tb.CHECKPOINTS.c.size <= len(model.tree)
        )
    ).scalar()
    latest = max(size, latest_size or 0)
    shown = _get(connection, tb.CHECKPOINTS, tb.CHECKPOINTS.c.size == latest)
    assert shown is not None, "its size was read from the table, or is the entry's own"
    return LogProof(
        checkpoint=own,
        inclusion=model.tree.inclusion_proof(recorded.log_index, size),
        latest=shown,
        consistency=model.tree.consistency_proof(size, latest),
    )


def _get(connection: sa.Connection, table: sa.Table, where: Any) -> bytes | None:
    found: bytes | None = connection.execute(sa.select(table.c.data).where(where)).scalar()
    return found
