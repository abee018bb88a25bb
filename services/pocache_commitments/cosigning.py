"""Witnesses of the log: showing them that it only grew, and keeping what they cosigned (docs/protocol.md 4.10).

Anybody may ask for the proof. Refused: sizes that the log does not have, cosignatures of whoever is no witness of the
network, and those over a checkpoint that this log did not make. What a witness says moves no job.
"""

from __future__ import annotations

import sqlalchemy as sa

from pocache.protocol.checkpoint import find_cosigners, merge_cosignatures, parse_note
from pocache.protocol.errors import NotAuthorizedError, NotYetError, SignatureError, UnknownJobError
from pocache.runtime.network import Genesis
from pocache.service.unit import Inbound, Unit
from pocache.storage.rows import upsert
from pocache.wire import messages as m
from pocache.wire.codec import decode
from pocache.wire.envelope import parse_envelope
from pocache_commitments import log
from pocache_commitments.log_proofs import compute_consistency_proof
from pocache_commitments.receipt_tables import COSIGNATURES, EXHIBITS


class Cosigning:
    """Answers witnesses, and keeps their lines."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis

    def answer(self, unit: Unit, inbound: Inbound[m.ConsistencyQueryV1]) -> m.ConsistencyReplyV1:
        """Return the note of a size, and the proof from another. Raises NotYetError, UnknownJobError."""
        old_size, new_size = inbound.body.old_size, inbound.body.new_size
        size = log.get_size(unit.connection)
        if size == 0:
            raise NotYetError("the log has no entry yet")
        new_size = new_size or size
        if not old_size <= new_size <= size:
            raise UnknownJobError(f"the log has {size} entries: no proof from {old_size} to {new_size}")
        proof = compute_consistency_proof(unit.connection, old_size, new_size) if old_size else ()
        note = unit.sign_checkpoint(new_size, log.get_root(unit.connection, new_size))
        return m.ConsistencyReplyV1(old_size=old_size, new_size=new_size, note=note, proof=proof)

    def accept(self, unit: Unit, inbound: Inbound[m.CheckpointCosignedV1]) -> None:
        """Keep a witness's line. Raises NotAuthorizedError, UnknownJobError, SignatureError, CodecError."""
        witness, size = inbound.sender, inbound.body.size
        if witness not in self._genesis.witnesses:
            raise NotAuthorizedError("only a witness that the genesis names cosigns the log")
        if size > log.get_size(unit.connection):
            raise UnknownJobError(f"the log has no {size} entries")
        note = parse_note(inbound.body.note)
        own = parse_note(unit.sign_checkpoint(size, log.get_root(unit.connection, size))).checkpoint
        if note.checkpoint != own:
            raise SignatureError("the cosigned checkpoint is not one of this log")
        lines = find_cosigners(self._genesis.network_id, note, (witness,))
        if not lines:
            raise SignatureError("the note has no line of the witness that sent it")
        upsert(
            unit.connection, COSIGNATURES, {"size": size, "witness": witness}, {"line": lines[witness].text}
        )


def find_cosigned_size(connection: sa.Connection, least: int) -> int | None:
    """Return the size, at least this one, whose checkpoint most witnesses cosigned; the smallest of equals."""
    count = sa.func.count()
    return connection.execute(
        sa.select(COSIGNATURES.c.size)
        .join(EXHIBITS, sa.and_(EXHIBITS.c.kind == "checkpoint", EXHIBITS.c.number == COSIGNATURES.c.size))
        .where(COSIGNATURES.c.size >= least)
        .group_by(COSIGNATURES.c.size)
        .order_by(count.desc(), COSIGNATURES.c.size)
        .limit(1)
    ).scalar_one_or_none()


def get_cosigned_note(connection: sa.Connection, checkpoint: bytes, size: int) -> bytes:
    """Return the note of a checkpoint's envelope with its witnesses' lines behind the log's own."""
    own = decode(m.CheckpointV1, parse_envelope(checkpoint).payload).note
    if not own:
        return b""
    rows = connection.execute(sa.select(COSIGNATURES.c.line).where(COSIGNATURES.c.size == size)).scalars()
    lines = [parse_note(own[: own.index(b"\n\n") + 2] + line).signatures[0] for line in rows]
    return merge_cosignatures(own, lines)
